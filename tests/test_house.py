"""The order of the house: who may import whom, how large files and functions may grow, which folders there are."""

import ast
import subprocess
from pathlib import Path

import pytest
from places import ROOT

ORDER = ["models", "pipeline", "validation", "jobs"]
FILES = [p for package in ORDER for p in sorted((ROOT / package).rglob("*.py"))]
HEAVY = {"ray", "mlflow", "great_expectations", "deepspeed", "transformers"}
# these are run by MLflow itself, or only where MLflow is loaded already
IMPORTED_WITH_MLFLOW = {"pipeline/registry/pyfunc_model.py", "pipeline/registry/pyfunc_code.py"}
NAMES = [str(p.relative_to(ROOT)) for p in FILES]


def imported_modules(tree: ast.AST) -> set[str]:
    """Full names of all modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_packages_import_only_what_stands_below_them(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    above = {module for module in imported_modules(ast.parse(path.read_text())) if module.split(".")[0] in ORDER[ORDER.index(own) + 1 :]}
    assert not above


def test_validation_takes_from_pipeline_only_what_the_design_allows() -> None:
    allowed = {"schema", "tasks", "errors", "files", "reader", "split", "limits", "writer", "ray_map"}
    for path in (ROOT / "validation").glob("*.py"):
        taken = {m.split(".")[1] for m in imported_modules(ast.parse(path.read_text())) if m.startswith("pipeline.")}
        assert taken <= allowed, path


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    if str(path.relative_to(ROOT)) in IMPORTED_WITH_MLFLOW:
        return
    top_level = ast.Module([n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    assert not {m.split(".")[0] for m in imported_modules(top_level)} & HEAVY


def test_no_import_goes_round_in_a_circle() -> None:
    graph = {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): imported_modules(ast.parse(p.read_text())) for p in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done or module not in graph:
            return
        for imported in graph[module]:
            visit(imported, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, node.name


def test_there_is_no_other_folder_than_the_design_names() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders <= {*ORDER, "infra", "tests"}


def test_nothing_unpickles() -> None:
    for path in FILES:
        source = path.read_text()
        assert "torch.load(" not in source and "import pickle" not in source and "cloudpickle" not in source, path
