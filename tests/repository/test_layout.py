"""The rules of the source tree: imports point down, private names stay at home, tests stand by what they test.

Files and functions are short.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_torch

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fusedopt"

# From the bottom to the top: a package imports what stands before it. The package itself is what users import: the
# optimizers and what belongs to them; whoever stands after it may import it as they do.
ORDER = (
    *("_C", "_extension", "installation", "extras", "sharding", "plain", "files"),
    *("optim", "replacement", "benchmark", "schedulers", "averages", "gradients", "data", "models", "tasks", "runs"),
    *("lr_finder", "training"),
    "fusedopt",
    *("watching", "running"),
    *("reports", "inference", "tuning", "examples", "cli", "__main__"),
)
LONG_LINES, LONG_FUNCTION = 300, 60

# What is longer still, and may not grow.
LONGER = {
    "_advance": 66,
    "tests/benchmark/test_benchmarks.py": 309,
    "tests/benchmark/test_compare.py": 391,
    "tests/optim/test_sharded_edges.py": 384,
    "tests/optim/test_step_in_backward.py": 695,
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in FILES.items()}


def package_of(module: str) -> str:
    """Returns the part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (module, name) for all that is imported from fusedopt, inside functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "fusedopt")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            module = node.module or ""
            for alias in node.names if module.partition(".")[0] == "fusedopt" else ():
                inner = f"{module}.{alias.name}"
                yield (inner, "") if inner in FILES or inner == "fusedopt._C" else (module, alias.name)


def parents(module: str) -> set[str]:
    names = module.split(".")
    return {".".join(names[:end]) for end in range(1, len(names))}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_every_part_has_its_place_in_the_order() -> None:
    assert {package_of(module) for module in FILES} | {"_C"} == set(ORDER)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    here = package_of(module)
    upward = {
        other
        for other, _ in imported(TREES[module])
        if package_of(other) != here and ORDER.index(package_of(other)) > ORDER.index(here)
    }
    assert not upward


def test_no_circle_between_modules() -> None:
    """A circle raises CycleError, which names it; what is for type checkers only counts, too."""
    arrows = {module: {other for other, _ in imported(tree)} - parents(module) for module, tree in TREES.items()}
    assert len(tuple(TopologicalSorter(arrows).static_order())) >= len(FILES)


@pytest.mark.parametrize("module", FILES)
def test_private_names_stay_at_home(module: str) -> None:
    """What begins with an underscore is used in its own package only, but for the extension and what is known of it."""
    here = package_of(module)
    taken = {
        f"{other}: {name}"
        for other, name in imported(TREES[module])
        if package_of(other) not in (here, "_C", "_extension")
        and here != "fusedopt"
        and any(map(is_private, [*other.split("."), name]))
    }
    assert not taken


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields the name and the number of lines of each function, without its docstring and the arguments' lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


SOURCES = {str(path.relative_to(ROOT)): path for path in [*FILES.values(), *sorted(ROOT.glob("tests/**/*.py"))]}


@pytest.mark.parametrize("path", SOURCES)
def test_files_and_functions_are_short(path: str) -> None:
    text = SOURCES[path].read_text()
    assert len(text.splitlines()) <= LONGER.get(path, LONG_LINES)
    long = {name: lines for name, lines in functions(ast.parse(text)) if lines > LONGER.get(name, LONG_FUNCTION)}
    assert not long


# Folders of tests that are not named after one of the package's: for its own modules, for what lies beside it in the
# repository, and for trainers that are installed for these tests alone.
OTHERS = {"package", "csrc", "benchmarks", "docs", "repository", "integrations"}


def test_tests_stand_in_a_folder_named_after_what_they_test() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    astray = {str(path.relative_to(ROOT)) for path in tests if path.parent.name not in parts | OTHERS}
    assert not astray
    assert {path.parent.parent for path in tests} == {ROOT / "tests"}
    assert len({path.name for path in tests}) == len(tests), "two files of one name"


def test_tests_share_by_modules_that_are_no_tests() -> None:
    """A test file that another one imports would run as a second module, and is not on the path."""
    found = {}
    for path in (ROOT / "tests").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        froms = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        if tests := {name for name in froms | plain if name.rpartition(".")[2].startswith("test_")}:
            found[str(path.relative_to(ROOT))] = tests
    assert not found
