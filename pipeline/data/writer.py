"""Write contract rows: parquet files, whole or absent, in exactly the contract's schema."""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from models.files import atomic_writer, remove_tree, sync_file
from pipeline.data.row_conversion import cast_values
from pipeline.data.staging import StagingFolder
from pipeline.errors import DataRefusedError
from pipeline.names import check_name
from pipeline.runtime.progress import ProgressBar, SilentBar
from pipeline.schema import COLUMNS, ROW_SCHEMA, Column

ROWS_PER_GROUP = 65_536  # a reader holds this many rows: about 100 MB of product text

BYTES_PER_GROUP = 128 * 2**20  # of Arrow memory: long texts make smaller row groups

# scoring publishes file by file: a lost machine costs at most this many rows
ROWS_PER_PARTITION = 16 * ROWS_PER_GROUP

_ORDER = [("query", "ascending"), ("row_id", "ascending")]


def build_contract_rows(table: pa.Table) -> pa.Table:
    """Return `table` in exactly ROW_SCHEMA: ordered, cast, missing nullable columns null.

    Raises:
        DataRefusedError: A required column is missing or holds null, a column is not in the contract, or a
            value does not fit its type.
    """
    missing = [c.name for c in COLUMNS if c.name not in table.column_names and not c.nullable]
    unknown = [name for name in table.column_names if name not in ROW_SCHEMA.names]
    if missing or unknown:
        difference = f"missing columns {missing}, unknown columns {unknown}"
        raise DataRefusedError(f"rows do not follow the row contract: {difference}; see pipeline/schema.py")
    rows = pa.table([_build_column(table, column) for column in COLUMNS], schema=ROW_SCHEMA)
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataRefusedError(
            f"rows hold text that is not UTF-8 ({error}); clean it before writing"
        ) from error
    return rows


def _build_column(table: pa.Table, column: Column) -> pa.ChunkedArray | pa.Array:
    """Return a column of the contract from `table`."""
    if column.name not in table.column_names:
        return pa.nulls(table.num_rows, column.type)
    values = table[column.name]
    if values.null_count and not column.nullable:
        raise DataRefusedError(
            f"column {column.name} holds {values.null_count} nulls; the row contract needs a value everywhere"
        )
    try:
        return cast_values(values, column.type)
    except (pa.ArrowException, ValueError) as error:
        raise DataRefusedError(
            f"column {column.name} does not fit {column.type} ({error}); see pipeline/schema.py"
        ) from error


def write_tables(tables: Iterable[pa.Table], path: Path) -> int:
    """Replace the parquet file `path` with the rows of `tables`, and return their number.

    One table is in memory at a time. The same tables give the same bytes, with a checksum on every page.
    Readers see the old file or the new one, never a part; if `tables` raises, the old file stays.

    Raises:
        DataRefusedError: See `build_contract_rows`.
    """
    num_rows = 0
    with atomic_writer(path) as file, _open_writer(file) as writer:
        for table in tables:
            writer.write_table(build_contract_rows(table), row_group_size=ROWS_PER_GROUP)
            num_rows += table.num_rows
    return num_rows


def write_partition(table: pa.Table, path: Path) -> None:
    """Replace the parquet file `path` with the rows of `table`; see `write_tables`."""
    write_tables((table,), path)


