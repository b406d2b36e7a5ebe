"""Sharding: how one tensor lies on a mesh, in the paper's notation.

In "BLE_xyz" the last dim is cut over the mesh axes x, y and z, and the tensor is the same along
every axis that is not named. "TE partialsum-x" is a tensor of which every rank along x holds a
summand (Pope et al. 2022, arXiv:2211.05102, section 3.1).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self, final

from alpage.errors import InvalidValue
from alpage.hardware import Mesh
from alpage.layout.axes import LOGICAL_AXES

_DIM = re.compile(r"([A-Z])(?:_([a-z]+))?")
_PARTIAL = re.compile(r"(?: partialsum-([a-z]+))?")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dim:
    """One dim of a tensor.

    Attributes:
        letter: its logical axis.
        axes: mesh axes that it is cut over, the major one first: E_xz is cut in X * Z shards, and
            the rank at (x, z) holds number x * Z + z.
    """

    letter: str
    axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.letter}_{''.join(self.axes)}" if self.axes else self.letter


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How one tensor lies on a mesh.

    Attributes:
        dims: the tensor's dims, in order.
        partial: mesh axes along which every rank holds a summand, sorted.

    Raises:
        InvalidValue: no dims, an unknown letter, a letter or an axis twice, or an axis that is not
            one lower-case letter.

    >>> weight = Sharding.parse("E_xF_zy")
    >>> weight.dims[1]
    Dim(letter='F', axes=('z', 'y'))
    >>> print(Sharding(dims=weight.dims[:1], partial=("z", "y")))
    E_x partialsum-yz
    """

    dims: tuple[Dim, ...]
    partial: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "partial", tuple(sorted(self.partial)))
        if not self.dims:
            raise self._refused("names no dim", "Give at least one, such as T or E_x")
        for letter in self.letters:
            if letter not in LOGICAL_AXES:
                known = ", ".join(f"{key} {name}" for key, name in LOGICAL_AXES.items())
                raise self._refused(f"has the unknown dim {letter!r}", f"The dims are {known}")
        for axis in self._axes():
            if not (len(axis) == 1 and "a" <= axis <= "z"):
                limit = f"has {axis!r} for a mesh axis, which is not one lower-case letter"
                raise self._refused(limit, "Name mesh axes a to z")
        if twice := _twice(self.letters):
            raise self._refused(f"has the dim {twice} twice", "Name every dim once")
        if twice := _twice(self._axes()):
            limit = f"uses the mesh axis {twice} twice"
            raise self._refused(limit, "Let an axis cut one dim, or hold partial sums")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the sharding that a text such as "B_xLE_zy partialsum-x" describes.

        Raises:
            InvalidValue: the text is malformed, or what it describes is refused by the class.

        >>> Sharding.parse("BLF_zy partialsum-x").partial
        ('x',)
        """
        dims = []
        end = 0
        while match := _DIM.match(text, end):
            dims.append(Dim(letter=match[1], axes=tuple(match[2] or "")))
            end = match.end()
        partial = _PARTIAL.fullmatch(text, end)
        if partial is None:
            raise InvalidValue(
                field="sharding",
                value=text,
                limit=f"cannot be read from {text[end:]!r} on",
                remedy="Write capital letters for dims, each followed by _ and its mesh axes, and "
                'partial sums behind: "BLE_xyz", "TF_zy partialsum-x"',
            )
        return cls(dims=tuple(dims), partial=tuple(partial[1] or ""))

    def __str__(self) -> str:
        partial = f" partialsum-{''.join(self.partial)}" if self.partial else ""
        return "".join(map(str, self.dims)) + partial

    @property
    def letters(self) -> str:
        """The dims' logical axes, such as "BLE"."""
        return "".join(dim.letter for dim in self.dims)

    def check(self, mesh: Mesh) -> None:
        """Raise InvalidValue where the sharding uses an axis that the mesh does not have."""
        for axis in self._axes():
            if axis not in mesh.names:
                limit = f"uses the mesh axis {axis}, and the mesh has {', '.join(mesh.names)}"
                raise self._refused(limit, "Use the axes of the mesh")

    def local_shape(self, sizes: Mapping[str, int], mesh: Mesh) -> tuple[int, ...]:
        """Return the shape of one rank's shard.

        Args:
            sizes: the whole tensor's size for each letter; others are ignored.
            mesh: where it lies.

        Raises:
            InvalidValue: the mesh lacks an axis, a size is missing or below one, or a dim cannot be
                cut into equal shards.

        >>> from alpage.hardware import resolve_cluster
        >>> mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
        >>> Sharding.parse("TE_xyz").local_shape({"T": 512, "E": 18_432}, mesh)
        (512, 288)
        """
        self.check(mesh)
        return tuple(
            _size_of(dim.letter, sizes) // self._num_shards(dim, sizes, mesh) for dim in self.dims
        )

    def local_bytes(self, sizes: Mapping[str, int], mesh: Mesh, element_bytes: int) -> int:
        """Return the bytes of one rank's shard; for arguments and errors see `local_shape`."""
        return prod(self.local_shape(sizes, mesh)) * element_bytes

    def _num_shards(self, dim: Dim, sizes: Mapping[str, int], mesh: Mesh) -> int:
        num_shards = mesh.size(dim.axes)
        if sizes[dim.letter] % num_shards:
            raise InvalidValue(
                field=LOGICAL_AXES[dim.letter],
                value=sizes[dim.letter],
                limit=f"cannot be cut into {num_shards} equal shards, as {self} asks for",
                remedy="Choose a mesh or a layout that cuts it evenly, or pad it",
            )
        return num_shards

    def _axes(self) -> tuple[str, ...]:
        return (*(axis for dim in self.dims for axis in dim.axes), *self.partial)

    def _refused(self, limit: str, remedy: str) -> InvalidValue:
        return InvalidValue(field="sharding", value=str(self), limit=limit, remedy=remedy)


def _size_of(letter: str, sizes: Mapping[str, int]) -> int:
    size = sizes.get(letter, 0)
    if size < 1:
        raise InvalidValue(
            field=LOGICAL_AXES[letter],
            value=sizes.get(letter),
            limit=f"is no size for the dim {letter}",
            remedy="Give every dim a size of at least 1",
        )
    return size


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
