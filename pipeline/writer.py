"""Writing contract rows: one parquet file, whole or absent, in exactly the contract's schema."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DataRefusedError
from pipeline.files import check_name, remove_tree, replacing, sync_dir, temporary_beside
from pipeline.schema import COLUMNS, ROW_SCHEMA

ROWS_PER_GROUP = 65_536  # rows a reader must hold at once: about 100 MB of product text


def build_contract_rows(table: pa.Table) -> pa.Table:
    """`table` in exactly ROW_SCHEMA: columns ordered and cast, nullable columns that are absent filled with null.

    DataRefusedError: a required column is absent or holds null, a column is not in the contract, or a value does not fit its type.
    """
    missing = [c.name for c in COLUMNS if c.name not in table.column_names and not c.nullable]
    unknown = [name for name in table.column_names if name not in ROW_SCHEMA.names]
    if missing or unknown:
        difference = f"missing columns {missing}, unknown columns {unknown}"
        raise DataRefusedError(f"rows do not follow the row contract: {difference}; see pipeline/schema.py")
    columns = []
    for column in COLUMNS:
        values = table[column.name] if column.name in table.column_names else pa.nulls(table.num_rows, column.type)
        if values.null_count and not column.nullable:
            nulls = f"holds {values.null_count} nulls"
            raise DataRefusedError(f"column {column.name} {nulls}; the row contract wants a value in every row")
        try:
            columns.append(pc.cast(values, column.type))
        except (pa.ArrowException, ValueError) as error:
            raise DataRefusedError(f"column {column.name} does not fit {column.type} ({error}); see pipeline/schema.py") from error
    rows = pa.table(columns, schema=ROW_SCHEMA)
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataRefusedError(f"rows hold text that is not UTF-8 ({error}); clean it before it is written") from error
    return rows


def write_tables(tables: Iterable[pa.Table], path: Path) -> int:
    """Replace the parquet file `path` by the rows of `tables`, one table in memory at a time; the number of rows written.

    zstd, a checksum on every page, and the same bytes for the same tables. Readers see the old file or the new one, never a part;
    when `tables` raises, the old file stays. DataRefusedError as `build_contract_rows`.
    """
    num_rows = 0
    with replacing(path) as file, pq.ParquetWriter(file, ROW_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(build_contract_rows(table), row_group_size=ROWS_PER_GROUP)
            num_rows += table.num_rows
    return num_rows


def write_partition(table: pa.Table, path: Path) -> None:
    """Replace the parquet file `path` by the rows of `table`; see `write_tables`."""
    write_tables((table,), path)


def publish_tasks(tables: Mapping[str, Iterable[pa.Table]], out_dir: Path) -> dict[str, int]:
    """Replace task=<name>/part-0.parquet in `out_dir` for every task named; the number of rows by task.

    All files are written before the first is visible. A task without rows gets no file; tasks not named stay as they are.
    ConfigError: `out_dir` is a file, or a name breaks the name rule. DataRefusedError as `build_contract_rows`.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"{out_dir} is not a folder; name a folder for task=<name>/part-0.parquet")
    staged_dir = temporary_beside(out_dir / "tasks")
    try:
        files = {task: f"task={check_name(task, 'task')}/part-0.parquet" for task in tables}
        num_rows = {task: write_tables(tables[task], staged_dir / file) for task, file in files.items()}
        for task, file in files.items():
            if num_rows[task]:
                final = out_dir / file
                final.parent.mkdir(exist_ok=True)
                (staged_dir / file).replace(final)
                sync_dir(final.parent)
    finally:
        remove_tree(staged_dir)
    return num_rows
