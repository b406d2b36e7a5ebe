"""Named layouts: Megatron, weight-stationary, weight-gathered and FSDP as rows of one table."""

from collections import Counter
from dataclasses import dataclass
from typing import Final, final

from alpage.errors import InvalidValue
from alpage.hardware import Mesh
from alpage.layout.sharding import Dim, Sharding
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which logical axes of a block lie on which mesh axes, stored and in use.

    Weights are stored in one sharding and used in another that cuts them less: what lies between
    is gathered for every block. Activations take what the weights leave (Pope et al. 2022,
    arXiv:2211.05102, section 3.2).

    Attributes:
        name: what the layout is called.
        stored_embed: mesh axes that cut the embed dim of stored weights.
        stored_ffw: mesh axes that cut the ffw dim of stored weights.
        tokens: mesh axes that cut the tokens.
        embed: mesh axes that cut embed while a block computes; `stored_embed` begins with them.
        ffw: mesh axes that cut ffw while a block computes; `stored_ffw` begins with them.
        residual: mesh axes that cut the embed dim of activations between blocks.

    Raises:
        InvalidValue: weights in use are cut by axes that do not begin the stored ones, or an axis
            would cut one tensor twice.

    >>> print(LAYOUTS["ws_2d"])
    ws_2d
      stored weights    E_xF_zy
      weights in use    E_xF_zy
      residual          TE_xzy
      block input       TE_x
      hidden, partial   TF_zy partialsum-x
      hidden, scattered TF_zyx
      hidden            TF_zy
      output, partial   TE_x partialsum-yz
    >>> LAYOUTS["wg_xy"].gathered_embed, LAYOUTS["wg_xy"].gathered_ffw
    (('x',), ('y',))
    """

    name: str
    stored_embed: tuple[str, ...] = ()
    stored_ffw: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    ffw: tuple[str, ...] = ()
    residual: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for dim, stored, used in (
            ("embed", self.stored_embed, self.embed),
            ("ffw", self.stored_ffw, self.ffw),
        ):
            if stored[: len(used)] != used:
                limit = f"uses {dim} over {''.join(used)}, and stores it over {''.join(stored)}"
                raise self._refused(limit, "Let the stored axes begin with those in use")
        for tensor, axes in (
            ("the stored weights", self.stored_embed + self.stored_ffw),
            ("the hidden activations", self.tokens + self.ffw + self.embed),
            ("the residual", self.tokens + self.residual),
        ):
            for axis, count in Counter(axes).items():
                if count > 1:
                    limit = f"cuts {tensor} twice over the mesh axis {axis}"
                    raise self._refused(limit, "Use every mesh axis once for a tensor")

    def __str__(self) -> str:
        points = {
            "stored weights": self.stored_weight(),
            "weights in use": self.used_weight(),
            "residual": self.residual_sharding(),
            "block input": self.block_input(),
            "hidden, partial": self.hidden_partial(),
            "hidden, scattered": self.hidden_scattered(),
            "hidden": self.hidden(),
            "output, partial": self.output_partial(),
        }
        return "\n".join([self.name, *(f"  {point:17} {at}" for point, at in points.items())])

    @property
    def gathered_embed(self) -> tuple[str, ...]:
        """Mesh axes over which the embed dim of weights is gathered before use."""
        return self.stored_embed[len(self.embed) :]

    @property
    def gathered_ffw(self) -> tuple[str, ...]:
        """Mesh axes over which the ffw dim of weights is gathered before use."""
        return self.stored_ffw[len(self.ffw) :]

    def check(self, mesh: Mesh) -> None:
        """Raise InvalidValue where the layout uses an axis that the mesh does not have."""
        for axis in (*self.stored_embed, *self.stored_ffw, *self.tokens, *self.residual):
            if axis not in mesh.names:
                limit = f"uses the mesh axis {axis}, and the mesh has {', '.join(mesh.names)}"
                raise self._refused(limit, "Add the axis to the mesh, of size 1 if need be")

    def check_shape(self, shape: ModelShape, mesh: Mesh) -> None:
        """Raise InvalidValue where the model's widths cannot be cut into equal parts."""
        for name, size, axes in (
            ("d_model", shape.d_model, max(self.stored_embed, self.residual, key=mesh.size)),
            ("d_ff", shape.d_ff, max(self.stored_ffw, self.ffw + self.embed, key=mesh.size)),
        ):
            if size % mesh.size(axes):
                raise InvalidValue(
                    field=name,
                    value=size,
                    limit=f"cannot be cut into {mesh.size(axes)} equal parts, as {self.name} asks",
                    remedy="Choose another mesh or layout",
                )

    def stored_weight(self, letters: str = "EF") -> Sharding:
        """Return how a weight is stored: "EF", "FE", or with dims that are not cut, as "NEF"."""
        return _sharding(letters, {"E": self.stored_embed, "F": self.stored_ffw})

    def used_weight(self, letters: str = "EF") -> Sharding:
        """Return how a weight lies when it is multiplied with."""
        return _sharding(letters, {"E": self.embed, "F": self.ffw})

    def residual_sharding(self) -> Sharding:
        """Return how activations lie between blocks."""
        return _sharding("TE", {"T": self.tokens, "E": self.residual})

    def block_input(self) -> Sharding:
        """Return how activations lie when the first weight is multiplied with them."""
        return _sharding("TE", {"T": self.tokens, "E": self.embed})

    def hidden_partial(self) -> Sharding:
        """Return what the first matrix product leaves: summands along the axes of embed."""
        return _sharding("TF", {"T": self.tokens, "F": self.ffw}, self.embed)

    def hidden_scattered(self) -> Sharding:
        """Return how hidden activations lie while the activation function is applied."""
        return _sharding("TF", {"T": self.tokens, "F": self.ffw + self.embed})

    def hidden(self) -> Sharding:
        """Return how hidden activations lie when the second weight is multiplied with them."""
        return _sharding("TF", {"T": self.tokens, "F": self.ffw})

    def output_partial(self) -> Sharding:
        """Return what the second matrix product leaves: summands along the axes of ffw."""
        return _sharding("TE", {"T": self.tokens, "E": self.embed}, self.ffw)

    def _refused(self, limit: str, remedy: str) -> InvalidValue:
        return InvalidValue(field="layout", value=self.name, limit=limit, remedy=remedy)


