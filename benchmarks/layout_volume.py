"""Layout volume: the bytes that a layout's collectives move in one block, and where layouts cross.

Nothing is computed by formula: the bytes are those of the collectives that carry a block's changes
of sharding out, as the paper counts them (Pope et al. 2022, arXiv:2211.05102, appendix A). They
grow in a straight line with the tokens, so two numbers of tokens give the line.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, final

from alpage.cost import Step
from alpage.cost.forward import padded_sizes
from alpage.hardware import Mesh, resolve_cluster
from alpage.layout import Attention, Change, Layout, block_rounds, weight_changes
from alpage.shapes import named_shape
from alpage.workload import ModelShape

PALM: Final = named_shape("palm-540b")
# The formulas have a feed-forward of two matrices, and nothing else.
FEED_FORWARD: Final = replace(PALM, num_ffn_matrices=2)
_FEED_FORWARD_POINTS = frozenset(
    {"block input", "hidden, partial", "hidden", "block output", "feed-forward weights"}
)
_ELEMENT_BYTES = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Elements that a device has to do with in one block.

    Attributes:
        weights: whatever the tokens.
        per_token: for each token of the batch.
    """

    weights: Fraction
    per_token: Fraction

    def at(self, num_tokens: int) -> Fraction:
        """Return all of them for so many tokens."""
        return self.weights + self.per_token * num_tokens


def volume(layout: Layout, mesh: Mesh | None = None) -> Volume:
    """Return the volume of a feed-forward of two matrices on a cube of 4x4x4."""
    mesh = mesh or cube()
    return _line(FEED_FORWARD, layout, mesh, _FEED_FORWARD_POINTS)


def block_volume(shape: ModelShape, layout: Layout, mesh: Mesh) -> Volume:
    """Return the volume of a whole block, attention over heads."""
    return _line(shape, layout, mesh, None)


def charged(layout: Layout) -> Volume:
    """Return the volume as if gathering over all chips also passed its activations twice."""
    mesh, alone = cube(), volume(layout)
    sizes = {"T": 64, "E": PALM.d_model}
    residual = Fraction(layout.residual_sharding().local_bytes(sizes, mesh, 1), sizes["T"])
    return Volume(weights=alone.weights, per_token=alone.per_token + 2 * residual)


def crossover(fewer: Volume, more: Volume) -> Fraction:
    """Return the tokens from which on the second moves less than the first."""
    return (more.weights - fewer.weights) / (fewer.per_token - more.per_token)


def cube() -> Mesh:
    """Return the paper's 64 chips."""
    return resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)


def _line(shape: ModelShape, layout: Layout, mesh: Mesh, points: frozenset[str] | None) -> Volume:
    small, large = (_elements(shape, layout, mesh, num, points) for num in (64, 128))
    per_token = Fraction(large - small, 64)
    return Volume(weights=small - 64 * per_token, per_token=per_token)


def _elements(
    shape: ModelShape, layout: Layout, mesh: Mesh, num_tokens: int, points: frozenset[str] | None
) -> Fraction:
    attention = Attention(layout=layout, batch=layout.tokens)
    step = Step(num_sequences=num_tokens, num_new_tokens=1, num_past_tokens=0)
    sizes = padded_sizes(shape, attention, mesh, step)
    rounds = (weight_changes(shape, attention, mesh), *block_rounds(shape, attention, mesh))
    changes = (change for changing in rounds for change in changing)
    counted = (change for change in changes if points is None or change.point in points)
    return Fraction(sum(_payload_bytes(change, sizes, mesh) for change in counted), _ELEMENT_BYTES)


def _payload_bytes(change: Change, sizes: dict[str, int], mesh: Mesh) -> int:
    element_bytes = 4 if change.content == "statistic" else _ELEMENT_BYTES
    collectives = change.collectives(sizes, mesh, element_bytes)
    return change.num_tensors * sum(collective.payload_bytes for collective in collectives)
