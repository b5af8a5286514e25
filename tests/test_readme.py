"""What the README tells people to type and to open is there."""

import re
from typing import Any

import pytest
import typer
import yaml

from jobs.cli import app
from pipeline.config.tasks import Task
from pipeline.data.importers.table import TableSource
from pipeline.schema import COLUMNS
from tests.support.places import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_commands_in_the_readme_exist_with_their_options() -> None:
    group: Any = typer.main.get_command(app)
    mentioned = re.findall(r"(?:`|^ *)relevance ([a-z]+)((?: --[a-z-]+)*)", TEXT, re.MULTILINE)
    assert {name for name, _ in mentioned} >= set(group.commands), "every command is explained"
    for name, options in mentioned:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert set(options.split()) <= known, name


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+) ", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE) or target == "and", target


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"(?<![\w/])((?:models|pipeline|validation|jobs|infra|tests)/[\w./-]*\w)", TEXT):
        assert (ROOT / name).exists(), name


def test_the_table_of_columns_is_the_contract() -> None:
    table = TEXT.split("## Rows")[1].split("## Labels")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == {column.name for column in COLUMNS}


def test_the_task_block_in_the_readme_is_a_task() -> None:
    block = re.search(r"```yaml\n(tasks:.*?)```", TEXT, re.DOTALL)
    assert block
    for task in yaml.safe_load(block.group(1))["tasks"]:
        Task.model_validate(task)


def test_the_mapping_in_the_readme_is_one() -> None:
    block = re.search(r"```yaml\n(task:.*?)```", TEXT, re.DOTALL)
    assert block
    source = TableSource.model_validate(
        {"kind": "table", "path": "clicks.csv", **yaml.safe_load(block.group(1))}
    )
    assert source.label_indices(None) == {"perfect": 2, "fair": 1, "bad": 0}


@pytest.mark.parametrize("placeholder", ["@@", "TODO", "TBD"])
def test_the_readme_is_finished(placeholder: str) -> None:
    assert placeholder not in TEXT
