"""Lazy doors, on a room made for the purpose."""

import importlib
import sys

import pytest

DOOR = """
from alpage.lazy import lazy_names
__getattr__ = lazy_names(__name__, {"Chair": "furniture", "furniture": "furniture"})
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    (tmp_path / "parlour").mkdir()
    (tmp_path / "parlour" / "__init__.py").write_text(DOOR)
    (tmp_path / "parlour" / "furniture.py").write_text("class Chair: pass\nclass Table: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("parlour")
    for name in [name for name in sys.modules if name.partition(".")[0] == "parlour"]:
        del sys.modules[name]


def test_home_is_imported_when_a_name_is_asked_for(room):
    assert "parlour.furniture" not in sys.modules
    chair = room.Chair
    assert chair is sys.modules["parlour.furniture"].Chair


def test_module_can_be_exported(room):
    assert room.furniture is sys.modules["parlour.furniture"]


def test_other_names_of_the_home_stay_inside(room):
    with pytest.raises(AttributeError, match="module 'parlour' has no attribute 'Table'"):
        room.Table  # noqa: B018


def test_names_can_be_imported(room):
    from parlour import Chair

    assert Chair is room.Chair
