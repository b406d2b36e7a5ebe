"""Doors: what a room shows, and what comes in with it.

That nobody goes past a door is import-linter's business; here it is what doors are.
"""

import ast
import dataclasses
import importlib
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "alpage"
DOORS = [
    "alpage",
    *(f"alpage.{path.parent.name}" for path in sorted(PACKAGE.glob("*/__init__.py"))),
]

MAX_PUBLIC_NAMES = 15
MAX_DOOR_NAMES = 8
# Two things behind one door: what machine this is and what clusters are; how a tensor lies and
# where in a model it changes that.
WIDE_DOORS = {
    "alpage": MAX_PUBLIC_NAMES,
    "alpage.hardware": 13,
    "alpage.layout": 15,
    "alpage.cost": 16,
    "alpage.native": 18,
    "alpage.partition": 11,
    "alpage.planners": 19,
    "alpage.serve": 9,
}
MAX_FIELDS = 12
# A request's knobs, and an engine's, carry the names that vLLM and OpenAI gave them: all of them,
# side by side.
WIDE_BY_CONVENTION = {"SamplingParams", "EngineConfig"}
# The project's own limit, not a measurement: the import takes about a tenth of it.
MAX_IMPORT_S = 0.2
NUM_TRIES = 5


def tree_of(door):
    path = PACKAGE.joinpath(*door.split(".")[1:], "__init__.py")
    return ast.parse(path.read_text(encoding="utf-8"))


def exports_of(door):
    """Name -> module, for all that the door imports from the package to pass it on."""
    return {
        alias.name: node.module
        for node in ast.walk(tree_of(door))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("alpage")
        for alias in node.names
        if node.module != "alpage.lazy"
    }


def exported(door):
    room = importlib.import_module(door)
    return [getattr(room, name) for name in room.__all__]


def contract(name):
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    return contracts[f"importlinter:contract:{name}"]


def run_python(*lines):
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("door", DOORS)
def test_door_is_a_docstring_and_a_short_list(door):
    tree = tree_of(door)
    names = importlib.import_module(door).__all__
    assert ast.get_docstring(tree)
    assert len(names) <= WIDE_DOORS.get(door, MAX_DOOR_NAMES)
    assert set(names) == set(exports_of(door)) - {"__version__"}
    for node in tree.body[1:]:
        is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("__")
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        assert isinstance(node, ast.ImportFrom) or is_list or is_typing, ast.unparse(node)


@pytest.mark.parametrize("door", DOORS)
def test_names_are_what_the_type_checker_takes_them_for(door):
    """A lazy name has two homes in the source: one for mypy and one for the interpreter."""
    for name, module in exports_of(door).items():
        home = importlib.import_module(module)
        expected = getattr(home, name, None) or importlib.import_module(f"{module}.{name}")
        assert getattr(importlib.import_module(door), name) is expected


@pytest.mark.parametrize("door", DOORS)
def test_lazy_table_has_what_the_type_checker_sees(door):
    calls = [node for node in ast.walk(tree_of(door)) if isinstance(node, ast.Call)]
    for table in (call.args[1] for call in calls if ast.unparse(call.func) == "lazy_names"):
        assert {key.value for key in table.keys} == set(exports_of(door))


@pytest.mark.parametrize("door", DOORS)
def test_unknown_names_are_refused(door):
    with pytest.raises(AttributeError, match="no_such_name"):
        importlib.import_module(door).no_such_name  # noqa: B018


@pytest.mark.parametrize("door", DOORS)
def test_values_are_frozen_and_narrow(door):
    for value in filter(dataclasses.is_dataclass, exported(door)):
        assert value.__dataclass_params__.frozen, value
        assert value.__name__ in WIDE_BY_CONVENTION or len(dataclasses.fields(value)) <= MAX_FIELDS


def test_import_is_quick_and_brings_no_torch():
    times_s = []
    for _ in range(NUM_TRIES):
        time_s, has_torch = run_python(
            "import sys, time",
            "start_s = time.perf_counter()",
            "import alpage",
            "print(time.perf_counter() - start_s, 'torch' in sys.modules)",
        )
        assert has_torch == "False"
        times_s.append(float(time_s))
    assert min(times_s) < MAX_IMPORT_S


def test_torch_free_modules_run_without_torch():
    """The contract follows import statements; a module also brings the doors above it."""
    modules = contract("torchfree")["source_modules"].split()
    assert len(modules) > len(DOORS)
    assert run_python(
        "import sys",
        "sys.modules['torch'] = None  # an import of it fails",
        f"import {', '.join(modules)}",
        "print('done')",
    ) == ["done"]


def test_documentation_shows_the_map_that_is_enforced():
    page = (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8")
    assert f"```text\n{contract('layers')['layers'].strip()}\n```" in page
