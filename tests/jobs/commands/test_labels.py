"""`relevance labels`: published labels as one file."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.scoring.label_store import publish_unit, read_published
from pipeline.storage.object_store import Bucket
from tests.support.commands import check_refused, last_json
from tests.support.commands import relevance_in_process as relevance
from tests.support.score_partitions import files_below, score_table, unit_manifest


def test_labels_are_written_once_as_parquet_and_csv(tmp_path: Path) -> None:
    for unit, rows in (("p", 3), ("q", 5)):
        publish_unit(tmp_path / "scores", unit_manifest(unit), score_table(rows))
    result = relevance("labels", "scores", "out/labels.parquet", "--since", "2026-01-31", cwd=tmp_path)
    closing = last_json(result)
    assert closing["rows"] == 5 and closing["labels"] == "out/labels.parquet"
    assert "search  5" in result.stdout and files_below(tmp_path / "out") == ["labels.parquet"]
    assert pq.read_table(tmp_path / "out" / "labels.parquet").equals(read_published(tmp_path / "scores"))
    relevance("labels", "scores", "labels.csv", "--task", "search", cwd=tmp_path)
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["row_id"] for row in rows) == [f"r{number}" for number in range(5)]


def test_labels_of_a_bucket_are_written(tmp_path: Path, s3: str) -> None:
    place = f"s3://labels/{tmp_path.name}"
    publish_unit(Bucket(place), unit_manifest("p"), score_table(3))
    assert last_json(relevance("labels", place, "labels.csv.gz", cwd=tmp_path))["rows"] == 3
    check_refused(relevance("labels", f"{place}/no", "no.csv", cwd=tmp_path), 2, "place has no labels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "o.csv"), "place does not exist: nowhere"),
        (("empty", "o.csv"), "place has no labels: empty; name the location of `scoring.scores`"),
        (("scores", "there.csv"), "there.csv exists already; remove it or name another file"),
        (("scores", "o.txt"), "kind of file unknown: o.txt"),
        (("scores", "o.csv", "--run", "x"), "run not found in scores: x; there is none"),
        (("scores", "o.csv", "--task", "serch"), "task has no labels: serch; did you mean search?"),
        (("scores", "o.csv", "--since", "then"), "time not readable: 'then'"),
    ],
)
def test_refused_command_writes_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    publish_unit(tmp_path / "scores", unit_manifest("p"), score_table(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("kept")
    check_refused(relevance("labels", *arguments, cwd=tmp_path), 2, message)
    assert not (tmp_path / "o.csv").exists() and (tmp_path / "there.csv").read_text() == "kept"


def test_damaged_labels_leave_no_file(tmp_path: Path) -> None:
    publish_unit(tmp_path / "scores", unit_manifest("p"), score_table(3))
    next((tmp_path / "scores" / "data").rglob("*.parquet")).write_bytes(b"PAR1")
    check_refused(relevance("labels", "scores", "o.csv", cwd=tmp_path), 4, "does not match its manifest")
    assert not (tmp_path / "o.csv").exists()
