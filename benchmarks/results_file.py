"""Results file: what a benchmark found, with when and on what machine."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import alpage

Row: TypeAlias = Mapping[str, str | float]

_RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: Mapping[str, object], table: str) -> None:
    """Write `results/<name>.json` and, for people, `results/<name>.md`."""
    _RESULTS.mkdir(exist_ok=True)
    machine = fingerprint()
    record = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine, **figures}
    (_RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    on = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = f"{table}\n{record['date']}, {on}.\n"
    (_RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def to_markdown(rows: Sequence[Row]) -> str:
    """Return rows, which have the same columns, as a table; floats are shares."""
    cells = [
        [f"{cell:.1%}" if isinstance(cell, float) else cell for cell in row.values()]
        for row in rows
    ]
    head = list(rows[0])
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *cells))


def fingerprint(root: Path = Path("/")) -> dict[str, str]:
    """Return what names this machine and what ran on it."""
    return {
        "cpu": _cpu_model(root),
        "system": platform.system(),
        "python": platform.python_version(),
        "alpage": alpage.__version__,
    }


def _cpu_model(root: Path) -> str:
    """Return the processor's name, family and model, as Linux knows them."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    known = {name.strip(): value.strip() for name, _, value in lines}
    names = ("model name", "cpu family", "model")
    return " ".join(known[name] for name in names if name in known) or platform.machine()
