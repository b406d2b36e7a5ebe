"""Block: every place of a transformer where a tensor changes how it lies, in order.

Running a layout means to carry these changes out, and pricing it means to price them, so both read
this list.
"""

from dataclasses import dataclass
from typing import Literal, final

from alpage.hardware import Mesh
from alpage.layout.attention import Attention, dividing
from alpage.layout.collective import Collective
from alpage.layout.redistribution import redistribute
from alpage.layout.sharding import Dim, Sharding
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A tensor that lies in one way and has to lie in another.

    Attributes:
        point: where in the model.
        before: how the tensor lies.
        after: how it has to lie.
        num_tensors: alike tensors that change at this point.
        content: "weight", "activation", or "statistic", which is a float32 number a token.
    """

    point: str
    before: Sharding
    after: Sharding
    num_tensors: int = 1
    content: Literal["weight", "activation", "statistic"] = "activation"

    def collectives(
        self, sizes: dict[str, int], mesh: Mesh, element_bytes: int
    ) -> tuple[Collective, ...]:
        """Return what carries out the change of one tensor. See `redistribute`."""
        return redistribute(
            self.before, self.after, sizes=sizes, mesh=mesh, element_bytes=element_bytes
        )


def block_rounds(
    shape: ModelShape, attention: Attention, mesh: Mesh
) -> tuple[tuple[Change, ...], ...]:
    """Return the changes of one block's activations in the order of their rounds.

    What changes in one round does so at the same time, and waits for the other ranks once. In a
    parallel block attention and feed-forward read one input, and add up before one output moves;
    else each has rounds of its own.
    """
    part_rounds = [_attention(shape, attention, mesh), _feed_forward(shape, attention)]
    if shape.is_parallel:
        part_rounds = [[first + second for first, second in zip(*part_rounds, strict=True)]]
    rounds: list[tuple[Change, ...]] = []
    for inner_rounds in part_rounds:
        rounds += [_entry(shape, attention), *inner_rounds, _exit(attention)]
    return tuple(changing for changes in rounds if (changing := _changing(changes)))


def weight_changes(shape: ModelShape, attention: Attention, mesh: Mesh) -> tuple[Change, ...]:
    """Return the gathers of one block's weights, which wait for no activation."""
    layout = attention.layout
    feed_forward = Change(
        point="feed-forward weights",
        before=layout.stored_weight("EF"),
        after=layout.used_weight("EF"),
        num_tensors=shape.num_ffn_matrices * shape.num_experts,
        content="weight",
    )
    queries = Change(
        point="query and output weights",
        before=_head_weight("H", layout.stored_embed, layout.stored_ffw),
        after=_head_weight("H", layout.embed, layout.ffw),
        num_tensors=2,
        content="weight",
    )
    keys = Change(
        point="key and value weights",
        before=_head_weight(
            "G", layout.stored_embed, dividing(layout.stored_ffw, shape.num_kv_heads, mesh)
        ),
        after=_head_weight("G", layout.embed, dividing(layout.ffw, shape.num_kv_heads, mesh)),
        num_tensors=2,
        content="weight",
    )
    if shape.num_experts == 1:
        return _changing((feed_forward, queries, keys))
    router = Change(
        point="router weights",
        before=layout.stored_weight("EN"),
        after=layout.used_weight("EN"),
        content="weight",
    )
    return _changing((router, feed_forward, queries, keys))


def ends_changes(shape: ModelShape, attention: Attention, mesh: Mesh) -> tuple[Change, ...]:
    """Return the changes before the first and behind the last block: embedding, norm and logits.

    The vocabulary is cut over all ranks whatever the layout, so every token is looked up, and its
    logits are computed, by all of them.
    """
    layout = attention.layout
    tokens, vocab = Dim(letter="T"), mesh.names
    found = Sharding(dims=(tokens, Dim(letter="E")), partial=vocab)
    rows = Sharding(dims=(tokens, Dim(letter="E", axes=layout.residual)))
    whole = Sharding(dims=(tokens, Dim(letter="E")))
    cut = Sharding(dims=(tokens, Dim(letter="V", axes=vocab)))
    return _changing(
        (
            Change(point="embedding", before=found, after=layout.residual_sharding()),
            _norm(shape, attention),
            Change(point="rows", before=layout.residual_sharding(), after=rows),
            Change(point="logits input", before=rows, after=whole),
            Change(point="logits", before=cut, after=Sharding(dims=(tokens, Dim(letter="V")))),
        )
    )


def _entry(shape: ModelShape, attention: Attention) -> tuple[Change, ...]:
    layout = attention.layout
    return _norm(shape, attention), Change(
        point="block input", before=layout.residual_sharding(), after=layout.block_input()
    )


def _norm(shape: ModelShape, attention: Attention) -> Change:
    layout = attention.layout
    tokens = (Dim(letter="T", axes=layout.tokens),)
    return Change(
        point="norm",
        before=Sharding(dims=tokens, partial=layout.residual),
        after=Sharding(dims=tokens),
        num_tensors=shape.num_norm_statistics,
        content="statistic",
    )


def _attention(shape: ModelShape, attention: Attention, mesh: Mesh) -> list[tuple[Change, ...]]:
    queries = Change(point="queries", before=attention.projected(), after=attention.queries())
    keys_and_values = Change(
        point="keys and values",
        before=attention.projected_kv(shape.num_kv_heads, mesh),
        after=attention.kv(shape.num_kv_heads, mesh),
        num_tensors=2,
    )
    attended = Change(point="attended", before=attention.queries(), after=attention.attended())
    return [(queries, keys_and_values), (attended,)]


def _feed_forward(shape: ModelShape, attention: Attention) -> list[tuple[Change, ...]]:
    layout = attention.layout
    scattered = Change(
        point="hidden, partial",
        before=layout.hidden_partial(),
        after=layout.hidden_scattered(),
        num_tensors=(shape.num_ffn_matrices - 1) * shape.num_active_experts,
    )
    gathered = Change(
        point="hidden",
        before=layout.hidden_scattered(),
        after=layout.hidden(),
        num_tensors=shape.num_active_experts,
    )
    if shape.num_experts == 1:
        return [(scattered,), (gathered,)]
    scores = (Dim(letter="T", axes=layout.tokens), Dim(letter="N"))
    router = Change(
        point="router",
        before=Sharding(dims=scores, partial=layout.embed),
        after=Sharding(dims=scores),
    )
    return [(router,), (scattered,), (gathered,)]


def _exit(attention: Attention) -> tuple[Change, ...]:
    layout = attention.layout
    return (
        Change(
            point="block output", before=layout.output_partial(), after=layout.residual_sharding()
        ),
    )


def _changing(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    return tuple(change for change in changes if change.before != change.after)


def _head_weight(letter: str, embed: tuple[str, ...], heads: tuple[str, ...]) -> Sharding:
    dims = (Dim(letter="E", axes=embed), Dim(letter=letter, axes=heads), Dim(letter="K"))
    return Sharding(dims=dims)
