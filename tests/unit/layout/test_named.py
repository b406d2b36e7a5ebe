"""Named layouts: the table, what a layout refuses, and the paper's formulas to the byte."""

from dataclasses import replace

import pytest
from shards import mesh_of

from alpage.errors import InvalidValue
from alpage.layout import LAYOUTS, Layout, named_layout, redistribute

ELEMENT_BYTES = 2
MESHES = [
    {"x": 2, "y": 2, "z": 2},
    {"x": 4, "y": 4, "z": 4},
    {"x": 8, "y": 4, "z": 2},
    {"x": 2, "y": 8, "z": 4},
    {"x": 1, "y": 8, "z": 8},
    {"x": 16, "y": 1, "z": 1},
    {"x": 2, "y": 1, "z": 4},
]
MODELS = [
    {"T": 64, "E": 18_432, "F": 73_728},
    {"T": 512, "E": 4096, "F": 16_384},
]

# Elements that a chip moves for one feed-forward of two matrices (Pope et al. 2022,
# arXiv:2211.05102, appendix A), by T, E, F and the lengths of x, y and z.
FORMULAS = {
    "ws_1d": lambda t, e, f, x, y, z: 2 * t * e,
    "ws_2d": lambda t, e, f, x, y, z: 2 * (t * e // x + t * f // (y * z)),
    "wg_x": lambda t, e, f, x, y, z: 2 * e * f // (y * z) + 2 * t * e // x,
    "wg_xy": lambda t, e, f, x, y, z: 2 * e * f // z + 2 * t * e // (x * y),
    "wg_xyz": lambda t, e, f, x, y, z: 2 * e * f,
    "megatron": lambda t, e, f, x, y, z: 2 * t * e,
    "fsdp": lambda t, e, f, x, y, z: 2 * e * f,
    "replicated": lambda t, e, f, x, y, z: 0,
}


def feed_forward(layout):
    """What lies how, and then how: all changes of sharding in one feed-forward."""
    return [
        (layout.stored_weight("EF"), layout.used_weight("EF")),
        (layout.stored_weight("FE"), layout.used_weight("FE")),
        (layout.residual_sharding(), layout.block_input()),
        (layout.hidden_partial(), layout.hidden_scattered()),
        (layout.hidden_scattered(), layout.hidden()),
        (layout.output_partial(), layout.residual_sharding()),
    ]


def changes(layout, sizes, mesh):
    for a, b in feed_forward(layout):
        yield redistribute(a, b, sizes=sizes, mesh=mesh, element_bytes=ELEMENT_BYTES)


@pytest.mark.parametrize("lengths", MESHES, ids=str)
@pytest.mark.parametrize("sizes", MODELS, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_bytes_are_the_formula(name, sizes, lengths):
    steps = [
        step for change in changes(LAYOUTS[name], sizes, mesh_of(**lengths)) for step in change
    ]
    payload_bytes = sum(step.payload_bytes for step in steps)
    assert payload_bytes == ELEMENT_BYTES * expected_elements(name, sizes, lengths)


def expected_elements(name, sizes, lengths):
    """The formula, less what it charges for collectives of one rank."""
    t, e, f = sizes.values()
    x, y, z = lengths.values()
    elements = FORMULAS[name](t, e, f, x, y, z)
    if name == "ws_2d":
        elements -= 2 * t * f // (y * z) * (x == 1) + 2 * t * e // x * (y * z == 1)
    if name == "wg_x":
        elements -= 2 * e * f // (y * z) * (x == 1) + 2 * t * e // x * (y * z == 1)
    if name == "wg_xy":
        elements -= 2 * t * e // (x * y) * (z == 1)
    return elements


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_change_is_one_collective(name):
    """So the axes of the table are in an order that needs no detour."""
    for change in changes(LAYOUTS[name], MODELS[0], mesh_of(x=4, y=4, z=4)):
        assert len(change) <= 1


def test_table():
    assert list(LAYOUTS) == [layout.name for layout in LAYOUTS.values()]
    gathered = {
        name: "".join(layout.gathered_embed + layout.gathered_ffw)
        for name, layout in LAYOUTS.items()
    }
    assert gathered == {
        "ws_1d": "",
        "megatron": "",
        "ws_2d": "",
        "wg_x": "x",
        "wg_xy": "xy",
        "wg_xyz": "xzy",
        "fsdp": "xzy",
        "replicated": "",
    }


def test_phases_share_stored_weights():
    names = ["ws_2d", "wg_x", "wg_xy", "wg_xyz"]
    assert len({LAYOUTS[name].stored_weight("EF") for name in names}) == 1
    assert len({LAYOUTS[name].stored_weight("FE") for name in names}) == 1


def test_other_dims_of_a_weight_are_whole():
    assert str(LAYOUTS["ws_2d"].stored_weight("NEF")) == "NE_xF_zy"


def test_text_shows_every_point():
    assert str(LAYOUTS["wg_x"]).splitlines() == [
        "wg_x",
        "  stored weights    E_xF_zy",
        "  weights in use    EF_zy",
        "  residual          T_xE_zy",
        "  block input       T_xE",
        "  hidden, partial   T_xF_zy",
        "  hidden, scattered T_xF_zy",
        "  hidden            T_xF_zy",
        "  output, partial   T_xE partialsum-yz",
    ]


def test_names():
    assert named_layout("wg_x") is LAYOUTS["wg_x"]
    with pytest.raises(InvalidValue, match=r"layout='2d': .* The layouts are ws_1d, megatron"):
        named_layout("2d")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed": ("y",)}, "uses embed over y, and stores it over x"),
        ({"ffw": ("y",), "residual": ()}, "uses ffw over y, and stores it over zy"),
        ({"stored_embed": ("x", "z")}, "cuts the stored weights twice over the mesh axis z"),
        ({"tokens": ("x",)}, "cuts the hidden activations twice over the mesh axis x"),
        ({"residual": ("z", "z")}, "cuts the residual twice over the mesh axis z"),
    ],
)
def test_refused_layouts(fields, message):
    with pytest.raises(InvalidValue, match=message):
        replace(LAYOUTS["ws_2d"], name="mine", **fields)


def test_check_against_a_mesh():
    mesh = mesh_of(x=4, y=2)
    Layout(name="mine", stored_ffw=("x", "y"), ffw=("x",)).check(mesh)
    with pytest.raises(InvalidValue, match="uses the mesh axis z, and the mesh has x, y"):
        LAYOUTS["ws_2d"].check(mesh)
