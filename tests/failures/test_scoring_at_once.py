"""Two concurrent `relevance score` commands at one location: one does the work, each row has one label."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pipeline.scoring.label_store import read_published
from pipeline.scoring.scoring_record import read_run
from tests.support.champion import write_champion
from tests.support.commands import RELEVANCE
from tests.support.planted import planted_rows, write_rows

pytestmark = pytest.mark.e2e

UNITS, ROWS = 6, 40


@pytest.mark.failures
def test_one_of_two_concurrent_commands_scores_all_units(tmp_path: Path, tiny_llama: Path) -> None:
    config, _ = write_champion(tmp_path, tiny_llama)
    for number in range(UNITS):
        write_rows(
            planted_rows("two", ROWS, number, labeled=False),
            tmp_path / "rows" / "task=two" / f"part-{number}.parquet",
        )
    commands = []
    for name in ("planted", "other"):  # like two machines: each has its own run folder
        sets = (f"name={name}", f"data.to_score={tmp_path / 'rows'}", f"scoring.scores={tmp_path / 'scores'}")
        words = [word for one in sets for word in ("--set", one)]
        command = [*RELEVANCE, "score", "--config", str(config), *words]
        commands.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [command.communicate(timeout=300) for command in commands]
    codes = sorted(command.returncode for command in commands)
    assert codes in ([0, 0], [0, 3]), outputs
    done = [
        json.loads(out.splitlines()[-1])
        for (out, _), command in zip(outputs, commands, strict=True)
        if command.returncode == 0
    ]
    assert sum(one["units_scored"] for one in done) == UNITS
    assert codes == [0, 0] or any(
        "is leased by" in errors and "run the same command again" in errors for _, errors in outputs
    )
    for table in (read_published(tmp_path / "scores"), read_run(tmp_path / "scores")):
        labels = Counter(table.column("row_id").to_pylist())
        assert len(labels) == UNITS * ROWS and set(labels.values()) == {1}
