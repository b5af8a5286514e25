"""Writing contract rows: parquet files, whole or absent, in exactly the contract's schema."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.catalog import catalogue_lock, describe_partition, read_catalogue, update_catalogue
from pipeline.errors import ConfigError, DataRefusedError
from pipeline.names import check_name
from pipeline.schema import COLUMNS, ROW_SCHEMA
from pipeline.storage.filesystem import remove_tree, replacing, sync_dir, temporary_beside

ROWS_PER_GROUP = 65_536  # rows a reader must hold at once: about 100 MB of product text

BYTES_PER_GROUP = 128 * 2**20  # of Arrow memory: where texts are long, a row group ends before it is full

# scoring commits partition by partition: this many rows are lost with a machine at most
ROWS_PER_PARTITION = 16 * ROWS_PER_GROUP

OnRows = Callable[[int], None]  # rows taken up so far

_ORDER = [("query", "ascending"), ("row_id", "ascending")]


def build_contract_rows(table: pa.Table) -> pa.Table:
    """`table` in exactly ROW_SCHEMA: columns ordered and cast, nullable columns that are absent filled with
    null.

    DataRefusedError: a required column is absent or holds null, a column is not in the contract, or a value
    does not fit its type.
    """
    missing = [c.name for c in COLUMNS if c.name not in table.column_names and not c.nullable]
    unknown = [name for name in table.column_names if name not in ROW_SCHEMA.names]
    if missing or unknown:
        difference = f"missing columns {missing}, unknown columns {unknown}"
        raise DataRefusedError(f"rows do not follow the row contract: {difference}; see pipeline/schema.py")
    columns = []
    for column in COLUMNS:
        values = (
            table[column.name] if column.name in table.column_names else pa.nulls(table.num_rows, column.type)
        )
        if values.null_count and not column.nullable:
            nulls = f"holds {values.null_count} nulls"
            raise DataRefusedError(
                f"column {column.name} {nulls}; the row contract wants a value in every row"
            )
        try:
            columns.append(pc.cast(values, column.type))
        except (pa.ArrowException, ValueError) as error:
            raise DataRefusedError(
                f"column {column.name} does not fit {column.type} ({error}); see pipeline/schema.py"
            ) from error
    rows = pa.table(columns, schema=ROW_SCHEMA)
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataRefusedError(
            f"rows hold text that is not UTF-8 ({error}); clean it before it is written"
        ) from error
    return rows


def write_tables(tables: Iterable[pa.Table], path: Path) -> int:
    """Replace the parquet file `path` by the rows of `tables` in their order, one table in memory at a time;
    the number of rows written.

    zstd, a checksum on every page, and the same bytes for the same tables. Readers see the old file or the
    new one, never a part; when `tables` raises, the old file stays. DataRefusedError as
    `build_contract_rows`.
    """
    num_rows = 0
    with replacing(path) as file, _open_writer(file) as writer:
        for table in tables:
            writer.write_table(build_contract_rows(table), row_group_size=ROWS_PER_GROUP)
            num_rows += table.num_rows
    return num_rows


def write_partition(table: pa.Table, path: Path) -> None:
    """Replace the parquet file `path` by the rows of `table`; see `write_tables`."""
    write_tables((table,), path)


class StagedRows:
    """Rows of any number of tasks on their way into a data folder: written beside it, visible together when
    `publish` is called.

    Rows become task=<name>/<stem>-<n>.parquet of ROWS_PER_PARTITION rows. Each row group of ROWS_PER_GROUP
    rows (fewer where texts are long) is sorted by query, then row_id; the groups lie in the order the rows
    came, so only a task that fits one group is sorted as a whole. Memory holds one row group a task, whatever
    the number of rows. The same rows in the same order give the same bytes. As a context: what was not
    published is gone when it ends. ConfigError: `out_dir` is a file, or a name breaks the name rule.
    """

    def __init__(self, out_dir: Path, stem: str = "part", on_rows: OnRows | None = None) -> None:
        if out_dir.exists() and not out_dir.is_dir():
            raise ConfigError(f"{out_dir} is not a folder; name a folder for task=<name>/{stem}-0.parquet")
        self.out_dir, self.stem = out_dir, check_name(stem, "source")
        self.dir = temporary_beside(out_dir / "import")
        self._writers: dict[str, _TaskWriter] = {}
        self._on_rows = on_rows or (lambda _: None)
        self._num_rows = 0

    def __enter__(self) -> "StagedRows":
        self.dir.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.discard_rows()
        remove_tree(self.dir)

    def write(self, task: str, table: pa.Table) -> None:
        """Add rows to a task. DataRefusedError as `build_contract_rows`."""
        if task not in self._writers:
            self._writers[task] = _TaskWriter(self.dir / f"task={check_name(task, 'task')}", self.stem)
        self._writers[task].write(build_contract_rows(table))
        self._num_rows += table.num_rows
        self._on_rows(self._num_rows)

    def discard_rows(self) -> None:
        """Forget all rows; other files that were staged stay."""
        for writer in self._writers.values():
            writer.close()
            remove_tree(writer.folder)
        self._writers, self._num_rows = {}, 0

    def publish(self, extras: Sequence[str] = ()) -> dict[str, int]:
        """Put the staged rows in place of those of the same stem, task by task; the number of rows by task.

        A task without rows gets no file; tasks not named and files of other stems stay. `extras` are further
        files, by their path in both folders: moved if staged, removed if not. The catalogue is written last.
        """
        num_rows = {task: writer.finish() for task, writer in self._writers.items()}
        with catalogue_lock(self.out_dir):
            read_catalogue(self.out_dir)  # a damaged one is found out before rows change
            partitions = [
                describe_partition(self.dir, path) for path in sorted(self.dir.glob("task=*/*.parquet"))
            ]
            for folder in sorted(self.dir.glob("task=*")):
                self._replace_folder(folder, self.out_dir / folder.name)
            for name in extras:
                _replace_file(self.dir / name, self.out_dir / name)
            update_catalogue(self.out_dir, partitions)
        return num_rows

    def _replace_folder(self, staged: Path, final: Path) -> None:
        """Move partitions into place and remove those of an earlier import that had more."""
        names = {path.name for path in staged.iterdir()}
        final.mkdir(exist_ok=True)
        for name in sorted(names):
            (staged / name).replace(final / name)
        for path in final.glob(f"{self.stem}-*.parquet"):
            if (
                path.name.removeprefix(f"{self.stem}-").removesuffix(".parquet").isdigit()
                and path.name not in names
            ):
                path.unlink()
        sync_dir(final)


class _TaskWriter:
    """The partitions of one task, one row group in memory."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self._stem = folder, stem
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._bytes_waiting = self._num_partitions = self._rows_in_partition = (
            self._num_rows
        ) = 0
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
        """Write what waits; the number of rows in all."""
        self._write_group()
        self.close()
        return self._num_rows

    def close(self) -> None:
        """Close the partition that is being written."""
        if self._writer and self._file:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._writer = self._file = None

    def _write_group(self) -> None:
        if not self._num_waiting:
            return
        rows = pa.concat_tables(self._waiting).sort_by(_ORDER)
        self._waiting, self._num_waiting, self._bytes_waiting = [], 0, 0
        if self._writer and self._rows_in_partition + rows.num_rows > ROWS_PER_PARTITION:
            self.close()
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


def _replace_file(staged: Path, final: Path) -> None:
    """Move a staged file into place; where none was staged, remove what an earlier import left."""
    if staged.exists():
        final.parent.mkdir(exist_ok=True)
        staged.replace(final)
        sync_dir(final.parent)
    else:
        final.unlink(missing_ok=True)
