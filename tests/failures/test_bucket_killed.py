"""From rows in a bucket to labels in a bucket by one command, killed on the way."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.scoring.label_store import read_errors, read_published
from pipeline.storage.object_store import open_store
from tests.support.commands import RELEVANCE, last_json, relevance
from tests.support.planted import planted_config, write_config, write_planted

pytestmark = pytest.mark.failures

LAST_STAGE = "7/7 scoring"


def test_killed_run_from_bucket_to_bucket_ends_in_each_label_once(
    tmp_path: Path, tiny_llama: Path, s3: str
) -> None:
    place = f"s3://labels/{tmp_path.name}"
    plain = planted_config(tmp_path, str(tiny_llama))
    write_planted(tmp_path)
    for setting in ("judged", "to_score"):
        folder = Path(plain["data"][setting])
        store = open_store(f"{place}/{setting}")
        for path in folder.rglob("*.parquet"):
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())
            path.unlink()
        plain["data"][setting] = store.location
    plain["scoring"] = {**plain.get("scoring", {}), "scores": f"{place}/scores"}
    command = ("run", "--config", str(write_config(tmp_path / "c.yaml", plain)))
    with subprocess.Popen(
        [*RELEVANCE, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if LAST_STAGE in line:
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, lines[-5:]
    result = last_json(relevance(*command, cwd=tmp_path))
    assert (result["steps"], result["scores"], result["units_already_published"]) == (0, f"{place}/scores", 0)
    labels, errors = read_published(f"{place}/scores"), read_errors(f"{place}/scores")
    row_ids = labels["row_id"].to_pylist()
    assert len(set(row_ids)) == len(row_ids) == result["labels"] > 0
    assert result["rows_in"] == len(row_ids) + errors.num_rows
