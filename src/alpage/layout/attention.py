"""Attention: which ranks attend for which heads of which sequences, and keep their keys and values.

Sharded over heads, every rank attends with its share of the query heads. Keys and values follow
as far as there are heads of them: a single one (multi-query) lies on every rank, and so does what
is read at every step. Sharded over batch, queries move from heads to sequences by an all-to-all
before attention and back behind it, so that a rank keeps and reads the keys and values of its own
sequences only (Pope et al. 2022, arXiv:2211.05102, section 3.3).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import final

from alpage.hardware import Mesh
from alpage.layout.named import Layout
from alpage.layout.sharding import Dim, Sharding


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """How queries, keys and values lie while a rank attends.

    Attributes:
        layout: of the block.
        batch: mesh axes that cut the sequences: none, or the last ones of `head_axes`, those that
            cut the layout's tokens among them. The other head axes cut the heads.

    >>> from alpage.layout.named import LAYOUTS
    >>> over_batch = Attention(layout=LAYOUTS["ws_2d"], batch=("y", "x"))
    >>> print(over_batch.projected(), over_batch.queries())
    TH_zyK partialsum-x T_yxH_zK
    >>> gathered = Attention(layout=LAYOUTS["wg_xy"])
    >>> print(gathered.projected(), gathered.queries())
    T_yxH_zK TH_zyxK
    """

    layout: Layout
    batch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        axes = head_axes(self.layout)
        assert self.batch == axes[len(axes) - len(self.batch) :], "batch takes the last axes"
        assert not self.batch or len(self.batch) >= len(self.layout.tokens), "tokens stay cut"

    @property
    def sequence_axes(self) -> tuple[str, ...]:
        """Mesh axes that cut the sequences while attending: those of tokens stay the major ones."""
        others = [axis for axis in self.batch if axis not in self.layout.tokens]
        return (*self.layout.tokens, *others) if self.batch else ()

    def projected(self) -> Sharding:
        """Return how queries leave their projection."""
        return _heads(self.layout.tokens, "H", self.layout.ffw, self.layout.embed)

    def queries(self) -> Sharding:
        """Return how queries lie while attending; so do the attended values."""
        return _heads(self.sequence_axes, "H", self._kept())

    def attended(self) -> Sharding:
        """Return how attended values lie when the output projection is multiplied with them."""
        return _heads(self.layout.tokens, "H", self.layout.ffw)

    def projected_kv(self, num_kv_heads: int, mesh: Mesh) -> Sharding:
        """Return how keys and values leave their projections."""
        axes = dividing(self.layout.ffw, num_kv_heads, mesh)
        return _heads(self.layout.tokens, "G", axes, self.layout.embed)

    def kv(self, num_kv_heads: int, mesh: Mesh) -> Sharding:
        """Return how keys and values lie while attending, and in memory."""
        return _heads(self.sequence_axes, "G", dividing(self._kept(), num_kv_heads, mesh))

    def _kept(self) -> tuple[str, ...]:
        axes = head_axes(self.layout)
        return axes[: len(axes) - len(self.batch)]


def head_axes(layout: Layout) -> tuple[str, ...]:
    """Return the mesh axes that the heads can be cut over, with summands added and tokens whole."""
    return layout.ffw + layout.embed + layout.tokens


def attentions(layout: Layout) -> tuple[Attention, ...]:
    """Return the ways to attend under a layout: over heads first, then over ever more sequences."""
    axes = head_axes(layout)
    counts = range(max(1, len(layout.tokens)), len(axes) + 1)
    over_batch = (Attention(layout=layout, batch=axes[len(axes) - num :]) for num in counts)
    return (Attention(layout=layout), *over_batch)


def dividing(axes: tuple[str, ...], num_heads: int, mesh: Mesh) -> tuple[str, ...]:
    """Return the first of the axes, as many as together cut the heads into equal shares."""
    num_axes = len(axes)
    while num_heads % mesh.size(axes[:num_axes]):
        num_axes -= 1
    return axes[:num_axes]


@lru_cache(maxsize=1 << 10)
def _heads(
    tokens: tuple[str, ...], letter: str, axes: tuple[str, ...], partial: tuple[str, ...] = ()
) -> Sharding:
    dims = (Dim(letter="T", axes=tokens), Dim(letter=letter, axes=axes), Dim(letter="K"))
    return Sharding(dims=dims, partial=partial)
