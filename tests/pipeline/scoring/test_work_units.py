"""What a scoring run has to do: units by file and row groups, of the day that was asked for."""

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
from pipeline.scoring import work_units as score_units
from pipeline.scoring.label_store import publish_partition
from pipeline.scoring.work_units import on_date, plan_units, read_unit
from tests.support.planted import planted_config, planted_rows, write_rows


def config_of(root: Path, **data: Any) -> RunConfig:
    return build_config(
        {**planted_config(root, "nowhere"), "data": {"to_score": str(root / "to_score"), **data}}, "test"
    )


def write_day(root: Path, day: str, rows: int = 4) -> None:
    write_rows(
        planted_rows("two", rows, 1, labelled=False), root / "to_score" / day / "task=two" / "part-0.parquet"
    )


def test_each_day_has_units_of_its_own_under_names_of_their_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, to_score=str(tmp_path / "to_score" / "{date}"))
    for rows, day in enumerate(("2026-01-31", "2026-02-01"), start=4):
        write_day(tmp_path, day, rows)
    (first,), (second,) = (plan_units(on_date(config, day), "b")[0] for day in ("2026-01-31", "2026-02-01"))
    assert "2026-01-31" in first.path and "2026-02-01" in second.path
    assert (first.rows, second.rows) == (4, 5) and first.partition != second.partition
    with pytest.raises(ConfigError, match="2026-02-02 is not a folder"):
        plan_units(on_date(config, "2026-02-02"), "b")


def test_a_file_that_is_the_day_before_s_byte_for_byte_is_one_partition_of_both_days(tmp_path: Path) -> None:
    config = config_of(tmp_path, to_score=str(tmp_path / "to_score" / "{date}"))
    write_day(tmp_path, "2026-01-31")
    write_day(tmp_path, "2026-02-01")
    (first,), (second,) = (plan_units(on_date(config, day), "b")[0] for day in ("2026-01-31", "2026-02-01"))
    assert first.partition == second.partition, "rows of the same ids would be labelled twice"


@pytest.mark.parametrize(
    ("place", "day", "told"),
    [
        ("to_score/{date}", None, "has {date} in it; say which with `relevance score --logical-date`"),
        ("to_score", "2026-01-31", "has no {date} for the logical date"),
    ],
)
def test_a_day_and_a_place_for_it_go_together(tmp_path: Path, place: str, day: str | None, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        on_date(config_of(tmp_path, to_score=str(tmp_path / place)), day)
    assert told in str(refused.value)


def test_a_range_of_days_has_both_ends_and_knows_the_calendar() -> None:
    assert list(dates_between("2028-02-28", "2028-03-01")) == ["2028-02-28", "2028-02-29", "2028-03-01"]
    assert list(dates_between("2026-01-31", "2026-01-31")) == ["2026-01-31"]


NO_RANGES = [
    ("2026-02-30", "2026-03-01"),
    ("20260131", "2026-02-01"),
    ("2026-02-01", "2026-01-31"),
    ("", "2026-01-01"),
]


@pytest.mark.parametrize(("first", "last"), NO_RANGES)
def test_what_is_no_range_of_days_is_refused(first: str, last: str) -> None:
    with pytest.raises(ConfigError):
        list(dates_between(first, last))


def test_an_input_a_model_or_an_encoder_that_changed_is_another_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    write_day(tmp_path, ".")
    (unit,), _ = plan_units(config, "b")
    publish_partition(
        config.run_dir / "scores", unit.partition, SCORE_SCHEMA.empty_table(), {"bundle_sha256": "b"}
    )
    assert plan_units(config, "b") == ([], [unit])
    assert len(plan_units(config, "c")[0]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(score_units, "ENCODER_VERSION", "another")
        assert len(plan_units(config, "b")[0]) == 1
    write_day(tmp_path, ".", rows=6)
    assert len(plan_units(config, "b")[0]) == 1


@pytest.mark.parametrize(
    "rows_by_group",
    [[4, 4], [31], [6, 4, 1], [12, 12], [4] * 6, [1] * 23, [10, 10], [11], [0, 11, 0]],
    ids=str,
)
def test_parts_hold_every_row_once_in_its_place_whatever_the_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_by_group: list[int]
) -> None:
    monkeypatch.setattr(score_units, "UNIT_ROWS", 10)
    config = config_of(tmp_path)
    path = tmp_path / "to_score" / "task=two" / "part.parquet"
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, ROW_SCHEMA) as writer:
        for group, rows in enumerate(rows_by_group):
            writer.write_table(pa.Table.from_pylist(planted_rows("two", rows, group), ROW_SCHEMA))
    units, _ = plan_units(config, "b")
    assert len(units) == max(1, -(-sum(rows_by_group) // 10)) and all(unit.rows <= 10 for unit in units)
    expected, found = pq.read_table(path, partitioning=None).column("row_id").to_pylist(), []
    for unit in units:
        table, first = read_unit(unit)
        assert first == len(found) and table.num_rows == unit.rows
        found += table.column("row_id").to_pylist()
    assert found == expected


def test_a_large_file_that_was_published_whole_is_not_labelled_in_parts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    write_day(tmp_path, ".", rows=12)
    (unit,), _ = plan_units(config, "b")
    publish_partition(
        config.run_dir / "scores", unit.partition, SCORE_SCHEMA.empty_table(), {"bundle_sha256": "b"}
    )
    monkeypatch.setattr(score_units, "UNIT_ROWS", 10)
    assert plan_units(config, "b") == ([], [unit])


def test_a_large_file_that_could_not_be_looked_into_is_not_published_as_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(tmp_path, ".", rows=12)
    (unit,), _ = plan_units(config_of(tmp_path), "b")
    monkeypatch.setattr(score_units, "UNIT_ROWS", 10)
    with pytest.raises(RetryableError, match="run the same command again"):
        read_unit(unit)


def test_a_file_that_cannot_be_read_is_a_unit_that_tells_so_when_it_is_scored(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_day(tmp_path, ".")
    (tmp_path / "to_score" / "task=two" / "torn.parquet").write_bytes(b"PAR1")
    units, _ = plan_units(config, "b")
    assert [(Path(unit.path).name, unit.rows) for unit in units] == [
        ("part-0.parquet", 4),
        ("torn.parquet", 0),
    ]


def test_a_folder_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "to_score").mkdir()
    with pytest.raises(DataRefusedError, match="holds no task="):
        plan_units(config_of(tmp_path), "b")
