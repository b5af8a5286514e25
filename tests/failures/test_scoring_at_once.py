"""Two `relevance score` commands at one place at the same time: each row one label, and one of them does the
work.
"""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pipeline.scoring.label_store import read_published, read_run
from tests.support.champion import write_champion
from tests.support.commands import RELEVANCE
from tests.support.planted import planted_rows, write_rows

pytestmark = pytest.mark.e2e

UNITS, ROWS = 6, 40


@pytest.mark.failures
def test_of_two_commands_at_once_one_scores_and_the_other_ends_with_3_or_finds_all_done(
    tmp_path: Path, tiny_llama: Path
) -> None:
    config, _ = write_champion(tmp_path, tiny_llama)
    for number in range(UNITS):
        write_rows(
            planted_rows("two", ROWS, number, labelled=False),
            tmp_path / "rows" / "task=two" / f"part-{number}.parquet",
        )
    commands = []
    for name in ("planted", "other"):  # as two machines would: each in a run's folder of its own
        sets = (f"name={name}", f"data.to_score={tmp_path / 'rows'}", f"scoring.scores={tmp_path / 'scores'}")
        words = [word for one in sets for word in ("--set", one)]
        command = [*RELEVANCE, "score", "--config", str(config), *words]
        commands.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = [command.communicate(timeout=300) for command in commands]
    codes = sorted(command.returncode for command in commands)
    assert codes in ([0, 0], [0, 3]), said
    done = [
        json.loads(out.splitlines()[-1])
        for (out, _), command in zip(said, commands, strict=True)
        if command.returncode == 0
    ]
    assert sum(one["units_scored"] for one in done) == UNITS
    assert codes == [0, 0] or any(
        "scores into" in errors and "run the same command again" in errors for _, errors in said
    )
    for table in (read_published(tmp_path / "scores"), read_run(tmp_path / "scores")):
        labels = Counter(table.column("row_id").to_pylist())
        assert len(labels) == UNITS * ROWS and set(labels.values()) == {1}
