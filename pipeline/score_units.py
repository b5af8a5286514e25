"""What a scoring run has to do: units, each an input file or some of its row groups, under one model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import is_published, partition_id
from pipeline.config import RunConfig
from pipeline.encode import ENCODER_VERSION
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.files import file_sha256
from pipeline.reader import check_schema, find_partitions, naming_damage, open_partition
from pipeline.schema import ROW_SCHEMA

DATE = "{date}"
UNIT_ROWS = 50_000  # a file of more is taken in parts of whole row groups; fixed, as parts of other sizes would label rows twice


@dataclass(frozen=True)
class Unit:
    """One input file, or row groups `first` to before `last` of it, to score under one model."""

    task: str
    path: str
    input_sha256: str
    partition: str
    row_groups: tuple[int, int] | None  # None: all
    rows: int = 0  # 0 too where the file cannot be read


def on_date(config: RunConfig, date: str | None) -> RunConfig:
    """The config with the logical date where data.to_score has {date}. ConfigError: there is no date to put there, or no place for it."""
    place = str(config.to_score_dir)
    if date is None and DATE in place:
        raise ConfigError(f"data.to_score {place} has {DATE} in it; say which with `relevance score --logical-date`, as 2026-01-31")
    if date is not None and DATE not in place:
        raise ConfigError(f"data.to_score {place} has no {DATE} for the logical date; put it where the folders of days differ, or name no date")
    if date is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"to_score": Path(place.replace(DATE, date))})})


def plan_units(config: RunConfig, bundle_sha256: str) -> tuple[list[Unit], list[Unit]]:
    """(units still to score, those published before), in a fixed order: task by task."""
    root, scores = config.to_score_dir, config.run_dir / "scores"
    to_do: list[Unit] = []
    published: list[Unit] = []
    for task, paths in find_partitions(root, config.tasks).items():
        for path in paths:
            sha256 = file_sha256(path)
            for groups, rows in parts_of(path):
                partition = partition_id(task, str(path.relative_to(root)), sha256, bundle_sha256, ENCODER_VERSION, groups)
                unit = Unit(task, str(path), sha256, partition, groups, rows)
                (published if is_published(scores, partition) else to_do).append(unit)
    return to_do, published


def parts_of(path: Path) -> Iterator[tuple[tuple[int, int] | None, int]]:
    """Ranges of row groups of about UNIT_ROWS rows each, with their rows; the range is None for a file that is one unit."""
    try:
        with open_partition(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except DamagedInputError:  # told where its unit is scored, so that the others are scored all the same
        rows = []
    if sum(rows) <= UNIT_ROWS or len(rows) == 1:
        yield None, sum(rows)
        return
    first, held = 0, 0
    for group, count in enumerate(rows):
        held += count
        if held >= UNIT_ROWS or group == len(rows) - 1:
            yield (first, group + 1), held
            first, held = group + 1, 0


def read_unit(unit: Unit) -> tuple[pa.Table, int]:
    """(its rows in the contract's schema, the number of the first one in its file).

    DamagedInputError, DataRefusedError: as `read_partition` says. RetryableError: the file is another than when the units were planned.
    """
    path = Path(unit.path)
    if not path.is_file() or file_sha256(path) != unit.input_sha256:
        raise RetryableError(f"{path} changed while it was scored; nothing of it is published, run the same command again")
    with open_partition(path) as file:
        check_schema(file, path)
        first, last = unit.row_groups or (0, file.metadata.num_row_groups)
        with naming_damage(path):
            table = read_groups(file, first, last)
            table.validate(full=True)
        before = sum(file.metadata.row_group(group).num_rows for group in range(first))
    return pa.table(table.columns, names=ROW_SCHEMA.names), before


def read_groups(file: pq.ParquetFile, first: int, last: int) -> pa.Table:
    """Row groups `first` to before `last`."""
    return file.read_row_groups(list(range(first, last))) if last > first else file.schema_arrow.empty_table()
