"""Published labels are streamed in bounded memory, one of each row_id, task and model."""

import random
import time
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring import key_digests, published_labels
from pipeline.scoring.label_store import publish_unit, read_published
from pipeline.scoring.published_labels import (
    CONSTANT_COLUMNS,
    LABEL_SCHEMA,
    LabelSelection,
    PublishedLabels,
    iter_published,
    parse_time,
)
from pipeline.scoring.scoring_record import ScoringRecord, put_record, read_run
from tests.support.score_partitions import score_table, unit_manifest

DAY_S = 24 * 3600.0


def labels_of(row_ids: list[str], tasks: tuple[str, ...] = ("search",), model: str = "m") -> pa.Table:
    """Return a label of each row for each task, task by task."""
    plain = score_table(1).to_pylist()[0]
    rows = [
        {**plain, "row_id": row_id, "task": task, "bundle_sha256": model}
        for task in tasks
        for row_id in row_ids
    ]
    return pa.Table.from_pylist(rows, SCORE_SCHEMA)


def publish_at(root: Path, day: int, unit: str, labels: pa.Table) -> None:
    """Publish labels of one model as a unit, `day` days after 1970."""
    tasks = tuple(dict.fromkeys(labels["task"].to_pylist()))
    manifest = unit_manifest(
        unit, task=tasks[0], tasks=tasks, profiles={}, all_tasks=True,
        bundle_sha256=labels["bundle_sha256"][0].as_py(), model_version=unit,
    )  # fmt: skip
    number = labels.schema.get_field_index("model_version")
    labels = labels.set_column(number, labels.field(number), pa.array([unit] * labels.num_rows))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "time", lambda: day * DAY_S)
        publish_unit(root, manifest, labels)


def keys_of(tables: list[pa.Table]) -> list[tuple[str, str, str]]:
    """Return unit, task and row_id of all labels, sorted."""
    return sorted(
        (row["model_version"], row["task"], row["row_id"]) for table in tables for row in table.to_pylist()
    )


def test_stream_keeps_what_a_plain_loop_over_units_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_digests, "PART_KEYS", 20)
    monkeypatch.setattr(published_labels, "BATCH_ROWS", 6)
    draw, expected = random.Random(3), {}
    days = draw.sample(range(100), 12)
    units = []
    for number, day in enumerate(days):
        row_ids = [f"r{row}" for row in draw.sample(range(30), draw.randrange(1, 15))]
        tasks = draw.choice([("ads",), ("search",), ("ads", "search")])
        units.append((day, f"u{number}", labels_of(row_ids, tasks, draw.choice("mn"))))
    for unit in units:
        publish_at(tmp_path, *unit)
    for _, name, labels in sorted(units, key=lambda unit: unit[0]):
        for row in labels.to_pylist():
            expected.setdefault((row["task"], row["bundle_sha256"], row["row_id"]), name)
    tables = list(iter_published(tmp_path, batch_rows=4))
    assert all(table.schema == LABEL_SCHEMA and 0 < table.num_rows <= 4 for table in tables)
    assert keys_of(tables) == sorted((name, task, row) for (task, _, row), name in expected.items())
    assert keys_of([read_published(tmp_path)]) == keys_of(tables)
    assert [table["row_id"].to_pylist() for table in iter_published(tmp_path, ["row_id"])] == [
        table["row_id"].to_pylist() for table in iter_published(tmp_path, ["row_id", "task"])
    ]


def test_labels_since_a_time_and_before_are_all_labels(tmp_path: Path) -> None:
    publish_at(tmp_path, 10, "old", labels_of(["a", "b"]))
    publish_at(tmp_path, 20, "new", labels_of(["b", "c"], ("search", "ads")))
    since = LabelSelection(since=parse_time("1970-01-12"))
    assert keys_of(list(iter_published(tmp_path, selection=since))) == [
        ("new", "ads", "b"), ("new", "ads", "c"), ("new", "search", "c")
    ]  # fmt: skip
    at_once = LabelSelection(since=parse_time("1970-01-21T02:00:00+02:00"))
    assert len(keys_of(list(iter_published(tmp_path, selection=at_once)))) == 3
    later = LabelSelection(since=parse_time("1970-02-01"), task="ads")
    assert list(iter_published(tmp_path, selection=later)) == []
    assert parse_time("2026-01-31") == datetime(2026, 1, 31)
    with pytest.raises(ConfigError, match="time not readable: 'today'"):
        parse_time("today")


def test_labels_of_a_run_and_a_task_are_read_alone(tmp_path: Path) -> None:
    publish_at(tmp_path, 10, "u0", labels_of(["a", "b"], ("search", "ads")))
    publish_at(tmp_path, 20, "u1", labels_of(["b", "c"], ("search", "ads")))
    put_record(tmp_path, ScoringRecord("20260101-a", ("u1",), accepted=True))
    selection = LabelSelection(run="20260101-a", task="ads")
    assert keys_of(list(iter_published(tmp_path, selection=selection))) == [
        ("u1", "ads", "b"), ("u1", "ads", "c")
    ]  # fmt: skip
    assert read_run(tmp_path).num_rows == 4
    for wrong, message in (
        (LabelSelection(run="20260101-b"), "run not found in .*: 20260101-b; did you mean 20260101-a?"),
        (LabelSelection(task="adds"), "task has no labels: adds; did you mean ads?"),
        (LabelSelection(task="x"), "task has no labels: x; there are 2, the last: ads, search"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(iter_published(tmp_path, selection=wrong))
    with pytest.raises(ConfigError, match="column unknown: market"):
        list(iter_published(tmp_path, ["market"]))


def test_constants_are_dictionaries_in_files_and_in_memory(tmp_path: Path) -> None:
    publish_unit(tmp_path, unit_manifest("p"), score_table(50_000))
    [path] = (tmp_path / "data").rglob("*.parquet")
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    for name in CONSTANT_COLUMNS:
        assert "RLE_DICTIONARY" in columns[name].encodings, name
        assert columns[name].total_uncompressed_size < 1000, name
    [table] = iter_published(tmp_path, CONSTANT_COLUMNS, 50_000)
    assert table.nbytes < 4.2 * len(CONSTANT_COLUMNS) * table.num_rows


def test_labels_of_older_releases_are_read(tmp_path: Path) -> None:
    old = score_table(3).drop_columns(["decision_basis", "input_hash"])
    publish_unit(tmp_path, unit_manifest("p"), old)
    [table] = iter_published(tmp_path)
    assert table.cast(SCORE_SCHEMA).equals(score_table(3))


def test_altered_file_is_refused_before_a_label_is_returned(tmp_path: Path) -> None:
    for unit in ("p", "q"):
        publish_unit(tmp_path, unit_manifest(unit), score_table(3, unit))
    [path] = (tmp_path / "data" / "q").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedInputError, match="does not match its manifest"):
        PublishedLabels(tmp_path)
