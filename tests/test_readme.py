"""The READMEs: commands, files and blocks that they name exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.cli import app
from pipeline.config.loading import build_config, read_settings
from pipeline.config.tasks import Task
from pipeline.data.importers.table import TableSource
from pipeline.schema import COLUMNS
from tests.support.commands_page import PAGE, build_page
from tests.support.places import ROOT, read_readmes

MAX_README_LINES = 200


READMES = read_readmes()
MAIN = READMES["README.md"]


def test_commands_in_readmes_exist_with_their_options() -> None:
    group: Any = typer.main.get_command(app)
    wrong = []
    for path, text in READMES.items():
        for line in re.findall(r"(?:`|^ *)relevance ([a-z-]+[^`\n]*)", text, re.MULTILINE):
            name, _, rest = line.partition(" ")
            command = group.commands.get(name)
            commands = [command, group.commands.get(rest.split(" ")[0]) if name == "submit" else None]
            parameters = [parameter for given in commands if given for parameter in given.params]
            known = {option for parameter in parameters for option in parameter.opts}
            options = set(re.findall(r"(?<!\S)--[a-z-]+", rest.split("  ")[0]))
            if command is None or not options <= known:
                wrong.append(f"{path}: relevance {line}")
    assert wrong == []


def test_the_main_readme_names_every_command() -> None:
    group: Any = typer.main.get_command(app)
    assert set(re.findall(r"`relevance ([a-z-]+)", MAIN)) >= set(group.commands)


def test_the_main_readme_is_short() -> None:
    assert len(MAIN.splitlines()) <= MAX_README_LINES


def test_the_commands_page_is_that_of_the_cli() -> None:
    assert PAGE.read_text() == build_page(), "run python -m tests.support.commands_page"


def test_make_targets_in_readmes_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pattern = r"(?:`|^ *)make ([a-z0-9-]+)"  # as code, not in a sentence
    targets = {target for text in READMES.values() for target in re.findall(pattern, text, re.MULTILINE)}
    assert targets >= {"demo", "test"}
    missing = [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)]
    assert missing == []


def test_files_that_readmes_name_exist() -> None:
    pattern = r"(?<![\w/.>])((?:models|pipeline|validation|jobs|infra|tests)/[\w./-]*\w)"
    missing = [
        f"{path}: {name}"
        for path, text in READMES.items()
        for name in re.findall(pattern, text)
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_python_files_in_room_tables_exist() -> None:
    missing = []
    for path, text in READMES.items():
        folder = (ROOT / path).parent
        for row in (line for line in text.splitlines() if line.startswith("| ")):
            for name in re.findall(r"`([\w/]+\.py)`", row):
                places = (folder / name, folder / "commands" / name, ROOT / name, folder.parent / name)
                if not any(place.exists() for place in places):
                    missing.append(f"{path}: {name}")
    assert missing == []


def test_modules_in_readmes_can_be_run() -> None:
    modules = {name for text in READMES.values() for name in re.findall(r"python -m (tests[\w.]+)", text)}
    assert [
        name for name in modules if not (ROOT / Path(*name.split("."))).with_suffix(".py").is_file()
    ] == []


def test_the_table_of_columns_is_the_row_contract() -> None:
    table = READMES["pipeline/README.md"].split("## Rows")[1].split("## Extensions")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == {column.name for column in COLUMNS}


def test_the_task_block_is_a_task() -> None:
    block = re.search(r"```yaml\n(tasks:.*?)```", MAIN, re.DOTALL)
    assert block
    for task in yaml.safe_load(block.group(1))["tasks"]:
        Task.model_validate(task)


def test_the_mapping_is_valid() -> None:
    text = READMES["pipeline/data/importers/README.md"]
    block = re.search(r"```yaml\n(task:.*?)```", text, re.DOTALL)
    assert block
    settings = {"kind": "table", "path": "clicks.csv", **yaml.safe_load(block.group(1))}
    assert TableSource.model_validate(settings).label_indices(None) == {"perfect": 2, "fair": 1, "bad": 0}


@pytest.mark.parametrize("placeholder", ["@@", "TODO", "TBD"])
def test_readmes_are_finished(placeholder: str) -> None:
    assert [path for path, text in READMES.items() if placeholder in text] == []


def test_example_for_own_data_needs_no_other_settings() -> None:
    """Check step 2 of "Your own data": esci.yaml without `sources` and `gate`."""
    settings = read_settings(ROOT / "jobs" / "configs" / "esci.yaml", [])
    own = {key: value for key, value in settings.items() if key not in ("sources", "gate")}
    own |= {"name": "mine", "data": {"judged": "data/judged", "to_score": "data/new"}}
    config = build_config(own, "mine.yaml")
    assert not config.training.use_gpu and config.tracking_uri.startswith("sqlite:")
