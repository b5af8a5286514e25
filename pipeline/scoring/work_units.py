"""What a scoring run has to do: units, each an input file or a range of its rows, under one model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.run import RunConfig
from pipeline.config.scoring import as_place
from pipeline.data.reader import check_schema, naming_damage
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.errors import ConfigError
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.inputs import changed, count_rows, find_inputs, open_input
from pipeline.scoring.label_store import PartitionSource, partition_id, published_partitions

DATE = "{date}"

ALL_TASKS = "all-tasks"  # the way of scoring, in partition ids

# a file of more is taken in parts of so many; fixed, as parts of other sizes would label rows twice
UNIT_ROWS = 50_000


@dataclass(frozen=True)
class Unit:
    """One input file, or rows `first` to before `last` of it, to score under one model."""

    task: str
    path: str
    digest: str  # of the file
    partition: str
    part: tuple[int, int] | None  # None: all rows
    rows: int = 0  # 0 too where the file cannot be read
    all_tasks: bool = False  # whether its rows are judged for every task of the model; else for its own


def on_date(config: RunConfig, date: str | None) -> RunConfig:
    """The config with the logical date where data.to_score has {date}. ConfigError: there is no date to put
    there, or no place for it.
    """
    place = str(config.to_score_place)
    if date is None and DATE in place:
        raise ConfigError(
            f"data.to_score {place} has {DATE} in it; say which with `relevance score --logical-date`, as "
            "2026-01-31"
        )
    if date is not None and DATE not in place:
        raise ConfigError(
            f"data.to_score {place} has no {DATE} for the logical date; put it where the folders of days "
            "differ, or name no date"
        )
    if date is None:
        return config
    there = place.replace(DATE, date)
    return config.model_copy(update={"data": config.data.model_copy(update={"to_score": as_place(there)})})


def plan_units(
    config: RunConfig, bundle_sha256: str, all_tasks: bool = False
) -> tuple[list[Unit], list[Unit]]:
    """(units still to score, those published before), in a fixed order: task by task. Who takes up a unit
    sees whether it was published since.
    """
    done, variants = published_partitions(config.scores_place), [ALL_TASKS] if all_tasks else []
    to_do: list[Unit] = []
    published: list[Unit] = []
    for task, files in find_inputs(config.to_score_place, config.tasks).items():
        for file, num_rows in zip(files, count_rows(files), strict=True):
            source = PartitionSource(task, file.name, file.digest, bundle_sha256, ENCODER_VERSION)
            # as releases did that knew no parts
            whole = partition_id(source, variants=variants) in done
            for part in [None] if whole else parts_of(num_rows):
                partition = partition_id(source, part, variants)
                unit = Unit(
                    task,
                    file.path,
                    file.digest,
                    partition,
                    part,
                    part[1] - part[0] if part else num_rows,
                    all_tasks,
                )
                (published if whole or (part and partition in done) else to_do).append(unit)
    return to_do, published


def unit_of_fields(fields: dict[str, Any]) -> Unit:
    """A unit out of json, which knows no tuples."""
    return Unit(**{**fields, "part": tuple(fields["part"]) if fields["part"] else None})


def parts_of(num_rows: int) -> list[tuple[int, int] | None]:
    """Ranges of UNIT_ROWS rows each; None alone for a file that is one unit."""
    if num_rows <= UNIT_ROWS:
        return [None]
    return [(first, min(first + UNIT_ROWS, num_rows)) for first in range(0, num_rows, UNIT_ROWS)]


def read_unit(unit: Unit) -> tuple[pa.Table, int]:
    """(its rows in the contract's schema, the number of the first one in its file).

    DamagedInputError, DataRefusedError: as `read_partition` says. RetryableError: the file is another than
    when the units were planned.
    """
    with open_input(unit.path, unit.digest) as file:
        check_schema(file, unit.path)
        # it could not be read when the units were planned
        if unit.part is None and file.metadata.num_rows > UNIT_ROWS:
            raise changed(unit.path)
        first, last = unit.part or (0, file.metadata.num_rows)
        with naming_damage(unit.path):
            table = read_range(file, first, last)
            table.validate(full=True)
    return pa.table(table.columns, names=ROW_SCHEMA.names), first


def read_range(file: pq.ParquetFile, first: int, last: int) -> pa.Table:
    """Rows `first` to before `last`, in bounded memory whatever the sizes of row groups."""
    starts = np.cumsum(
        [0, *(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))]
    )
    groups = [group for group in range(len(starts) - 1) if starts[group] < last and starts[group + 1] > first]
    at, kept = int(starts[groups[0]]) if groups else 0, []
    for batch in file.iter_batches(UNIT_ROWS, row_groups=groups) if groups else ():
        if at >= last:
            break
        skipped = max(0, first - at)
        kept.append(batch.slice(skipped, last - at - skipped))
        at += batch.num_rows
    return pa.Table.from_batches(kept, file.schema_arrow)
