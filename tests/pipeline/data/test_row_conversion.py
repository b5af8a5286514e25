"""Files of other writers: what converts without loss is read, everything else is named with its cure."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.files import file_sha256
from pipeline.config.tasks import Task
from pipeline.data.importers.table import TableSource, import_table
from pipeline.data.reader import read_partition
from pipeline.data.row_files import RowFile
from pipeline.data.writer import write_partition
from pipeline.errors import DataRefusedError
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.work_units import WorkUnit, read_unit
from tests.support.imported import imported
from validation.gate.file_checks import FileJob, FileVerdict, check_file

TASK = Task(name="two", labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")

N = 40

COLUMNS: dict[str, list[Any]] = {
    "row_id": [f"r{n}" for n in range(N)],
    "query": [f"Größe {n}" for n in range(N)],
    "ad_title": [f"title {n % 7}" for n in range(N)],
    "market": ["us"] * N,
    "label": [n % 2 for n in range(N)],
}

MAPPING = {
    "kind": "table",
    "task": "two",
    "columns": {name: name for name in ("row_id", "query", "ad_title", "market", "label")},
}


def _table(kind: pa.DataType | None = None, label: Any = None) -> pa.Table:
    texts = [pa.array(COLUMNS[name]) for name in list(COLUMNS)[:4]]
    labels = pa.array(COLUMNS["label"]) if label is None else label
    return pa.table([*(text.cast(kind) if kind else text for text in texts), labels], names=list(COLUMNS))


def _pandas(path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(COLUMNS).astype({"label": float, "query": "category"})
    frame.assign(weight=None, ad_keyword=None).to_parquet(path, index=False)


def _polars(path: Path) -> None:
    import polars

    polars.DataFrame(COLUMNS).write_parquet(path)


def _duckdb(path: Path) -> None:
    import duckdb

    rows = _table()  # noqa: F841  duckdb finds it by its name
    duckdb.sql(f"COPY (SELECT *, NULL AS weight FROM rows) TO '{path}' (FORMAT parquet)")


def _spark(path: Path) -> None:
    """Optional columns, another order, text that is not marked as text, and a marker beside the file."""
    table = _table(pa.binary(), pa.array(COLUMNS["label"], pa.int64())).select(list(COLUMNS)[::-1])
    options: dict[str, Any] = {"compression": "gzip", "version": "1.0", "use_compliant_nested_type": False}
    pq.write_table(table, path, store_schema=False, **options)
    (path.parent / "_SUCCESS").touch()


def _bigquery(path: Path) -> None:
    numeric = pa.array([Decimal(n) for n in COLUMNS["label"]], pa.decimal128(38, 9))
    required = pa.schema([pa.field(name, pa.string(), False) for name in list(COLUMNS)[:4]])
    table = _table(None, numeric).cast(required.append(pa.field("label", pa.decimal128(38, 9))))
    pq.write_table(table, path, compression="snappy", store_schema=False)


def _pyarrow(kind: pa.DataType | None = None, label: Any = None) -> Callable[[Path], None]:
    return lambda path: pq.write_table(_table(kind, label), path)


KINDS = (pa.string_view(), pa.binary_view(), pa.large_string(), pa.large_binary())

INDICES = pa.array(COLUMNS["label"])

WRITERS: dict[str, Callable[[Path], None]] = {
    "pandas": _pandas,
    "polars": _polars,
    "duckdb": _duckdb,
    "spark": _spark,
    "bigquery": _bigquery,
    "string view": _pyarrow(pa.string_view()),
    "binary view": _pyarrow(pa.binary_view()),
    "large string": _pyarrow(pa.large_string()),
    "large binary": _pyarrow(pa.large_binary()),
    "dictionary": _pyarrow(pa.dictionary(pa.int32(), pa.string()), INDICES.dictionary_encode()),
    "decimal": _pyarrow(label=pa.array([Decimal(n) for n in COLUMNS["label"]], pa.decimal128(5, 0))),
    "flags": _pyarrow(label=INDICES.cast(pa.bool_())),
    "unsigned": _pyarrow(label=INDICES.cast(pa.uint64())),
    "plain pages": lambda path: pq.write_table(_table(pa.string_view()), path, use_dictionary=False),
    "delta pages": lambda path: pq.write_table(
        _table(), path, use_dictionary=False, column_encoding={"query": "DELTA_BYTE_ARRAY"}
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_rows_of_every_writer_are_read_alike(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "rows" / "task=two" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    WRITERS[writer](path)
    table = read_partition(path)
    assert table.schema.types == ROW_SCHEMA.types and table.schema.names == ROW_SCHEMA.names
    assert {name: table[name].to_pylist() for name in COLUMNS} == COLUMNS
    ((unit, _),) = read_unit(WorkUnit("two", str(path), file_sha256(path), "unit", None))
    assert unit.to_pylist() == table.to_pylist()
    source = TableSource.model_validate({**MAPPING, "path": path})
    import_table(source, tmp_path / "imported")
    rows = read_partition(imported(tmp_path / "imported", "task=two/part-0-0.parquet"))
    assert rows.sort_by("row_id").to_pylist() == table.sort_by("row_id").to_pylist()


def test_gate_takes_what_the_reader_takes(tmp_path: Path) -> None:
    def check(table: pa.Table) -> FileVerdict:
        path = tmp_path / "x.parquet"
        pq.write_table(table, path)
        return check_file(FileJob(RowFile(str(tmp_path), path.name), TASK, True, tmp_path / "verdicts"))

    for kind in KINDS:
        verdict = check(_table(kind, pa.array([float(n) for n in COLUMNS["label"]])))
        assert (verdict.rows, verdict.bad_rows, verdict.refused) == (N, 0, "")
        assert verdict.label_counts == [N // 2, N // 2]
    verdict = check(_table(label=pa.array([0.5] * N)))
    assert "column label holds 0.5 in row 0" in verdict.refused and not verdict.damaged


LOST_WEIGHTS = {
    "zero": pa.array([0.0, 1.0, 1e-60]),
    "infinite": pa.array([0.0, None, -1e300]),
    "decimal": pa.array([Decimal(0), Decimal(1), Decimal("1e-60")], pa.decimal256(70, 60)),
    "dictionary": pa.array([0.0, 1.0, 1e-60]).dictionary_encode(),
}


@pytest.mark.parametrize("case", LOST_WEIGHTS)
def test_weight_that_float32_loses_is_named(tmp_path: Path, case: str) -> None:
    table = _table().slice(0, 3).append_column("weight", LOST_WEIGHTS[case])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataRefusedError, match="weight holds .* in row 2, which is no float without loss"):
        read_partition(tmp_path / "x.parquet")
    with pytest.raises(DataRefusedError, match="weight does not fit float"):
        write_partition(table, tmp_path / "y.parquet")
    kept = pa.array([0.1, float("nan"), float("inf")])
    pq.write_table(table.set_column(5, "weight", kept), tmp_path / "x.parquet")
    weights = read_partition(tmp_path / "x.parquet")["weight"].to_pylist()
    assert weights[0] == pytest.approx(0.1) and str(weights[1:]) == "[nan, inf]"


UNFIT: dict[str, tuple[pa.Array, str]] = {
    "fraction": (pa.array([0.0, 1.0, 1.5]), "label holds 1.5 in row 2"),
    "no number": (pa.array([0.0, float("nan")]), "label holds nan in row 1"),
    "too large": (pa.array([1, 2**40]), f"label holds {2**40} in row 1"),
    "part of a cent": (pa.array([Decimal("0.25")]), "label holds 0.25 in row 0"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_value_that_does_not_convert_is_named(tmp_path: Path, case: str) -> None:
    labels, message = UNFIT[case]
    path = tmp_path / "x.parquet"
    pq.write_table(_table().slice(0, len(labels)).set_column(4, "label", labels), path)
    with pytest.raises(DataRefusedError, match=f"x.parquet: column {message}.*relevance import table"):
        read_partition(path)
