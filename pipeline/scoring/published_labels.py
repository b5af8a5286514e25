"""Stream of published labels in bounded memory, one of each row_id, task and model.

In memory are the files of one unit, 0.5 KB for each unit, and the digests of one part (`key_digests.py`). On
the disk are 25 bytes for each label.

Shape legend: N labels, C labels of a chunk.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.publishing.unit_store import (
    PublishedFile,
    Root,
    list_json_keys,
    open_table,
    read_manifests,
    read_stored,
)
from pipeline.runtime.run_log import utc_text
from pipeline.scoring.key_digests import DigestParts, create_file_array, row_id_digests
from pipeline.scoring.unit_manifest import UnitInput, UnitManifest
from pipeline.storage.object_store import Store, open_store

# columns with few values, which parquet files and tables in memory hold as numbers of a dictionary
CONSTANT_COLUMNS = ("task", "label_name", "decision", "decision_basis", "model_version", "bundle_sha256")

LABEL_SCHEMA = pa.schema(
    field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.name in CONSTANT_COLUMNS else field
    for field in SCORE_SCHEMA
)

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class LabelUnit:
    """Files and origin of a unit's labels; a manifest without its profiles, as thousands are in memory."""

    unit_id: str
    published_at: str  # empty: recorded manifests may lack it
    bundle_sha256: str
    tasks: tuple[str, ...]
    input: UnitInput
    label_files: tuple[PublishedFile, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "LabelUnit":
        """Parse a manifest."""
        manifest = UnitManifest.from_json(fields)
        return cls(
            unit_id=manifest.unit_id,
            published_at=manifest.published_at,
            bundle_sha256=manifest.bundle_sha256,
            tasks=manifest.tasks,
            input=manifest.input,
            label_files=manifest.label_files,
        )

    @property
    def num_labels(self) -> int:
        """Number of labels in the files."""
        return sum(file.rows for file in self.label_files)


@dataclass(frozen=True)
class LabelSelection:
    """Labels to read; None: all."""

    run: str | None = None  # labels of this run's inputs, those published before the run included
    task: str | None = None
    since: datetime | None = None  # labels published then or later; without a zone it is UTC
    bundle_sha256: str | None = None


class PublishedLabels:
    """Published labels, in the order of their publication.

    Of labels with the same row_id, task and model the one published first is kept. Labels since a time and
    labels before it are together all labels, once no unit with an earlier time is still being published.

    Attributes:
        store: The store of all labels.
        units: Units of the selection, in the order of their publication.
        num_published: Number of selected units, those published before `since` included.
    """

    def __init__(
        self, place: Root, selection: LabelSelection | None = None, scratch_dir: Path | None = None
    ) -> None:
        """Read the manifests, and the keys of all labels of the selection.

        Args:
            place: The location of all scores.
            selection: Labels to read; None: all.
            scratch_dir: Folder of temporary files; None: the system's.

        Raises:
            ConfigError: There is no such run or task.
            DamagedInputError: A manifest or a file that it names is missing or altered.
        """
        self.store = open_store(place)
        self._task = selection.task if selection else None
        units = _select_units(self.store, selection or LabelSelection())
        self.num_published = len(units)
        since = _since_text(selection)
        self.units = [unit for unit in units if unit.published_at >= since]
        kinds = {(unit.bundle_sha256, task) for unit in self.units for task in unit.tasks}
        # labels published before `since` keep their row_ids
        compared = [unit for unit in units if kinds & {(unit.bundle_sha256, task) for task in unit.tasks}]
        starts = np.cumsum([0, *(unit.num_labels for unit in compared)]).tolist()
        self._starts = dict(zip((unit.unit_id for unit in compared), starts, strict=False))
        self._is_repeated_N = create_file_array((starts[-1],), "?", scratch_dir)
        self._find_repeated(compared, scratch_dir)

    @property
    def num_labels(self) -> int:
        """Number of labels of the selected units, repeated ones and those of other tasks included."""
        return sum(unit.num_labels for unit in self.units)

    def batches(
        self, columns: Sequence[str] = tuple(LABEL_SCHEMA.names), batch_rows: int = BATCH_ROWS
    ) -> Iterator[tuple[LabelUnit, pa.Table]]:
        """Yield the labels of each unit, in batches of at most `batch_rows`, in LABEL_SCHEMA.

        Raises:
            DamagedInputError: A file that a manifest names is missing or altered.
        """
        names = [name for name in LABEL_SCHEMA.names if name in columns or name == "task"]
        for unit in self.units:
            row = self._starts[unit.unit_id]
            for table in _read_batches(self.store, unit, names, batch_rows):
                is_kept = pa.array(~self._is_repeated_N[row : row + table.num_rows])
                row += table.num_rows
                if self._task is not None:
                    is_kept = pc.and_(is_kept, pc.equal(table["task"].cast(pa.string()), self._task))
                yield unit, table.filter(is_kept).select(columns)

    def _find_repeated(self, units: Sequence[LabelUnit], scratch_dir: Path | None) -> None:
        parts = DigestParts(len(self._is_repeated_N), scratch_dir)
        for unit in units:
            row = self._starts[unit.unit_id]
            for table in _read_batches(self.store, unit, ["row_id", "task"], BATCH_ROWS):
                parts.add(row, _label_digests(table, unit.bundle_sha256))
                row += table.num_rows
        for key_R, position_R in parts.find_repeated():
            self._is_repeated_N[position_R[1:][key_R[1:] == key_R[:-1]]] = True
        parts.close()


def read_table(place: Root, selection: LabelSelection) -> pa.Table:
    """Return published labels as one table in SCORE_SCHEMA; see `PublishedLabels`."""
    tables = [table.cast(SCORE_SCHEMA) for _, table in PublishedLabels(place, selection).batches()]
    return pa.concat_tables([SCORE_SCHEMA.empty_table(), *tables])


def iter_published(
    place: Root,
    columns: Sequence[str] = tuple(LABEL_SCHEMA.names),
    batch_rows: int = BATCH_ROWS,
    selection: LabelSelection | None = None,
) -> Iterator[pa.Table]:
    """Yield published labels in bounded batches, see `PublishedLabels`. Memory: see the top of this file.

    Args:
        place: The location of all scores, a folder or s3://bucket/prefix.
        columns: Columns of LABEL_SCHEMA, in the order to return.
        batch_rows: Rows of a table at most.
        selection: Labels to read; None: all.

    Raises:
        ConfigError: There is no such column, run or task.
        DamagedInputError: A manifest or a file that it names is missing or altered.
    """
    for name in columns:
        if name not in LABEL_SCHEMA.names:
            raise ConfigError(f"column unknown: {name}; labels have {', '.join(LABEL_SCHEMA.names)}")
    for _, table in PublishedLabels(place, selection).batches(columns, batch_rows):
        if table.num_rows:
            yield table


def parse_time(text: str) -> datetime:
    """Return a time, given as 2026-01-31 or 2026-01-31T12:00:00; in UTC if it names no zone.

    Raises:
        ConfigError: It is not a time.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"time not readable: {text!r}; write it as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from error


def _since_text(selection: LabelSelection | None) -> str:
    """Return the first time of publication that is selected, as manifests have it; empty: any."""
    if selection is None or selection.since is None:
        return ""
    since = selection.since
    return utc_text((since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp())


def _select_units(store: Store, selection: LabelSelection) -> list[LabelUnit]:
    """Return the units of a run, a task and a model, in the order of their publication."""
    run_units = _units_of_run(store, selection.run) if selection.run is not None else None
    units = read_manifests(store, LabelUnit.from_json, run_units)
    if selection.task is not None:
        tasks = sorted({task for unit in units for task in unit.tasks})
        if selection.task not in tasks:
            raise ConfigError(f"task has no labels: {selection.task}; {_suggest(selection.task, tasks)}")
        units = [unit for unit in units if selection.task in unit.tasks]
    if selection.bundle_sha256 is not None:
        units = [unit for unit in units if unit.bundle_sha256 == selection.bundle_sha256]
    return sorted(units, key=lambda unit: (unit.published_at, unit.unit_id))


def _units_of_run(store: Store, run: str) -> list[str]:
    names = [key.removeprefix("runs/").removesuffix(".json") for key in list_json_keys(store, "runs")]
    if run not in names:
        raise ConfigError(f"run not found in {store.location}: {run}; {_suggest(run, names)}")
    return read_stored(
        store,
        f"runs/{run}.json",
        lambda record: list(map(str, record["partitions"])),
        "scoring record",
    )


def _suggest(name: str, known: Sequence[str]) -> str:
    """Return the name that is nearest to an unknown one, or the last ones."""
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {near[0]}?"
    return f"there are {len(known)}, the last: {', '.join(known[-5:])}" if known else "there is none"


def _read_batches(store: Store, unit: LabelUnit, names: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
    """Yield all labels of a unit with some columns of LABEL_SCHEMA."""
    schema = pa.schema([LABEL_SCHEMA.field(name) for name in names])
    for label_file in unit.label_files:
        with open_table(store, unit.unit_id, label_file, CONSTANT_COLUMNS) as file:
            present = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_rows, columns=present):
                columns = [
                    batch[field.name].cast(field.type)
                    if field.name in present
                    else pa.nulls(batch.num_rows, field.type)
                    for field in schema
                ]
                yield pa.Table.from_arrays(columns, schema=schema)


def _label_digests(table: pa.Table, bundle_sha256: str) -> np.ndarray:
    """Return (C, 2) digests of row_id, task and model."""
    digest_C2 = np.zeros((table.num_rows, 2), "<u8")
    task_C = table["task"].to_numpy()
    row_ids = table["row_id"]
    for task in np.unique(task_C.astype(str)):
        offset = np.flatnonzero(task_C == task)
        salt = f"{bundle_sha256}\0{task}".encode()
        digest_C2[offset] = row_id_digests(row_ids.take(pa.array(offset)).to_pylist(), salt)
    return digest_C2
