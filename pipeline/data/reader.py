"""Reading contract rows from hive partitions: task=<name>/*.parquet."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.files import file_sha256
from pipeline.config.splits import Split, SplitConfig
from pipeline.config.tasks import Task, check_known_task
from pipeline.data.splits import split_rows
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.schema import ROW_SCHEMA, schema_difference
from pipeline.storage.filesystem import json_sha256


def find_partitions(root: Path, tasks: Sequence[Task]) -> dict[str, list[Path]]:
    """The parquet files under `root` by task name, sorted; hidden files are skipped.

    ConfigError: `root` is absent, or a folder names a task that is not configured. DataRefusedError: there is
    no parquet file. DamagedInputError: something else than a file bears a parquet file's name.
    """
    if not root.is_dir():
        raise ConfigError(
            f"{root} is not a folder; point the config at a folder that holds task=<name>/*.parquet"
        )
    partitions: dict[str, list[Path]] = {}
    for folder in sorted(root.glob("task=*")):
        name = check_known_task(folder.name.removeprefix("task="), tasks, str(root)).name
        files = sorted(p for p in folder.glob("*.parquet") if not p.name.startswith("."))
        for path in files:
            if not path.is_file():
                raise DamagedInputError(f"{path} is not a file; replace it by a parquet file or remove it")
        if files:
            partitions[name] = files
    if not partitions:
        raise DataRefusedError(
            f"{root} holds no task=<name>/*.parquet file; write rows with `relevance import` or "
            "`relevance sample`"
        )
    return partitions


def open_partition(path: Path) -> pq.ParquetFile:
    """An open parquet file with page checksums verified as pages are read; DamagedInputError if it is not
    parquet or not a file.
    """
    if not path.is_file():
        raise DamagedInputError(f"{path} is not a file; replace it by a parquet file or remove it")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(
            f"{path} is not whole parquet ({error}); write it again from its source"
        ) from error


@contextlib.contextmanager
def naming_damage(path: Path | str) -> Iterator[None]:
    """Turns what pyarrow raises over pages of `path` that do not match their checksum, or cannot be decoded,
    into DamagedInputError.
    """
    try:
        yield
    except MemoryError:  # pyarrow's own is an ArrowException too, and no fault of the file
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path} is damaged ({error}); write it again from its source") from error


def check_schema(file: pq.ParquetFile, path: Path | str) -> None:
    """DataRefusedError, naming the differences, if an open file has another schema than the contract's."""
    differences = schema_difference(file.schema_arrow)
    if differences:
        raise DataRefusedError(f"{path} does not follow the row contract: {'; '.join(differences)}")


def read_partition(path: Path) -> pa.Table:
    """All rows of one file in the contract's schema.

    DamagedInputError: not whole parquet, or text that is not UTF-8. DataRefusedError: another schema than the
    contract's.
    """
    with open_partition(path) as file:
        check_schema(file, path)
        with naming_damage(path):
            table = file.read()
            table.validate(full=True)
    # files may differ in which columns they declare nullable, and such tables do not concatenate
    return pa.table(table.columns, names=ROW_SCHEMA.names)


def data_digest(partitions: Mapping[str, Sequence[Path]]) -> str:
    """One hex sha256 for a set of partitions: moves when a file's bytes or task move, not when a folder is
    renamed.
    """
    return json_sha256(
        {task: sorted(file_sha256(path) for path in paths) for task, paths in partitions.items()}
    )


def read_split(root: Path, tasks: Sequence[Task], config: SplitConfig, side: Split) -> dict[str, pa.Table]:
    """The judged rows of one side by task name, in the order of their files; tasks without a row are left
    out.
    """
    tables: dict[str, pa.Table] = {}
    for name, paths in find_partitions(root, tasks).items():
        whole = pa.concat_tables([read_partition(path) for path in paths])
        judged = whole.filter(pc.is_valid(whole.column("label")))
        rows = judged.filter(pa.array(split_rows(judged.column("query").to_pylist(), config) == side))
        if rows.num_rows:
            tables[name] = rows
    return tables
