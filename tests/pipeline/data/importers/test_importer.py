"""Import of records: rows and rejects add up, ids are unique, and publishing is atomic."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config.tasks import Task
from pipeline.data.importers import duplicate_ids, importer, rejects
from pipeline.data.importers.importer import ImportCounts, RecordSource, Row, import_records
from pipeline.data.importers.records import SourceRecord
from pipeline.data.importers.rejects import BadRecordError
from pipeline.data.reader import find_partitions, read_partition
from pipeline.data.writer import StagedRows
from pipeline.errors import DataRefusedError, RelevanceError
from tests.support.imported import imported
from tests.support.kills import kill_at_every_event

TASKS = [
    Task(name=name, labels=("bad", "good"), relevant_from=1, template="{query} {ad_title}")
    for name in ("task-0", "task-1")
]


def _build_row(line: SourceRecord) -> tuple[str, Row]:
    row_id = line.fields["id"]
    if row_id is None:
        raise BadRecordError("empty_id")
    return f"task-{len(row_id) % 2}", {
        "row_id": row_id,
        "query": f"q{row_id}",
        "ad_title": "t",
        "market": "us",
    }


def _import(lines: list[SourceRecord] | Iterator[SourceRecord], out_dir: Path) -> ImportCounts:
    records = list(lines) if isinstance(lines, list) else lines
    with StagedRows(out_dir) as staged:
        return import_records(
            RecordSource("made-up", Path("made-up.csv"), lambda: records, _build_row), staged
        )


def _records(*ids: str | None) -> list[SourceRecord]:
    return [SourceRecord(number, {"id": row_id}, f"line {number}") for number, row_id in enumerate(ids, 1)]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_and_rejects_add_up_to_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "BATCH_ROWS", 3)
    draw = random.Random(5)
    for case in range(20):
        odd = [None, *(f"{draw.randrange(10 ** draw.randrange(2, 9))}" for _ in range(9))]
        ids = [draw.choice(odd) if draw.random() < 0.15 else f"x{n}" for n in range(draw.randrange(20, 200))]
        defects = [
            line._replace(defect="not_json") if draw.random() < 0.02 else line for line in _records(*ids)
        ]
        counts = _import(defects, tmp_path / str(case))
        assert sum(counts.rows.values()) + sum(counts.rejected.values()) == len(ids)
        rejected_lines = (
            pq.read_table(tmp_path / str(case) / "quarantine" / "made-up.parquet")["line"].to_pylist()
            if counts.rejected
            else []
        )
        row_ids = [
            i
            for task in counts.rows
            for i in read_partition(imported(tmp_path / str(case), f"task={task}/part-0.parquet"))[
                "row_id"
            ].to_pylist()
        ]
        assert len(set(row_ids)) == len(row_ids) == len(ids) - len(rejected_lines)
        assert sorted(row_ids) == sorted(
            {ids[line.number - 1] for line in defects if not line.defect} - {None}
        )


def test_first_row_of_a_repeated_id_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_ids, "HASHES_AT_ONCE", 16)
    ids = [f"r{n}" for n in range(100)]
    counts = _import(_records(*ids, "r0", "r99", "r0"), tmp_path)
    assert counts.rejected == {"repeated_id": 3} and sum(counts.rows.values()) == 100
    rejects = pq.read_table(tmp_path / "quarantine" / "made-up.parquet").to_pylist()
    assert rejects == [{"line": n, "reason": "repeated_id", "text": f"line {n}"} for n in (101, 102, 103)]


def test_rejects_of_both_passes_are_one_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "FLUSH_LINES", 4)
    ids = [f"r{n}" if n % 10 else None for n in range(100)]
    counts = _import(_records(*ids, "r1", "r2"), tmp_path)
    assert counts.rejected == {"empty_id": 10, "repeated_id": 2}
    gc.collect()  # a writer that was left open writes its footer now
    path = tmp_path / "quarantine" / "made-up.parquet"
    lines = pq.read_table(path, page_checksum_verification=True)["line"].to_pylist()
    assert lines == [*range(1, 101, 10), 101, 102]


def test_colliding_hashes_lose_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (importer, duplicate_ids):
        monkeypatch.setattr(module, "row_id_hash", lambda row_id: b"12345678")
    assert _import(_records("a", "b", "cc", "dd", "e", "a"), tmp_path) == ImportCounts(
        {"task-1": 3, "task-0": 2}, {"repeated_id": 1}
    )


def test_too_many_repeated_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MAX_REPEATED_IDS", 1)
    with pytest.raises(DataRefusedError, match="2 ids of made-up.csv are used more than once; map a column"):
        _import(_records("a", "b", "a", "b"), tmp_path)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_interrupted_import_leaves_the_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    _import(_records(*"abcdefghij", None), tmp_path)
    before = _files(tmp_path)
    monkeypatch.setattr(importer, "BATCH_ROWS", 2)

    def broken() -> Iterator[SourceRecord]:
        yield from _records(*"klmnopqrstuvwxyz", None)
        raise error

    with pytest.raises(type(error)):
        _import(broken(), tmp_path)
    assert _files(tmp_path) == before


def _import_new(root: Path) -> None:
    importer.BATCH_ROWS = 2  # in a process of its own
    _import(_records(*"klmnopqrstuvwxyz", "aa", None), root / "judged")


def _read(root: Path) -> list[list[str]] | str:
    """Return the row ids of each file that the catalogue lists, or the refusal."""
    try:
        partitions = find_partitions(root / "judged", TASKS)
    except RelevanceError as error:
        return str(error)
    return [read_partition(path)["row_id"].to_pylist() for paths in partitions.values() for path in paths]


def test_import_killed_half_way_leaves_the_old_rows(tmp_path: Path) -> None:
    _import(_records(*"abcdefghij", "ab", None), tmp_path / "template" / "judged")
    kills = kill_at_every_event(_import_new, tmp_path / "template", tmp_path / "root", _read, stride=3)
    seen = [kill.look.value for kill in kills.kills if kill.look]
    old, new = [["ab"], list("abcdefghij")], [["aa"], list("klmnopqrstuvwxyz")]
    # the refusal of files that are not in the catalogue yet stands between both
    order = [0 if rows == old else 2 if rows == new else 1 for rows in seen]
    assert order == sorted(order) and order.count(0) > 5 and order.count(2) > 0
    assert all("run the same import again" in str(rows) for rows in seen if rows not in (old, new))
    assert not kills.differences()


def test_too_many_rejects_refuse_the_import(tmp_path: Path) -> None:
    assert _import(_records(*"abcd", None), tmp_path).rejected == {"empty_id": 1}
    before = _files(tmp_path)
    with pytest.raises(
        DataRefusedError,
        match="2 of 6 lines of made-up.csv are bad .2 empty_id., more than 20%.*line 5 has no id: 'line 5'",
    ):
        _import(_records(*"abcd", None, None), tmp_path)
    assert _files(tmp_path) == before


def test_import_without_rejects_removes_the_old_file(tmp_path: Path) -> None:
    _import(_records(*"abcdef", None), tmp_path)
    assert (tmp_path / "quarantine" / "made-up.parquet").exists()
    _import(_records(*"abcdef"), tmp_path)
    assert not (tmp_path / "quarantine" / "made-up.parquet").exists()
