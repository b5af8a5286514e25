"""House rules: order of rooms, sizes of files and functions, imports of heavy libraries.

Each rule is one test that lists every offender.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import LONG_FILES
from tests.support.places import ROOT

PACKAGES = ("models", "pipeline", "validation", "jobs")
# A room may import its own modules and the rooms above it. A name is a module, or a package with its modules.
ROOMS: tuple[tuple[str, ...], ...] = (
    (
        "models.processes",
        "models.files",
        "models.folder_checks",
        "models.torch_internals",
        "models.transformers_internals",
    ),
    (
        "models.config",
        "models.quantization",
        "models.shrinking",
        "models.trunks",
        "models.backbone",
        "models.heads",
        "models.losses",
        "models.packing",
    ),
    ("models.adapters",),
    ("models.relevance", "models.last_layer", "models.padding", "models.trial"),
    ("models.training",),
    ("models.inference",),
    ("models.serialization",),
    ("models.vision",),
    ("pipeline.errors", "pipeline.schema", "pipeline.names", "pipeline.escaping", "pipeline.uris"),
    ("pipeline.storage",),
    ("pipeline.publishing",),
    ("pipeline.runtime",),
    ("pipeline.config",),
    ("pipeline.data",),
    ("pipeline.encoding",),
    ("pipeline.inference",),
    ("pipeline.evaluation",),
    ("pipeline.training",),
    ("pipeline.registry",),
    ("pipeline.scoring",),
    ("validation.text",),
    ("validation.gate",),
    ("validation.leakage",),
    ("validation.drift",),
    (
        "jobs.environment",
        "jobs.cluster",
        "jobs.console",
        "jobs.options",
        "jobs.run_texts",
        "jobs.submit_paths",
        "jobs.supervisor",
    ),
    ("jobs.command_run", "jobs.execution"),
    ("jobs.row_prediction", "jobs.score_progress", "jobs.score_summary", "jobs.train_progress"),
    ("jobs.commands",),
    ("jobs.cli_versions", "jobs.cli_labels"),
    ("jobs.cli",),
)
# validation checks data: of pipeline it may import rows, their config and their files
VALIDATION_IMPORTS = (
    "pipeline.errors",
    "pipeline.schema",
    "pipeline.names",
    "pipeline.escaping",
    "pipeline.runtime.progress",
    "pipeline.runtime.waiting",
    "pipeline.config",
    "pipeline.storage",
    "pipeline.data",
)
SHARED_WITH_VALIDATION = {"pipeline.evaluation.psi"}  # one PSI for data drift and score drift
HEAVY = {"ray", "mlflow", "great_expectations", "deepspeed", "transformers"}
# MLflow itself runs these modules
IMPORTED_WITH_MLFLOW = {"pipeline/registry/pyfunc_model.py"}
UNPICKLING_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"torch.load", "jit.load", "np.load", "numpy.load", "read_pickle"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_COLUMNS = 400, 60, 6, 110
COMMAND_LINES = {*(ROOT / "jobs").glob("cli*.py")}  # a parameter is an option
PRAGMA = re.compile(r"  # (type: ignore|noqa).*")  # comments for tools do not count as columns

PRODUCT = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SOURCES = {path: ast.parse(path.read_text()) for path in [*PRODUCT, *TESTS]}


def module_name(path: Path) -> str:
    """Return the dotted name of a module."""
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")


MODULES = {module_name(path): path for path in PRODUCT}


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the names of all modules that a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULES.keys()) or {node.module}
    return found


def room_number(module: str) -> int | None:
    """Return the number of a module's room; None if it is in none."""
    for number, names in enumerate(ROOMS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def functions_in(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions and methods of a file."""
    yield from (
        node for node in ast.walk(SOURCES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_module_has_a_room() -> None:
    offenders = [name for name in MODULES if room_number(name) is None and name not in PACKAGES]
    assert not offenders, "\n".join(offenders)


def test_rooms_import_only_rooms_above_them() -> None:
    offenders = []
    for module, path in MODULES.items():
        own = room_number(module)
        for imported in imported_modules(SOURCES[path]) & MODULES.keys():
            other = room_number(imported)
            if own is not None and other is not None and other > own:
                offenders.append(f"{module} -> {imported}")
    assert not offenders, "\n".join(offenders)


def test_validation_imports_only_rows_config_and_storage() -> None:
    offenders = []
    for module, path in MODULES.items():
        if module.startswith("validation."):
            imported = {
                name for name in imported_modules(SOURCES[path]) if name.startswith("pipeline.")
            } - SHARED_WITH_VALIDATION
            offenders += [
                f"{module} -> {name}" for name in imported if not name.startswith(VALIDATION_IMPORTS)
            ]
    assert not offenders, "\n".join(offenders)


def test_no_import_is_circular() -> None:
    graph = {module: imported_modules(SOURCES[path]) & MODULES.keys() for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_test_files_mirror_modules() -> None:
    modules = {str(path.relative_to(ROOT).with_suffix("")) for path in PRODUCT}
    offenders = []
    for path in TESTS:
        folder, name = path.relative_to(ROOT / "tests").parent, path.stem.removeprefix("test_")
        if path.name.startswith("test_") and folder.parts and folder.parts[0] in PACKAGES:
            words = name.split("_")
            subjects = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
            if not any(str(folder / subject) in modules for subject in subjects):
                offenders.append(str(path.relative_to(ROOT)))
    assert not offenders, "\n".join(offenders)


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    offenders = []
    for path in PRODUCT:
        if str(path.relative_to(ROOT)) not in IMPORTED_WITH_MLFLOW:
            top_level = ast.Module(
                [n for n in SOURCES[path].body if isinstance(n, ast.Import | ast.ImportFrom)], []
            )
            heavy = {module.split(".")[0] for module in imported_modules(top_level)} & HEAVY
            offenders += [f"{module_name(path)}: {name}" for name in heavy]
    assert not offenders, "\n".join(offenders)


def test_files_have_at_most_400_lines() -> None:
    lines = {path: path.read_text().count("\n") for path in SOURCES}
    offenders = [
        f"{path.relative_to(ROOT)}: {count}" for path, count in lines.items() if count > MAX_FILE_LINES
    ]
    assert not offenders, "\n".join(offenders)


def test_files_are_opened_with_their_encoding() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--preview", "--select", "PLW1514"]
    checked = subprocess.run(
        [*command, "--output-format", "concise", *PACKAGES], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, f"without encoding the locale decides:\n{checked.stdout}{checked.stderr}"


def test_lines_have_at_most_110_columns() -> None:
    offenders = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if len(PRAGMA.sub("", line)) > MAX_COLUMNS:
                offenders.append(f"{path.relative_to(ROOT)}:{number}")
    assert not offenders, "\n".join(offenders)


def test_functions_have_at_most_60_lines() -> None:
    offenders = []
    for path in SOURCES:
        for node in functions_in(path):
            count = (node.end_lineno or 0) - node.lineno + 1
            if count > MAX_FUNCTION_LINES:
                offenders.append(f"{path.relative_to(ROOT)}: {node.name}: {count}")
    assert not offenders, "\n".join(offenders)


def test_functions_take_at_most_six_parameters() -> None:
    offenders = []
    for path in PRODUCT:
        for node in functions_in(path):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            if count > MAX_PARAMETERS and path not in COMMAND_LINES:
                offenders.append(f"{path.relative_to(ROOT)}: {node.name}: {count}")
    assert not offenders, "\n".join(offenders)


def test_files_that_start_first_exist() -> None:
    assert not [name for name in LONG_FILES if not (ROOT / "tests" / name).is_file()]


def test_top_level_folders_are_those_of_the_design() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders <= {*PACKAGES, "infra", "tests"}


def test_no_module_names_an_unpickler() -> None:
    offenders = []
    for path in PRODUCT:
        modules = {name for module in imported_modules(SOURCES[path]) for name in module.split(".")}
        names = modules & UNPICKLING_MODULES
        for node in ast.walk(SOURCES[path]):
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names} & UNPICKLING_CALLS
                names |= {alias.name for alias in node.names} & UNPICKLING_MODULES
            elif isinstance(node, ast.Attribute) and node.attr in ("load", "read_pickle"):
                name = ast.unparse(node)
                names |= {call for call in UNPICKLING_CALLS if f".{name}".endswith(f".{call}")}
            elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                names.add(node.arg)
        offenders += [f"{module_name(path)}: {name}" for name in sorted(names)]
    assert not offenders, "\n".join(offenders)