class StagedRows:
    """Rows of several tasks, written beside a data folder and made visible together by `publish`.

    Use it as a context: rows that were not published are deleted at its end.

    - Rows become task=<name>/<stem>-<n>.<digest>.parquet of ROWS_PER_PARTITION rows.
    - Each row group of ROWS_PER_GROUP rows (fewer if texts are long) is sorted by query, then row_id. Groups
      keep the order in which rows came, so only a task that fits one group is sorted as a whole.
    - Memory holds one row group per task. The same rows in the same order give the same bytes.

    Args:
        out_dir: The data place, a folder or a bucket.
        stem: Beginning of the file names.
        bar: Shows the number of rows written.

    Raises:
        ConfigError: `out_dir` is a file, or a name breaks the name rule.
    """

    def __init__(self, out_dir: Path | str, stem: str = "part", bar: ProgressBar | None = None) -> None:
        self._staging = StagingFolder(out_dir, stem)
        self.dir = self._staging.dir
        self._writers: dict[str, _TaskWriter] = {}
        self._bar = bar or SilentBar()
        self._num_rows = 0

    def __enter__(self) -> "StagedRows":
        self._staging.__enter__()
        self._bar.update(0)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.discard_rows()
        finally:
            self._staging.__exit__()

    def write(self, task: str, table: pa.Table) -> None:
        """Add rows to a task; raise DataRefusedError as `build_contract_rows` does."""
        if task not in self._writers:
            self._writers[task] = _TaskWriter(
                self.dir / f"task={check_name(task, 'task')}", self._staging.stem
            )
        self._writers[task].write(build_contract_rows(table))
        self._num_rows += table.num_rows
        self._bar.update(self._num_rows)

    def discard_rows(self) -> None:
        """Delete all staged rows; other staged files stay."""
        for writer in self._writers.values():
            writer.discard()
            remove_tree(writer.folder)
        self._writers, self._num_rows = {}, 0

    def publish(self, extras: Sequence[str] = (), tasks: Collection[str] = ()) -> dict[str, int]:
        """Replace the rows of the same stem, task by task, and return the number of rows by task.

        A task without rows gets no file; see `StagingFolder.publish`.
        """
        num_rows = {task: writer.finish() for task, writer in self._writers.items()}
        self._staging.publish(extras, tasks)
        return num_rows


class _TaskWriter:
    """Writer of the partitions of one task, with one row group in memory."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self._stem = folder, stem
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._bytes_waiting = 0
        self._num_partitions = self._rows_in_partition = self._num_rows = 0
        self._file: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Add contract rows."""
        for start in range(0, rows.num_rows, ROWS_PER_GROUP):
            part = rows.slice(start, ROWS_PER_GROUP)
            if self._num_waiting + part.num_rows > ROWS_PER_GROUP:
                self._write_group()
            self._waiting.append(part)
            self._num_waiting += part.num_rows
            self._bytes_waiting += part.nbytes
            if self._bytes_waiting >= BYTES_PER_GROUP:
                self._write_group()

    def finish(self) -> int:
        """Write the waiting rows and return the number of all rows."""
        self._write_group()
        self._close()
        return self._num_rows

    def discard(self) -> None:
        """Close the open partition without waiting for the disk, which may be full."""
        with contextlib.suppress(OSError):
            self._close(sync=False)

    def _close(self, sync: bool = True) -> None:
        writer, file = self._writer, self._file
        self._writer = self._file = None
        if writer and file:
            with file:
                writer.close()
                if sync:
                    sync_file(file)

    def _write_group(self) -> None:
        if not self._num_waiting:
            return
        rows = pa.concat_tables(self._waiting).sort_by(_ORDER)
        self._waiting, self._num_waiting, self._bytes_waiting = [], 0, 0
        if self._writer and self._rows_in_partition + rows.num_rows > ROWS_PER_PARTITION:
            self._close()
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"{self._stem}-{self._num_partitions}.parquet").open("wb")
            self._writer = _open_writer(self._file, sorted_groups=True)
            self._num_partitions, self._rows_in_partition = self._num_partitions + 1, 0
        self._writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
        self._rows_in_partition += rows.num_rows
        self._num_rows += rows.num_rows


def _open_writer(file: IO[bytes], sorted_groups: bool = False) -> pq.ParquetWriter:
    order = pq.SortingColumn.from_ordering(ROW_SCHEMA, _ORDER) if sorted_groups else None
    return pq.ParquetWriter(
        file,
        ROW_SCHEMA,
        compression="zstd",
        write_page_checksum=True,
        write_statistics=True,
        sorting_columns=order,
    )
