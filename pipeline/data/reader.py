"""Read contract rows from hive partitions: task=<name>/*.parquet."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.splits import Split, SplitConfig
from pipeline.config.tasks import Task, check_known_task
from pipeline.data.catalog import find_files
from pipeline.data.parquet_batches import (
    DEFAULT_LIMITS,
    NOT_PARQUET,
    BatchFile,
    BatchLimits,
    read_batches,
    translate_read_errors,
)
from pipeline.data.row_conversion import convert_rows
from pipeline.data.splits import assign_splits
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.schema import ROW_SCHEMA, schema_differences
from pipeline.storage.filesystem import cached_sha256, json_sha256

logger = logging.getLogger(__name__)


def find_partitions(
    root: Path, tasks: Sequence[Task], sha256: Callable[[Path], str] = cached_sha256
) -> dict[str, list[Path]]:
    """Return the parquet files of a data folder by task name, sorted; entries that are not read are logged.

    Args:
        root: The data folder.
        tasks: The configured tasks.
        sha256: Returns the digest of a file that the folder's catalogue lists.

    Raises:
        ConfigError: `root` does not exist, or a folder names a task that is not configured.
        DataRefusedError: There is no parquet file, or one that the folder's catalogue does not list.
        DamagedInputError: An entry named *.parquet is not a file, or is not as the catalogue lists it.
    """
    if not root.is_dir():
        raise ConfigError(
            f"{root} is not a folder; point the config at a folder that holds task=<name>/*.parquet"
        )
    files = find_files(root, sha256)
    skipped = files.describe_skipped(str(root))
    log_once(skipped)
    partitions = {
        check_known_task(name, tasks, str(root)).name: [root / path for path in paths]
        for name, paths in files.by_task.items()
    }
    for path in (path for paths in partitions.values() for path in paths):
        if not path.is_file():
            raise DamagedInputError(f"{path} is not a file; replace it by a parquet file or remove it")
    if not partitions:
        raise DataRefusedError(no_rows_message(str(root), skipped))
    return partitions


def no_rows_message(where: str, skipped: str) -> str:
    """Return the message about a data place without a file of rows."""
    cure = "write rows with `relevance import` or `relevance sample`"
    return f"{where} holds no task=<name>/*.parquet file; {cure}" + (f" ({skipped})" if skipped else "")


@functools.lru_cache(maxsize=1_000)
def log_once(message: str) -> None:
    """Log a warning, once per process; an empty one not at all."""
    if message:
        logger.warning(message)


def open_partition(path: Path) -> BatchFile:
    """Open a parquet file for `read_rows`.

    Raises:
        DamagedInputError: The path is not a file, or not whole parquet.
    """
    if not path.is_file():
        raise DamagedInputError(f"{path} is not a file; replace it by a parquet file or remove it")
    with translate_read_errors(path, NOT_PARQUET):
        return BatchFile(path)


def check_schema(file: BatchFile, path: Path | str) -> None:
    """Raise DataRefusedError with the differences if the schema of an open file is not the contract's."""
    differences = schema_differences(file.schema_arrow)
    if differences:
        raise DataRefusedError(f"{path} does not follow the row contract: {'; '.join(differences)}")


def read_rows(
    file: BatchFile,
    path: Path | str,
    columns: Sequence[str] = tuple(ROW_SCHEMA.names),
    rows: tuple[int, int] | None = None,
    limits: BatchLimits = DEFAULT_LIMITS,
    check_text: bool = True,
) -> Iterator[pa.Table]:
    """Yield the rows of an open file with the contract's columns and types, in batches of bounded size.

    Args:
        file: From `open_partition`, with a schema that `check_schema` accepts.
        path: Its name in messages.
        columns: Columns of the contract.
        rows: (first row, one past the last); None: all.
        limits: Of each batch.
        check_text: True to refuse text that is not UTF-8.

    Raises:
        DamagedInputError: A page is damaged, or holds text that is not UTF-8.
        DataRefusedError: A value does not convert without loss, or a row or the file is too large.
    """
    number = rows[0] if rows else 0
    present = [name for name in columns if name in file.schema_arrow.names]
    for batch in read_batches(file, path, present, rows, limits):
        table = convert_rows(batch, columns, path, number)
        if check_text:
            with translate_read_errors(path):
                table.validate(full=True)
        yield table
        number += batch.num_rows


def read_partition(path: Path) -> pa.Table:
    """Return all rows of one file in the contract's schema.

    Raises:
        DamagedInputError: The file is not whole parquet, or holds text that is not UTF-8.
        DataRefusedError: The file has another schema, or see `read_rows`.
    """
    with open_partition(path) as file:
        check_schema(file, path)
        # files may declare different columns nullable, and such tables do not concatenate
        empty = pa.table([pa.array([], kind) for kind in ROW_SCHEMA.types], names=ROW_SCHEMA.names)
        return pa.concat_tables([empty, *read_rows(file, path)])


def data_digest(partitions: Mapping[str, Sequence[Path]]) -> str:
    """Return a hex sha256 of the bytes of partitions and of their tasks, independent of paths."""
    return json_sha256(
        {task: sorted(cached_sha256(path) for path in paths) for task, paths in partitions.items()}
    )


def read_split(root: Path, tasks: Sequence[Task], config: SplitConfig, split: Split) -> dict[str, pa.Table]:
    """Return the labeled rows of one split by task name, in the order of their files.

    Tasks without a row are left out.
    """
    tables: dict[str, pa.Table] = {}
    for name, paths in find_partitions(root, tasks).items():
        parts = [part for path in paths for part in _labeled_rows(path, config, split)]
        if parts:
            tables[name] = pa.concat_tables(parts)
    return tables


def _labeled_rows(path: Path, config: SplitConfig, split: Split) -> Iterator[pa.Table]:
    """Yield the labeled rows of one split in a file."""
    with open_partition(path) as file:
        check_schema(file, path)
        for table in read_rows(file, path):
            labeled_rows = table.filter(pc.is_valid(table.column("label")))
            split_N = assign_splits(labeled_rows.column("query").to_pylist(), config)
            rows = labeled_rows.filter(pa.array(split_N == split))
            if rows.num_rows:
                yield rows
