"""Work units of a scoring run: each an input file, or a range of its rows, under one model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.config.paths import parse_location
from pipeline.config.scoring import WhenUnproven
from pipeline.config.tasks import Task
from pipeline.data.parquet_batches import BatchLimits
from pipeline.data.reader import check_schema, read_rows
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.errors import ConfigError, RetryableError
from pipeline.names import is_bucket
from pipeline.publishing.unit_store import Root, list_published_units, split_rows
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.input_cache import InputCache
from pipeline.scoring.inputs import count_rows, find_inputs, input_changed, open_input
from pipeline.scoring.label_store import UnitSource, compute_unit_id
from pipeline.storage.filesystem import list_files
from pipeline.storage.object_store import open_bucket

DATE = "{date}"

# scoring variants, part of unit ids
ALL_TASKS = "all-tasks"
BEST_GUESS = "best-guess"

# Larger files are scored in parts of this size. Fixed, as parts of another size would label rows twice.
UNIT_ROWS = 50_000

# Texts in memory at a time; five times as much as a unit of product descriptions has.
PART_BYTES = 256 * 2**20


class MissingDayError(RetryableError):
    """There are no rows of a logical date yet."""


@dataclass(frozen=True)
class WorkUnit:
    """Rows to score under one model and to publish at once."""

    task: str
    path: str
    digest: str  # of the whole file
    unit_id: str
    part: tuple[int, int] | None  # (first row, one past the last); None: all rows
    rows: int = 0  # 0 also if the file cannot be read
    file_rows: int = 0  # of the whole file
    all_tasks: bool = False  # True: label rows for every task of the model, not for their own only
    duplicates: int = 0  # rows that get an error, as a row of another unit has their row_id
    has_unknown_ids: bool = False  # True: its row_ids could not be compared with those of other units
    listed_sha256: str = ""  # see `InputFile`

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "WorkUnit":
        """Parse the JSON form, which has lists for tuples."""
        return cls(**{**fields, "part": tuple(fields["part"]) if fields["part"] else None})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, in which units reach an actor."""
        return asdict(self)


class Plan(NamedTuple):
    """Work units of all inputs of a run."""

    to_do: list[WorkUnit]
    published: list[WorkUnit]  # an actor checks again before it scores
    inputs: InputCache  # to be saved, so that the next plan reads only new files
    index_name: str  # of the units' manifests


def insert_date(location: Path | str, date: str | None) -> Path | str:
    """Return the location of the rows to score, with the logical date in place of {date}.

    Raises:
        ConfigError: The location has {date} and there is no date, or the other way round.
    """
    has_date = DATE in str(location)
    if date is None:
        if has_date:
            raise ConfigError(
                f"data.to_score has {DATE} and no date was given: {location}; name one with "
                "`relevance score --logical-date`, as 2026-01-31"
            )
        return location
    if not has_date:
        raise ConfigError(
            f"data.to_score has no {DATE} for the logical date: {location}; put {DATE} where the folders of "
            "days differ, or name no date"
        )
    dated: Path | str = parse_location(str(location).replace(DATE, date))
    return dated


def check_day(location: Path | str, date: str) -> None:
    """Check that there are rows of a logical date.

    Raises:
        MissingDayError: The place of the date's rows is absent or empty.
        ConfigError: The folder of all dates does not exist.
    """
    dated = insert_date(location, date)
    if is_bucket(dated):
        is_there = any(not entry.is_hidden for entry in open_bucket(str(dated)).list(""))
    else:
        above = Path(str(location).partition(DATE)[0] + DATE).parent
        if not above.is_dir():
            raise ConfigError(f"{above} is not a folder; point data.to_score at the folder of all dates")
        is_there = any(not path.name.startswith(".") for path in list_files(Path(dated)))
    if not is_there:
        raise MissingDayError(
            f"rows of {date} are missing: {dated} is absent or empty; "
            "run the same command again when they are there"
        )


def plan_units(
    rows_location: Path | str,
    scores_location: Root,
    tasks: Sequence[Task],
    bundle_sha256: str,
    all_tasks: bool = False,
    when_unproven: WhenUnproven = "abstain",
) -> Plan:
    """List the work units of all input files, task by task, in a fixed order."""
    inputs = InputCache(scores_location, rows_location)
    published_ids = list_published_units(scores_location)
    guesses = when_unproven == "best_guess"
    variants = [name for name, is_used in ((ALL_TASKS, all_tasks), (BEST_GUESS, guesses)) if is_used]
    to_do: list[WorkUnit] = []
    published: list[WorkUnit] = []
    for task, files in find_inputs(rows_location, tasks, inputs).items():
        for file, num_rows in zip(files, count_rows(files), strict=True):
            inputs.record(file.path, file.digest, num_rows)
            source = UnitSource(task, file.name, file.digest, bundle_sha256, ENCODER_VERSION)
            # Stores hold large files that were published whole.
            whole_is_published = compute_unit_id(source, variants=variants) in published_ids
            for part in [None] if whole_is_published else split_rows(num_rows, UNIT_ROWS):
                unit = WorkUnit(
                    task=task,
                    path=file.path,
                    digest=file.digest,
                    unit_id=compute_unit_id(source, part, variants),
                    part=part,
                    rows=part[1] - part[0] if part else num_rows,
                    file_rows=num_rows,
                    all_tasks=all_tasks,
                    listed_sha256=file.listed_sha256,
                )
                (published if unit.unit_id in published_ids else to_do).append(unit)
    index_name = "-".join([inputs.name, bundle_sha256[:12], *variants])
    return Plan(to_do, published, inputs, index_name)


def read_unit(unit: WorkUnit) -> Iterator[tuple[pa.Table, int]]:
    """Yield the rows of a unit, in one part if they decode to at most PART_BYTES.

    Yields:
        (rows in ROW_SCHEMA, number of the first one in its file).

    Raises:
        DamagedInputError: The file is damaged, or not what its catalogue lists.
        DataRefusedError: The file has another schema, or see `read_rows`.
        RetryableError: The file changed since the units were planned.
    """
    table = pa.table([pa.array([], kind) for kind in ROW_SCHEMA.types], names=ROW_SCHEMA.names)
    with open_input(unit.path, unit.digest, unit.listed_sha256) as file:
        check_schema(file, unit.path)
        num_rows = file.metadata.num_rows
        # Planned is 0 for a file that could not be read. Another number was wrong in the cache of inputs.
        if num_rows != unit.file_rows and (unit.file_rows or num_rows > UNIT_ROWS):
            raise input_changed(unit.path)
        first, last = unit.part or (0, num_rows)
        limits = BatchLimits(UNIT_ROWS, PART_BYTES)
        for table in read_rows(file, unit.path, rows=(first, last), limits=limits):
            if first + table.num_rows == last:
                break  # the file may change while its last part is scored
            yield table, first
            first += table.num_rows
    yield table, first
