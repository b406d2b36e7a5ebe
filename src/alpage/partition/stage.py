"""Stage: the blocks of a model that one rank of a pipeline has."""

from dataclasses import dataclass
from typing import final

from alpage.errors import InvalidValue
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Consecutive blocks. The first stage embeds tokens too, the last projects to the vocabulary.

    Attributes:
        layers: numbers of its blocks in the whole model.
        num_layers: blocks of the whole model.
    """

    layers: range
    num_layers: int

    def __post_init__(self) -> None:
        assert self.layers.step == 1, "blocks follow each other"
        assert 0 <= self.layers.start < self.layers.stop <= self.num_layers, "they are the model's"

    @staticmethod
    def whole(num_layers: int) -> "Stage":
        """Return all of a model."""
        return Stage(layers=range(num_layers), num_layers=num_layers)

    @property
    def is_first(self) -> bool:
        """Whether it takes tokens."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """Whether it gives logits."""
        return self.layers.stop == self.num_layers


def stages(shape: ModelShape, num_stages: int) -> tuple[Stage, ...]:
    """Cut a model into stages of nearly equal work.

    Work is counted in weights that a token is multiplied with; the vocabulary projection is the
    last stage's. The costliest stage is as cheap as can be, then the second costliest, and so on.

    Raises:
        InvalidValue: there are not as many blocks.

    >>> from alpage.shapes import named_shape
    >>> [len(stage.layers) for stage in stages(named_shape("llama-3-8b"), 4)]
    [9, 9, 8, 6]
    """
    if not 1 <= num_stages <= shape.num_layers:
        raise InvalidValue(
            field="num_stages",
            value=num_stages,
            limit=f"must be from 1 to {shape.num_layers}, as many as the model has blocks",
            remedy="Choose fewer stages, and cut each over more ranks",
        )
    block = shape.num_active_block_parameters // shape.num_layers
    costs = [block] * num_stages
    costs[-1] += shape.vocab_size * shape.d_model
    sizes = [1] * num_stages
    # Blocks are alike, so giving each of the others to the cheapest stage so far is the best cut.
    for _ in range(shape.num_layers - num_stages):
        cheapest = costs.index(min(costs))
        costs[cheapest] += block
        sizes[cheapest] += 1
    ends = [sum(sizes[: i + 1]) for i in range(num_stages)]
    return tuple(
        Stage(layers=range(end - size, end), num_layers=shape.num_layers)
        for size, end in zip(sizes, ends, strict=True)
    )
