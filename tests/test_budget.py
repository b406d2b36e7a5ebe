"""The house style that no linter checks: sizes, names, and constructs that are banned.

Each rule reads a file's syntax tree and yields its offences. `test_rules_bite` shows that it can.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "alpage"
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))
NATIVE_FILES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".cpp", ".h"})
FILES = [*PYTHON_FILES, *NATIVE_FILES]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PACKAGE_LINES = 20_000
BANNED_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
BANNED_CALLS = {"eval", "exec", "hasattr", "torch.load"}
BANNED_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MUTABLE_TYPES = {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict"}
MUTABLE_DISPLAYS = ast.Dict | ast.DictComp | ast.List | ast.ListComp | ast.Set | ast.SetComp
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def long_functions(tree: ast.Module) -> Iterator[str]:
    """Functions that do not fit on a screen. A docstring is free."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            first = node.body[0].end_lineno + 1 if ast.get_docstring(node) else node.lineno
            num_lines = node.end_lineno - first + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"{node.name} has {num_lines} lines"


def ambient_state(tree: ast.Module) -> Iterator[str]:
    """What a module holds for everybody to change (for classes: RUF012). Capitals are constants."""
    yield from (_shown(node) for node in ast.walk(tree) if isinstance(node, ast.Global))
    for node in _run_at_import(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [ast.unparse(target) for target in targets]
            is_final = isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation)
            if not is_final and not all(n.isupper() or n.startswith("__") for n in names):
                yield _shown(node)


def banned_constructs(tree: ast.Module) -> Iterator[str]:
    """Code or objects made from data, and objects asked what they have instead of being typed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            yield _shown(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            if any(module and module.partition(".")[0] in BANNED_IMPORTS for module in modules):
                yield _shown(node)


RULES = (long_functions, ambient_state, banned_constructs)

OFFENCES = {
    "long function": "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES,
    "long method": "class A:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES,
    "global": "def f():\n    global x\n    x = 1",
    "module dict": "registry = {}",
    "module dict behind an if": "if True:\n    registry: dict[str, int] = dict()",
    "hasattr": "if hasattr(x, 'y'): pass",
    "eval": "eval('1')",
    "torch.load": "import torch\nx = torch.load('f')",
    "pickle": "import pickle",
    "pickle by from": "from pickle import loads",
}
INNOCENT = '''
__all__ = ["A"]
_TABLE = {1: 2}
names: Final = [1]
def f():
    """Say it."""
    local = {}
    model.eval()
'''


@pytest.mark.parametrize("source", OFFENCES.values(), ids=OFFENCES)
def test_rules_bite(source):
    assert any(list(rule(ast.parse(source))) for rule in RULES)


def test_rules_spare_the_innocent():
    assert [list(rule(ast.parse(INNOCENT))) for rule in RULES] == [[], [], []]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_keeps_the_rules(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(chain.from_iterable(rule(tree) for rule in RULES)) == []


def test_sizes_and_names():
    num_lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert [path for path in FILES if num_lines[path] > MAX_FILE_LINES] == []
    assert sum(num_lines.values()) <= MAX_PACKAGE_LINES
    assert [path for path in FILES if path.stem in BANNED_NAMES] == []


def test_classes_are_abstract_or_final():
    """A class is a protocol, the base of others, or final; and no base has a base of ours."""
    classes = [
        node
        for path in PYTHON_FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    ours = {node.name for node in classes}
    bases = {node.name: {ast.unparse(base) for base in node.bases} & ours for node in classes}
    is_base = Counter(chain.from_iterable(bases.values()))
    assert [name for name in is_base if bases[name]] == [], "more than one level of inheritance"
    assert [
        node.name
        for node in classes
        if not is_base[node.name]
        and not {ast.unparse(base) for base in node.bases} & {"Protocol", "ABC"}
        and "final" not in {ast.unparse(decorator) for decorator in node.decorator_list}
    ] == [], "neither abstract nor final"


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FUNCTIONS | ast.Lambda | ast.ClassDef):
            yield child
            yield from _run_at_import(child)


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in MUTABLE_TYPES
    return isinstance(value, MUTABLE_DISPLAYS)


def _shown(node: ast.AST) -> str:
    return f"line {node.lineno}: {ast.unparse(node)[:60]}"