def named_layout(name: str) -> Layout:
    """Return the layout of that name.

    Raises:
        InvalidValue: there is none.
    """
    if name not in LAYOUTS:
        raise InvalidValue(
            field="layout",
            value=name,
            limit="is not the name of a layout",
            remedy=f"The layouts are {', '.join(LAYOUTS)}",
        )
    return LAYOUTS[name]


def _sharding(
    letters: str, axes_of: dict[str, tuple[str, ...]], partial: tuple[str, ...] = ()
) -> Sharding:
    dims = tuple(Dim(letter=letter, axes=axes_of.get(letter, ())) for letter in letters)
    return Sharding(dims=dims, partial=partial)


def _row(name: str, *columns: str) -> Layout:
    stored_embed, stored_ffw, tokens, embed, ffw, residual = (
        tuple(column.strip("-")) for column in columns
    )
    return Layout(
        name=name,
        stored_embed=stored_embed,
        stored_ffw=stored_ffw,
        tokens=tokens,
        embed=embed,
        ffw=ffw,
        residual=residual,
    )


# Axes are in an order that lets every gather take the last ones. The two-dimensional
# weight-stationary and the three weight-gathered layouts store weights alike, so prefill may use
# one and decode another.
_ROWS = (
    #    name          stored E, F    tokens  in use E, F   residual
    _row("ws_1d", "-", "xzy", "-", "-", "xzy", "xzy"),
    _row("megatron", "-", "xzy", "-", "-", "xzy", "-"),
    _row("ws_2d", "x", "zy", "-", "x", "zy", "xzy"),
    _row("wg_x", "x", "zy", "x", "-", "zy", "zy"),
    _row("wg_xy", "x", "zy", "yx", "-", "z", "z"),
    _row("wg_xyz", "x", "zy", "zyx", "-", "-", "-"),
    _row("fsdp", "xzy", "-", "zyx", "-", "-", "-"),
    _row("replicated", "-", "-", "-", "-", "-", "-"),
)

LAYOUTS: Final = {layout.name: layout for layout in _ROWS}
