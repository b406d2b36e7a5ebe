"""Partitioned: the sharder that makes a layout true.

Every point of the model is looked up in the layout once, when the sharder is made; what is left is
a list of collectives for each, the same at every step.

Dims: T tokens (or [B, L] with whole sequences, cut along B), E model, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from alpage.errors import InvalidValue
from alpage.hardware import Mesh
from alpage.layout import (
    Attention,
    Change,
    Collective,
    Dim,
    Layout,
    Sharding,
    block_rounds,
    dividing,
    ends_changes,
    redistribute,
)
from alpage.partition.collectives import Collectives
from alpage.partition.communicator import Communicator
from alpage.partition.cut import cut
from alpage.partition.homes import Homes
from alpage.partition.padding import padded
from alpage.partition.sharder import Cuttable, Parts, Sharder
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True)
class _Point:
    """What happens at a point: collectives, and which dim of a tensor each of their dims is."""

    collectives: tuple[Collective, ...]
    dims: tuple[int, ...]


@final
class Partitioned(Sharder):
    """One rank's part of a model on a mesh.

    Args:
        shape: the model.
        attention: how it attends, and the layout of its blocks.
        mesh: the ranks.
        communicator: this rank's side.
        num_tokens: tokens (or sequences of [B, L]) of a step are a multiple of this; at least the
            ranks that tokens are cut over.
        homes: mesh axes over which sequences have homes, a rank that attends for all their tokens;
            the last of the attention's head axes, of which it cuts no sequences then. A step is
            flat, and `place` says beforehand how many of its tokens are at home where.

    Raises:
        InvalidValue: the model cannot be cut into equal parts as the layout asks.
    """

    def __init__(
        self,
        shape: ModelShape,
        attention: Attention,
        mesh: Mesh,
        communicator: Communicator,
        *,
        num_tokens: int,
        homes: tuple[str, ...] = (),
    ) -> None:
        self.collectives = Collectives(mesh, communicator)
        self._attention = attention
        self._mesh = mesh
        self._at = mesh.coordinates(communicator.rank)
        layout = attention.layout
        layout.check(mesh)
        layout.check_shape(shape, mesh)
        self._vocab_size = shape.vocab_size
        self._whole = {"H": shape.num_heads, "G": shape.num_kv_heads, "V": shape.vocab_size}
        shape = padded(shape, attention, mesh)
        self._padded = {"H": shape.num_heads, "G": shape.num_kv_heads, "V": shape.vocab_size}
        self._shape = shape
        self._homes = (
            Homes(attention, shape.num_kv_heads, mesh, self.collectives, homes) if homes else None
        )
        self._stored = self._axes(layout.stored_embed, layout.stored_ffw)
        self._used = self._axes(layout.embed, layout.ffw)
        sizes = {
            "T": num_tokens,
            "E": shape.d_model,
            "F": shape.d_ff,
            "H": shape.num_heads,
            "G": shape.num_kv_heads,
            "K": shape.head_dim,
            "V": shape.vocab_size,
            "N": shape.num_experts,
        }
        changes = [change for round_ in block_rounds(shape, attention, mesh) for change in round_]
        changes += ends_changes(shape, attention, mesh)
        changes.append(_asked_rows(layout))
        self._points = {change.point: _point(change, sizes, mesh) for change in changes}
        self._gathers: dict[tuple[str, str], tuple[Collective, ...]] = {}
        kept = attention.queries().dims[1].axes
        self._kv_heads = self._needed_kv_heads(kept[: len(kept) - len(homes)])

    def cut(self, layer: Cuttable) -> None:
        """See `Sharder`."""
        cut(layer, self)

    # -- what a model asks ---------------------------------------------------------------------

    def share(self, letter: str, size: int) -> int:
        """See `Sharder`."""
        return self._padded_size(letter, size) // self._mesh.size(self._used[letter])

    def weight(self, weight: Tensor, rows: Parts, columns: Parts) -> Tensor:
        """Return a weight with every part gathered as far as the layout in use is less cut."""
        if self._stored == self._used:
            return weight
        bands = torch.split(weight, [self._stored_size(*part) for part in rows], dim=-2)
        return torch.cat(
            [
                torch.cat(
                    [
                        self._gathered(tile, row, column)
                        for column, tile in zip(columns, self._tiles(band, columns), strict=True)
                    ],
                    dim=-1,
                )
                for row, band in zip(rows, bands, strict=True)
            ],
            dim=-2,
        )

    def constrain(self, x: Tensor, point: str) -> Tensor:
        """See `Sharder`."""
        homes = self._homes
        if homes is not None and point == "attended":
            x = homes.attended(x)
        if point in self._points:
            here = self._points[point]
            for collective in here.collectives:
                x = self.collectives.run(x, collective, here.dims)
        if homes is not None and point == "queries":
            x = homes.queries(x)
        if homes is not None and point == "keys and values":
            x = homes.keys_and_values(x)
        if point == "keys and values" and self._kv_heads is not None:
            first, num_heads = self._kv_heads
            x = x.narrow(-2, first, num_heads)
        if point == "logits":
            x = x.narrow(-1, 0, self._vocab_size)
        return x

    def tokens(self, tokens: Tensor) -> Tensor:
        """See `Sharder`."""
        return self._cut(tokens, 0, self._attention.layout.tokens, "tokens")

    def attended(self, tokens: Tensor) -> Tensor:
        """See `Sharder`."""
        if self._homes is not None:
            return self._homes.mine(tokens)
        return self._cut(tokens, 0, self._attention.sequence_axes, "sequences")

    def place(self, num_tokens: Sequence[int]) -> None:
        """See `Sharder`. Tokens lie in the order of their homes."""
        if self._homes is not None:
            self._homes.num_tokens = list(num_tokens)

    def embed(self, tokens: Tensor, weight_VE: Tensor) -> Tensor:
        """Look up those tokens whose rows are here; the others' summands are zero."""
        return self.constrain(self._picked(weight_VE, tokens, self._mesh.names), "embedding")

    def rows(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """See `Sharder`."""
        if places is None:
            return self.constrain(x, "rows")
        token_axes = self._attention.layout.tokens
        return self.constrain(self._picked(x, places, token_axes), "asked rows")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Sharder`. Squares are added in float32 at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = self.constrain(wide.square().sum(-1), "norm") / self._shape.d_model
        return (wide * (mean + eps).rsqrt()[..., None]).to(x.dtype) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """See `Sharder`. The deviation is from the mean, so its squares do not cancel."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - (self.constrain(wide.sum(-1), "norm") / self._shape.d_model)[..., None]
        variance = self.constrain(wide.square().sum(-1), "norm") / self._shape.d_model
        y = (wide * (variance + eps).rsqrt()[..., None]).to(x.dtype) * weight
        return y if bias is None else y + bias

    # -- what becomes of stored weights --------------------------------------------------------

    def stored_part(self, tile: Tensor, row: str, column: str) -> Tensor:
        """Return this rank's shard of one part of a weight, [rows, columns] at its end."""
        tile = self._cut(tile, -2, self._stored[row], row)
        return self._cut(tile, -1, self._stored[column], column)

    def vector_part(self, part: Tensor, letter: str) -> Tensor:
        """Return this rank's shard of a vector that is multiplied along a logical axis."""
        return self._cut(part, -1, self._used[letter], letter)

    def bias_part(self, part: Tensor, row: str, columns: Parts) -> Tensor:
        """Return this rank's shard of a bias: where products come as summands, one has it."""
        part = self.vector_part(part, row)
        summed = {axis for letter, _ in columns for axis in self._used[letter]}
        return part if all(self._at[axis] == 0 for axis in summed) else torch.zeros_like(part)

    # -- axes ----------------------------------------------------------------------------------

    def _axes(self, embed: tuple[str, ...], ffw: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        return {
            "E": embed,
            "F": ffw,
            "H": ffw,
            "G": dividing(ffw, self._shape.num_kv_heads, self._mesh),
            "V": self._mesh.names,
            "R": self._attention.layout.residual,
            "-": (),
        }

    def _number(self, axes: tuple[str, ...]) -> int:
        """Return which shard this rank has of a dim that is cut over axes."""
        return self.collectives.group(axes).index(self.collectives.rank)

    def _picked(self, x: Tensor, rows: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Return rows of a tensor that is cut over axes; zeros for those that are not here."""
        row = rows - self._number(axes) * len(x)
        is_here = (row >= 0) & (row < len(x))
        return F.embedding(row * is_here, x) * is_here[..., None]

    def _cut(self, x: Tensor, dim: int, axes: tuple[str, ...], name: str) -> Tensor:
        """Return this rank's shard of a dim; shards behind its end are filled up with zeros."""
        size, num_shards = self._padded_size(name, x.shape[dim]), self._mesh.size(axes)
        if size % num_shards:
            raise InvalidValue(
                field=name,
                value=size,
                limit=f"cannot be cut into {num_shards} equal parts",
                remedy="Choose another mesh or layout, or a batch that is a multiple",
            )
        length = size // num_shards
        start = min(self._number(axes) * length, x.shape[dim])
        part = x.narrow(dim, start, min(length, x.shape[dim] - start))
        if part.shape[dim] == length:
            return part
        sizes = list(part.shape)
        sizes[dim] = length - part.shape[dim]
        return torch.cat((part, part.new_zeros(sizes)), dim)

    def _padded_size(self, letter: str, size: int) -> int:
        if letter not in self._padded:
            return size
        return size // self._whole[letter] * self._padded[letter]

    def _stored_size(self, letter: str, size: int) -> int:
        return self._padded_size(letter, size) // self._mesh.size(self._stored[letter])

    def _tiles(self, band: Tensor, columns: Parts) -> tuple[Tensor, ...]:
        return torch.split(band, [self._stored_size(*part) for part in columns], dim=-1)

    def _gathered(self, tile: Tensor, row: tuple[str, int], column: tuple[str, int]) -> Tensor:
        key = row[0], column[0]
        if key not in self._gathers:
            self._gathers[key] = redistribute(
                _matrix(self._stored, *key),
                _matrix(self._used, *key),
                sizes={"H": self._padded_size(*row), "E": self._padded_size(*column)},
                mesh=self._mesh,
                element_bytes=1,
            )
        for collective in self._gathers[key]:
            tile = self.collectives.run(tile, collective, (-2, -1))
        return tile

    def _needed_kv_heads(self, query_axes: tuple[str, ...]) -> tuple[int, int] | None:
        """Return first and number of the key/value heads that this rank's query heads ask for.

        None where that is all that it has.
        """
        shape, mesh = self._shape, self._mesh
        kv_axes = dividing(query_axes, shape.num_kv_heads, mesh)
        num_queries = shape.num_heads // mesh.size(query_axes)
        num_here = shape.num_kv_heads // mesh.size(kv_axes)
        per_kv_head = shape.num_heads // shape.num_kv_heads
        num_needed = max(1, num_queries // per_kv_head)
        assert num_queries % per_kv_head == 0 or per_kv_head % num_queries == 0, "it is padded so"
        if num_needed == num_here:
            return None
        first = self._number(query_axes) * num_queries // per_kv_head
        return first - self._number(kv_axes) * num_here, num_needed


def _point(change: Change, sizes: dict[str, int], mesh: Mesh) -> _Point:
    letters = change.before.letters
    # Tokens come first; what a token has comes last, whatever lies between, as in [B, L, H, K].
    dims = tuple(0 if letter == "T" else i - len(letters) for i, letter in enumerate(letters))
    return _Point(change.collectives(sizes, mesh, 1), dims)


def _asked_rows(layout: Layout) -> Change:
    """Return how rows come together that only the rank of their token knows."""
    dims = (Dim(letter="T"), Dim(letter="E", axes=layout.residual))
    return Change(
        point="asked rows",
        before=Sharding(dims=dims, partial=layout.tokens),
        after=Sharding(dims=dims),
    )


def _matrix(axes: dict[str, tuple[str, ...]], row: str, column: str) -> Sharding:
    dims = (Dim(letter="H", axes=axes[row]), Dim(letter="E", axes=axes[column]))
    return Sharding(dims=dims)
