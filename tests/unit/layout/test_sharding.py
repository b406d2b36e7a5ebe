"""Sharding: the notation, what it refuses, and shapes of shards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import mesh_of, scattered

from alpage.errors import InvalidValue
from alpage.layout import Dim, Sharding

CUBE = mesh_of(x=2, y=2, z=2)
SIZES = {"B": 8, "L": 16, "E": 24}


@st.composite
def shardings(draw):
    """Any sharding of B, L and E over at most x, y and z."""
    cuts = {"B": (), "L": (), "E": (), "partial": ()}
    for axis in draw(st.permutations("xyz")):
        place = draw(st.sampled_from([*cuts, None]))
        if place is not None:
            cuts[place] += (axis,)
    partial = cuts.pop("partial")
    dims = (Dim(letter=letter, axes=axes) for letter, axes in cuts.items())
    return Sharding(dims=tuple(dims), partial=partial)


@pytest.mark.parametrize("text", ["BLE_xyz", "B_xLE_zy", "BLF_zy partialsum-x", "TE partialsum-xy"])
def test_notation_of_the_paper(text):
    assert str(Sharding.parse(text)) == text


def test_axes_keep_their_order_and_partial_sums_are_a_set():
    assert Sharding.parse("E_zx") != Sharding.parse("E_xz")
    assert Sharding.parse("E partialsum-zx") == Sharding.parse("E partialsum-xz")
    assert str(Sharding.parse("E partialsum-zx")) == "E partialsum-xz"


@given(shardings())
def test_text_round_trip(sharding):
    again = Sharding.parse(str(sharding))
    assert again == sharding
    assert hash(again) == hash(sharding)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no dim"),
        ("BLE_", "cannot be read from '_' on"),
        ("BLE_x y", "cannot be read from ' y' on"),
        ("BLE_xY", "has the unknown dim 'Y'"),
        ("BLE_x1", "cannot be read from '1' on"),
        ("ble", "cannot be read from 'ble' on"),
        ("E partialsum-", "cannot be read from ' partialsum-' on"),
        ("E partialsum-x\n", r"cannot be read from ' partialsum-x\n' on"),
        (" partialsum-x", "names no dim"),
        ("BXE", "has the unknown dim 'X'"),
        ("EE_x", "has the dim E twice"),
        ("B_xE_x", "uses the mesh axis x twice"),
        ("B_xx", "uses the mesh axis x twice"),
        ("B_x partialsum-yx", "uses the mesh axis x twice"),
    ],
)
def test_refused_texts(text, reason):
    with pytest.raises(InvalidValue) as refused:
        Sharding.parse(text)
    assert refused.value.field == "sharding"
    assert refused.value.limit == reason


def test_axes_are_single_letters():
    with pytest.raises(InvalidValue, match="has 'data' for a mesh axis"):
        Sharding(dims=(Dim(letter="B", axes=("data",)),))


@given(shardings())
def test_local_shape_is_that_of_a_shard(sharding):
    array = np.arange(8 * 16 * 24).reshape(8, 16, 24)
    shards = scattered(array, sharding, CUBE, np.random.default_rng(0))
    shape = sharding.local_shape(SIZES, CUBE)
    assert {shard.shape for shard in shards.values()} == {shape}
    assert sharding.local_bytes(SIZES, CUBE, 2) == 2 * shards[0, 0, 0].size


@pytest.mark.parametrize(
    ("text", "sizes", "message"),
    [
        ("TE_w", {"T": 1, "E": 8}, "uses the mesh axis w, and the mesh has x, y, z"),
        ("TE partialsum-w", {"T": 1, "E": 8}, "uses the mesh axis w"),
        ("TE_xy", {"T": 1, "E": 6}, "embed=6: cannot be cut into 4 equal shards, as TE_xy asks"),
        ("TE_xy", {"E": 8}, "tokens=None: is no size for the dim T"),
        ("TE_xy", {"T": 1, "E": 0}, "embed=0: is no size for the dim E"),
    ],
)
def test_what_does_not_fit(text, sizes, message):
    with pytest.raises(InvalidValue) as refused:
        Sharding.parse(text).local_shape(sizes, CUBE)
    assert message in str(refused.value)
