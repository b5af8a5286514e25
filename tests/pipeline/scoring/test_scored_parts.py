"""Units scored in parts: the labels, errors and retries of a unit that is scored whole."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.scoring import work_units
from pipeline.scoring.label_store import read_errors, read_manifests, read_published
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import World


def _score(root: Path, tiny_llama: Path) -> tuple[pa.Table, pa.Table, list[tuple[object, ...]]]:
    """Return labels and errors by row, and the counts of each manifest."""
    world = World(root, tiny_llama)
    rows = planted_rows("two", 6, 7, labeled=False)
    rows[4]["query"], rows[5]["row_id"] = " ", rows[0]["row_id"]  # a blank query, a repeated id
    write_rows(rows, root / "to_score" / "task=two" / "part-7-bad.parquet")
    for all_tasks in (False, True):
        world.score_run(f"20260131-{'all' if all_tasks else 'own'}", all_tasks)
    keys = [("row_id", "ascending"), ("task", "ascending"), ("input_hash", "ascending")]
    counts = [
        (m.task, m.all_tasks, m.num_labels, m.num_errors, m.tasks) for m in read_manifests(world.scores_dir)
    ]
    labels = read_published(world.scores_dir, None).sort_by(keys)
    return labels, read_errors(world.scores_dir).sort_by("row"), sorted(counts)


def test_parts_of_a_unit_publish_what_the_whole_does(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_errors, whole_counts = _score(tmp_path / "whole", tiny_llama)
    monkeypatch.setattr(work_units, "PART_BYTES", 1)  # each row is a part
    parts, part_errors, part_counts = _score(tmp_path / "parts", tiny_llama)
    assert part_counts == whole_counts and whole_errors.num_rows == 4
    assert part_errors.select(["row_id", "row", "task", "reason"]).equals(
        whole_errors.select(["row_id", "row", "task", "reason"])
    )
    for name in ("row_id", "task", "label", "decision", "input_hash"):
        assert parts[name].to_pylist() == whole[name].to_pylist()
    assert parts["probability"].to_pylist() == pytest.approx(whole["probability"].to_pylist(), abs=1e-5)
