"""The house style that no linter checks: sizes, names, and constructs that are banned.

Each rule yields offences; beside each stands a test which shows that it can.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "alpage"
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))
NATIVE_FILES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".cpp", ".h"})
FILES = [*PYTHON_FILES, *NATIVE_FILES]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
# A third of them are docstrings, comments and blank.
MAX_PACKAGE_LINES = 36_000
BANNED_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
BANNED_CALLS = {"eval", "exec", "hasattr", "torch.load"}
BANNED_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MUTABLE_TYPES = {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict"}
MUTABLE_DISPLAYS = ast.Dict | ast.DictComp | ast.List | ast.ListComp | ast.Set | ast.SetComp
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def long_functions(tree: ast.Module) -> Iterator[str]:
    """Functions that do not fit on a screen. Signature and docstring are free."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            num_lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
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


def sizes_and_names(num_lines: Mapping[Path, int]) -> Iterator[str]:
    """Files that hold more than one charter, or that have none; and a package that is too large."""
    for path, count in num_lines.items():
        if count > MAX_FILE_LINES:
            yield f"{path} has {count} lines"
        if path.stem in BANNED_NAMES:
            yield f"{path} is named for no charter"
    if sum(num_lines.values()) > MAX_PACKAGE_LINES:
        yield f"the package has {sum(num_lines.values())} lines"


def open_classes(trees: Iterable[ast.Module]) -> Iterator[str]:
    """Classes that are not a protocol, the base of others, or final; bases with a base of ours."""
    nodes = chain.from_iterable(map(ast.walk, trees))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    ours = {node.name for node in classes}
    ours_of = {node.name: {_name(base) for base in node.bases} & ours for node in classes}
    extended = set(chain.from_iterable(ours_of.values()))
    for node in classes:
        if node.name in extended and ours_of[node.name]:
            yield f"{node.name} is between its base and another class"
        is_abstract = not {_name(base) for base in node.bases}.isdisjoint({"Protocol", "ABC"})
        is_final = "final" in map(_name, node.decorator_list)
        if not (node.name in extended or is_abstract or is_final):
            yield f"{node.name} is neither abstract nor final"


RULES = (long_functions, ambient_state, banned_constructs)

OFFENCES = {
    "long function": "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES + 1),
    "long method": "class A:\n    def f(self):\n" + "        x = 1\n" * (MAX_FUNCTION_LINES + 1),
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


def test_size_and_name_rules_bite():
    full = {Path(f"file{i}.py"): MAX_FILE_LINES for i in range(MAX_PACKAGE_LINES // MAX_FILE_LINES)}
    assert list(sizes_and_names(full)) == []
    assert len(list(sizes_and_names({Path("long.py"): MAX_FILE_LINES + 1}))) == 1
    assert len(list(sizes_and_names({Path("serve/utils.py"): 1}))) == 1
    assert len(list(sizes_and_names(full | {Path("straw.py"): 1}))) == 1


def test_sizes_and_names():
    num_lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert list(sizes_and_names(num_lines)) == []


CLASSES = {
    "open": ("class A: pass", 1),
    "final": ("@final\nclass A: pass", 0),
    "protocol": ("class A(Protocol[T]): pass", 0),
    "one level": ("class A: pass\n@typing.final\nclass B(A): pass", 0),
    "two levels": ("class A: pass\nclass B(A): pass\n@final\nclass C(B): pass", 1),
    "base of another library": ("@final\nclass A(nn.Module): pass", 0),
}


@pytest.mark.parametrize(("source", "num_offences"), CLASSES.values(), ids=CLASSES)
def test_class_rule_bites(source, num_offences):
    assert len(list(open_classes([ast.parse(source)]))) == num_offences


def test_classes_are_abstract_or_final():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON_FILES]
    assert list(open_classes(trees)) == []


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FUNCTIONS | ast.Lambda | ast.ClassDef):
            yield child
            yield from _run_at_import(child)


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in MUTABLE_TYPES
    return isinstance(value, MUTABLE_DISPLAYS)


def _name(node: ast.expr) -> str:
    """The last word of a dotted name, without what it is subscripted or called with."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return ast.unparse(node).rpartition(".")[2]


def _shown(node: ast.AST) -> str:
    return f"line {node.lineno}: {ast.unparse(node)[:60]}"
