"""Work units by file and row range, of the requested date."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands.score import dates_between
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DataRefusedError, RetryableError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import work_units
from pipeline.scoring.label_store import publish_unit
from pipeline.scoring.work_units import WorkUnit, insert_date, plan_units, read_unit
from tests.support.planted import planted_config, planted_rows, write_rows
from tests.support.score_partitions import unit_manifest
from tests.support.scoring_world import plan


def config_of(root: Path, **data: Any) -> RunConfig:
    return build_config(
        {**planted_config(root, "nowhere"), "data": {"to_score": str(root / "to_score"), **data}}, "test"
    )


def plan_day(config: RunConfig, day: str) -> list[WorkUnit]:
    """Return the units of one day."""
    location = insert_date(config.to_score_location, day)
    return plan_units(location, config.scores_location, config.tasks, "b")[0]


def publish_empty(config: RunConfig, unit: WorkUnit) -> None:
    publish_unit(
        config.scores_location,
        unit_manifest(unit.unit_id, bundle_sha256="b"),
        SCORE_SCHEMA.empty_table(),
    )


def write_day(root: Path, day: str, rows: int = 4) -> None:
    write_rows(
        planted_rows("two", rows, 1, labeled=False), root / "to_score" / day / "task=two" / "part-0.parquet"
    )


def test_each_day_has_its_own_units(tmp_path: Path) -> None:
    config = config_of(tmp_path, to_score=str(tmp_path / "to_score" / "{date}"))
    for rows, day in enumerate(("2026-01-31", "2026-02-01"), start=4):
        write_day(tmp_path, day, rows)
    (first,), (second,) = (plan_day(config, day) for day in ("2026-01-31", "2026-02-01"))
    assert "2026-01-31" in first.path and "2026-02-01" in second.path
    assert (first.rows, second.rows) == (4, 5) and first.unit_id != second.unit_id
    with pytest.raises(ConfigError, match="2026-02-02 is not a folder"):
        plan_day(config, "2026-02-02")


def test_equal_files_of_two_days_are_one_unit(tmp_path: Path) -> None:
    config = config_of(tmp_path, to_score=str(tmp_path / "to_score" / "{date}"))
    write_day(tmp_path, "2026-01-31")
    write_day(tmp_path, "2026-02-01")
    (first,), (second,) = (plan_day(config, day) for day in ("2026-01-31", "2026-02-01"))
    assert first.unit_id == second.unit_id, "rows with equal ids would be labeled twice"


@pytest.mark.parametrize(
    ("place", "day", "message"),
    [
        ("to_score/{date}", None, "has {date} and no date was given"),
        ("to_score", "2026-01-31", "has no {date} for the logical date"),
    ],
)
def test_date_and_placeholder_must_occur_together(
    tmp_path: Path, place: str, day: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        insert_date(tmp_path / place, day)
    assert message in str(refused.value)


def test_date_range_includes_both_ends_and_leap_day() -> None:
    assert list(dates_between("2028-02-28", "2028-03-01")) == ["2028-02-28", "2028-02-29", "2028-03-01"]
    assert list(dates_between("2026-01-31", "2026-01-31")) == ["2026-01-31"]


INVALID_RANGES = [
    ("2026-02-30", "2026-03-01"),
    ("20260131", "2026-02-01"),
    ("2026-02-01", "2026-01-31"),
    ("", "2026-01-01"),
]


@pytest.mark.parametrize(("first", "last"), INVALID_RANGES)
def test_invalid_date_range_is_refused(first: str, last: str) -> None:
    with pytest.raises(ConfigError):
        list(dates_between(first, last))


def test_changed_input_model_or_encoder_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    write_day(tmp_path, ".")
    (unit,), _ = plan(config, "b")
    publish_empty(config, unit)
    assert plan(config, "b") == ([], [unit])
    assert len(plan(config, "c")[0]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(work_units, "ENCODER_VERSION", "another")
        assert len(plan(config, "b")[0]) == 1
    write_day(tmp_path, ".", rows=6)
    assert len(plan(config, "b")[0]) == 1


@pytest.mark.parametrize(
    "rows_by_group",
    [[4, 4], [31], [6, 4, 1], [12, 12], [4] * 6, [1] * 23, [10, 10], [11], [0, 11, 0]],
    ids=str,
)
def test_parts_hold_every_row_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_by_group: list[int]
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    config = config_of(tmp_path)
    path = tmp_path / "to_score" / "task=two" / "part.parquet"
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, ROW_SCHEMA) as writer:
        for group, rows in enumerate(rows_by_group):
            writer.write_table(pa.Table.from_pylist(planted_rows("two", rows, group), ROW_SCHEMA))
    units, _ = plan(config, "b")
    assert len(units) == max(1, -(-sum(rows_by_group) // 10)) and all(unit.rows <= 10 for unit in units)
    expected, found = pq.read_table(path, partitioning=None).column("row_id").to_pylist(), []
    for unit in units:
        ((table, first),) = read_unit(unit)
        assert first == len(found) and table.num_rows == unit.rows
        found += table.column("row_id").to_pylist()
    assert found == expected


def test_large_file_published_whole_is_not_scored_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    write_day(tmp_path, ".", rows=12)
    (unit,), _ = plan(config, "b")
    publish_empty(config, unit)
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    assert plan(config, "b") == ([], [unit])


@pytest.mark.parametrize("planned_rows", [0, 11, 13])
def test_file_planned_with_another_row_count_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned_rows: int
) -> None:
    write_day(tmp_path, ".", rows=12)
    (unit,), _ = plan(config_of(tmp_path), "b")
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    with pytest.raises(RetryableError, match="run the same command again"):
        list(read_unit(replace(unit, rows=planned_rows, file_rows=planned_rows)))


def test_unreadable_file_is_planned_as_a_unit(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_day(tmp_path, ".")
    (tmp_path / "to_score" / "task=two" / "torn.parquet").write_bytes(b"PAR1")
    units, _ = plan(config, "b")
    assert [(Path(unit.path).name, unit.rows) for unit in units] == [
        ("part-0.parquet", 4),
        ("torn.parquet", 0),
    ]


def test_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "to_score").mkdir()
    with pytest.raises(DataRefusedError, match="holds no task="):
        plan(config_of(tmp_path), "b")
