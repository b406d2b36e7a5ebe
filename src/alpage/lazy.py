"""Lazy: doors that import what they export only when it is asked for (PEP 562).

So `import alpage` costs nothing, and the torch-free half of a room can be used without torch.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(room: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` for names that live in modules of a room.

    Args:
        room: the package's name, its `__name__`.
        homes: exported name -> module of the room that has it; a name that is the module's own
            is the module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        module = importlib.import_module(f"{room}.{homes[name]}")
        return module if homes[name] == name else getattr(module, name)

    return get
