"""Reader of parquet in batches: every encoding, bounded decoded size, no lost row."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import parquet_batches
from pipeline.data.parquet_batches import BatchFile, BatchLimits, read_batches
from pipeline.errors import DataRefusedError

ROWS = 500

TABLE = pa.table(
    {
        "a": [f"{n % 3}" * (n % 90) if n % 5 else None for n in range(ROWS)],
        "b": [f"text {n}" for n in range(ROWS)],
        "n": list(range(ROWS)),
    }
)

TEXTS = pa.schema([("b", pa.string()), ("a", pa.string())])

DELTA = {"a": "DELTA_BYTE_ARRAY", "b": "DELTA_LENGTH_BYTE_ARRAY"}

ENCODINGS: dict[str, dict[str, Any]] = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "delta": {"use_dictionary": False, "column_encoding": DELTA},
    "dictionary, then plain": {"dictionary_pagesize_limit": 50, "data_page_size": 100},
    "row groups": {"row_group_size": 33},
}

KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_encoding_is_read_in_bounded_batches(tmp_path: Path, encoding: str, kind: pa.DataType) -> None:
    path = tmp_path / "x.parquet"
    texts = {name: TABLE[name].cast(kind) for name in ("a", "b")}
    pq.write_table(pa.table({**texts, "n": TABLE["n"]}), path, **ENCODINGS[encoding])
    with BatchFile(path) as file:
        for first, last, limits in (
            (0, ROWS, BatchLimits()),
            (0, ROWS, BatchLimits(7, 10_000)),
            (40, 321, BatchLimits(100, 700)),
        ):
            batches = list(read_batches(file, path, ("b", "a"), (first, last), limits))
            assert max(batch.num_rows for batch in batches) <= limits.rows
            decoded = [
                pa.table(batch).cast(pa.schema([("b", pa.string()), ("a", pa.string())])) for batch in batches
            ]
            assert all(batch["a"].nbytes + batch["b"].nbytes <= 2 * limits.bytes for batch in decoded)
            expected = TABLE.select(["b", "a"]).slice(first, last - first).to_pylist()
            assert [row for batch in decoded for row in batch.to_pylist()] == expected


def test_too_large_rows_and_files_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": ["short"] * 9 + ["long " * 100]}), path)
    with monkeypatch.context() as patched, BatchFile(path) as file:
        patched.setattr(parquet_batches, "MAX_ROW_BYTES", 400)
        with pytest.raises(DataRefusedError, match="x.parquet: row 9 decodes to 508 bytes"):
            list(read_batches(file, path))
    pq.write_table(pa.table({"a": ["long " * 1_000] * 5_000}), path)
    monkeypatch.setattr(parquet_batches, "MAX_DECODED_BYTES", 1_000_000)
    with BatchFile(path) as file, pytest.raises(DataRefusedError, match="x.parquet decodes .* bomb"):
        list(read_batches(file, path))


READ = """
import resource
import sys
from pathlib import Path
from models.files import file_sha256
from pipeline.config.tasks import Task
from pipeline.scoring import work_units
from pipeline.data.row_files import RowFile
from pipeline.scoring.work_units import WorkUnit, read_unit
from validation.gate.file_checks import FileJob, check_file
work_units.PART_BYTES = 32 * 2**20
path = Path(sys.argv[1])
task = Task(name="two", labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in read_unit(WorkUnit("two", str(path), file_sha256(path), "unit", None)):
    pass
verdict = check_file(FileJob(RowFile(str(path.parent), path.name), task, True, path.parent / "verdicts"))
assert verdict.rows == 10_000 and not verdict.refused, verdict
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.failures
def test_small_file_of_long_texts_takes_little_memory(tmp_path: Path) -> None:
    num_rows, numbers = 10_000, range(10_000)
    bodies = pa.array([f"{kind} " * 20_000 for kind in ("red", "blue", "green")])  # 1 GB when decoded
    table = pa.table(
        {
            "row_id": [f"r{n}" for n in numbers],
            "query": [f"query {n}" for n in numbers],
            "ad_title": [f"title {n}" for n in numbers],
            "ad_description": pa.DictionaryArray.from_arrays(pa.array([n % 3 for n in numbers]), bodies),
            "market": ["us"] * num_rows,
            "label": [n % 2 for n in numbers],
        }
    )
    path = tmp_path / "bomb.parquet"
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 500_000
    result = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 1_000, f"peak of {result.stdout} MB"


WRITE_AND_READ = """
import resource
import sys
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from pipeline.data.parquet_batches import BatchFile, read_batches
from pipeline.errors import DataRefusedError
path, encoding, rows, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if sys.argv[5] == "write":
    pq.write_table(
        pa.table({"a": ["a" * size] * rows}), path, use_dictionary=False, compression="zstd",
        column_encoding={"a": encoding}, data_page_size=2**31 - 1, write_batch_size=rows,
    )
    raise SystemExit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with BatchFile(path) as file:
        print(sum(batch.num_rows for batch in read_batches(file, path)))
except DataRefusedError:
    print("refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""

ONE_PAGE = [
    ("PLAIN", 120, 2**20, "120"),
    ("PLAIN", 160, 2**20, "refused"),
    ("DELTA_LENGTH_BYTE_ARRAY", 30, 4 * 2**20, "30"),
    ("DELTA_LENGTH_BYTE_ARRAY", 40, 4 * 2**20, "refused"),
    ("DELTA_BYTE_ARRAY", 150, 4 * 2**20, "150"),  # 600 MB of one text
    ("DELTA_BYTE_ARRAY", 25, 30 * 2**20, "25"),
]


@pytest.mark.failures
@pytest.mark.parametrize(("encoding", "rows", "size", "expected"), ONE_PAGE)
def test_one_page_of_long_texts_takes_little_memory(
    tmp_path: Path, encoding: str, rows: int, size: int, expected: str
) -> None:
    for step in ("write", "read"):
        arguments = (tmp_path / "x.parquet", encoding, str(rows), str(size), step)
        command = [sys.executable, "-c", WRITE_AND_READ, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    found, peak_mb = result.stdout.split()
    assert found == expected
    assert int(peak_mb) < (50 if found == "refused" else 500), f"peak of {peak_mb} MB"


def test_large_columns_are_read_few_pages_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    texts = ["x"] * 400 + [f"{n}" * 300 for n in range(100, 140)] + ["y"] * 400
    table = pa.table({"a": texts, "b": texts})
    for encoding in ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        columns = {"a": encoding, "b": encoding}
        pq.write_table(
            table, path, use_dictionary=False, column_encoding=columns, data_page_size=800, write_batch_size=1
        )
        with BatchFile(path) as file, monkeypatch.context() as patched:
            patched.setattr(parquet_batches, "MAX_PAGE_BYTES", 5_000)
            assert 1 <= file.page_rows([0], ["a"]) <= 6
            assert pa.Table.from_batches(read_batches(file, path, ["a", "b"])) == table
            patched.setattr(parquet_batches, "MAX_PAGE_BYTES", 500)
            with pytest.raises(DataRefusedError, match="x.parquet has a page of over 500 bytes"):
                list(read_batches(file, path))
