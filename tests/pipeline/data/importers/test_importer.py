"""Promises of pipeline/data/importers/importer.py: rows and quarantined lines add up, ids are used once, and
nothing half-done is visible.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers import duplicate_ids as row_ids
from pipeline.data.importers import importer as importing
from pipeline.data.importers.importer import ImportCounts, Row, Source, import_lines
from pipeline.data.importers.records import Line
from pipeline.data.importers.rejects import BadLineError
from pipeline.data.reader import read_partition
from pipeline.data.writer import StagedRows
from pipeline.errors import DataRefusedError


def _build_row(line: Line) -> tuple[str, Row]:
    row_id = line.fields["id"]
    if row_id is None:
        raise BadLineError("empty_id")
    return f"task-{len(row_id) % 2}", {
        "row_id": row_id,
        "query": f"q{row_id}",
        "ad_title": "t",
        "market": "us",
    }


def _import(lines: list[Line] | Iterator[Line], out_dir: Path) -> ImportCounts:
    kept = list(lines) if isinstance(lines, list) else lines
    with StagedRows(out_dir) as staged:
        return import_lines(Source("made-up", Path("made-up.csv"), lambda: kept, _build_row), staged)


def _lines(*ids: str | None) -> list[Line]:
    return [Line(number, {"id": row_id}, f"line {number}") for number, row_id in enumerate(ids, 1)]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_lines_add_up_whatever_the_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_ROWS", 3)
    draw = random.Random(5)
    for case in range(20):
        odd = [None, *(f"{draw.randrange(10 ** draw.randrange(2, 9))}" for _ in range(9))]
        ids = [draw.choice(odd) if draw.random() < 0.15 else f"x{n}" for n in range(draw.randrange(20, 200))]
        defects = [
            line._replace(defect="not_json") if draw.random() < 0.02 else line for line in _lines(*ids)
        ]
        counts = _import(defects, tmp_path / str(case))
        assert sum(counts.rows.values()) + sum(counts.quarantined.values()) == len(ids)
        kept = (
            pq.read_table(tmp_path / str(case) / "quarantine" / "made-up.parquet")["line"].to_pylist()
            if counts.quarantined
            else []
        )
        found = [
            i
            for task in counts.rows
            for i in read_partition(tmp_path / str(case) / f"task={task}" / "part-0.parquet")[
                "row_id"
            ].to_pylist()
        ]
        assert len(set(found)) == len(found) == len(ids) - len(kept)
        assert sorted(found) == sorted({ids[line.number - 1] for line in defects if not line.defect} - {None})


def test_of_rows_with_one_id_the_first_is_kept_however_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_ids, "HASHES_AT_ONCE", 16)
    ids = [f"r{n}" for n in range(100)]
    counts = _import(_lines(*ids, "r0", "r99", "r0"), tmp_path)
    assert counts.quarantined == {"repeated_id": 3} and sum(counts.rows.values()) == 100
    kept = pq.read_table(tmp_path / "quarantine" / "made-up.parquet").to_pylist()
    assert kept == [{"line": n, "reason": "repeated_id", "text": f"line {n}"} for n in (101, 102, 103)]


def test_hashes_that_collide_cost_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "row_id_hash", lambda row_id: b"same")
    monkeypatch.setattr(row_ids, "row_id_hash", lambda row_id: b"12345678")
    assert _import(_lines("a", "b", "cc"), tmp_path) == ImportCounts({"task-1": 2, "task-0": 1}, {})


def test_too_many_repeated_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_REPEATED_IDS", 1)
    with pytest.raises(DataRefusedError, match="2 ids of made-up.csv are used more than once; map a column"):
        _import(_lines("a", "b", "a", "b"), tmp_path)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_an_import_that_is_killed_half_way_leaves_the_old_data_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    _import(_lines(*"abcdefghij", None), tmp_path)
    before = _files(tmp_path)
    monkeypatch.setattr(importing, "BATCH_ROWS", 2)

    def broken() -> Iterator[Line]:
        yield from _lines(*"klmnopqrstuvwxyz", None)
        raise error

    with pytest.raises(type(error)):
        _import(broken(), tmp_path)
    assert _files(tmp_path) == before


def test_more_bad_lines_than_the_limit_refuse_the_import_and_as_many_do_not(tmp_path: Path) -> None:
    assert _import(_lines(*"abcd", None), tmp_path).quarantined == {"empty_id": 1}
    before = _files(tmp_path)
    with pytest.raises(
        DataRefusedError,
        match="2 of 6 lines of made-up.csv are bad .2 empty_id., more than 20%.*line 5 has no id: 'line 5'",
    ):
        _import(_lines(*"abcd", None, None), tmp_path)
    assert _files(tmp_path) == before


def test_a_quarantine_without_lines_leaves_no_file_of_an_earlier_one(tmp_path: Path) -> None:
    _import(_lines(*"abcdef", None), tmp_path)
    assert (tmp_path / "quarantine" / "made-up.parquet").exists()
    _import(_lines(*"abcdef"), tmp_path)
    assert not (tmp_path / "quarantine" / "made-up.parquet").exists()
