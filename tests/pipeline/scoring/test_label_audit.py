"""Judged samples give precision and defect rate; lost and altered cells are named."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RelevanceError
from pipeline.scoring.label_audit import read_audit

# stratum: decision, rows, drawn, judged relevant
STRATA = {
    "s | r": ("relevant", 800, 4, 3),
    "s | i": ("irrelevant", 100, 2, 1),
    "s | a": ("abstain", 100, 2, 1),
}


def judged_rows(task: str = "search") -> list[dict[str, str]]:
    """Return the cells of a judged sample."""
    return [
        {
            "row_id": f"{name}-{number}",
            "task": task,
            "judgement": "relevant" if number < relevant else "irrelevant",
            "decision": decision,
            "stratum": name,
            "stratum_rows": str(size),
            "stratum_drawn": str(drawn),
            "weight": str(size / drawn),
            "bundle_sha256": "b",
            "query": 'text, "quoted"\nof two lines',
        }
        for name, (decision, size, drawn, relevant) in STRATA.items()
        for number in range(drawn)
    ]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_precision_and_defect_rate_are_weighted(tmp_path: Path) -> None:
    path = write(tmp_path / "judged.csv", judged_rows())
    [result] = read_audit(path).results()
    assert result.precision is not None
    assert (result.precision.value, result.precision.drawn) == (0.75, 4)
    # of 800 relevant a quarter, of 100 irrelevant a half; abstain is never wrong
    assert (result.defect_rate.value, result.defect_rate.drawn) == (pytest.approx(0.25), 8)
    assert result.precision.low < 0.75 < result.precision.high


def test_csv_gz_and_parquet_give_the_same_result(tmp_path: Path) -> None:
    path = write(tmp_path / "judged.csv", judged_rows())
    (tmp_path / "judged.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    pq.write_table(pa.Table.from_pylist(judged_rows()), tmp_path / "judged.parquet")
    results = [read_audit(file).results() for file in sorted(tmp_path.iterdir())]
    assert len(results) == 3 and results[0] == results[1] == results[2]


def test_task_without_relevant_decisions_has_no_precision(tmp_path: Path) -> None:
    rows = [row for row in judged_rows() if row["decision"] == "irrelevant"]
    [result] = read_audit(write(tmp_path / "judged.csv", rows)).results()
    assert result.precision is None and result.defect_rate.value == 0.5


def with_cell(number: int, **cells: str) -> Callable[[list[dict[str, str]]], list[dict[str, str]]]:
    return lambda rows: [{**row, **cells} if place == number else row for place, row in enumerate(rows)]


ALTERED: dict[str, Callable[[list[dict[str, str]]], list[dict[str, str]]]] = {
    "row 4, column judgement of .* is empty; write one of: relevant, irrel": with_cell(2, judgement=" "),
    "row 4, column judgement of .* is none of: relevant, irrelevant: 'yes'": with_cell(2, judgement="yes"),
    "row 3, column weight of .* is not stratum_rows / stratum_drawn = 200: '7'": with_cell(1, weight="7"),
    "row 3, column weight of .* is not a number: '2,5'": with_cell(1, weight="2,5"),
    "row 3, column weight of .* is not stratum_rows": with_cell(1, weight="nan"),
    "row 3, column stratum_rows of .* differs from other rows of": with_cell(1, stratum_rows="1"),
    "row 3, column stratum_rows of .* is not a number of rows: 'inf'": with_cell(1, stratum_rows="inf"),
    "row 3, column decision of .* differs from other rows of": with_cell(1, decision="abstain"),
    "row 3, column decision of .* is none of: relevant": with_cell(1, decision="maybe"),
    "row 3, column task of .* is empty": with_cell(1, task=""),
    "row 3, column row_id of .* is that of row 2 too": with_cell(1, row_id="s | r-0"),
    "rows of stratum 's . i' in .* are 1 in place of 2": lambda rows: rows[:4] + rows[5:],
    "columns missing in .*: judgement, weight; fill in": lambda rows: [
        {name: cell for name, cell in row.items() if name not in ("judgement", "weight")} for row in rows
    ],
}


@pytest.mark.parametrize("message", ALTERED)
def test_altered_cell_is_named_by_row_and_column(tmp_path: Path, message: str) -> None:
    path = write(tmp_path / "judged.csv", ALTERED[message](judged_rows()))
    with pytest.raises(DataRefusedError, match=message):
        read_audit(path)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("no.csv", None, ConfigError, "file does not exist"),
        ("a.xlsx", b"", ConfigError, "kind of file unknown"),
        ("a.csv", b"", DataRefusedError, "columns missing"),
        ("a.csv", b"\xff\xfe", DamagedInputError, "file is damaged"),
        ("a.csv", b'row_id\n"a', DamagedInputError, "file is damaged"),
        ("a.csv.gz", b"text", DamagedInputError, "file is damaged"),
        ("a.parquet", b"PAR1", DamagedInputError, "file is damaged"),
        ("a.csv", b"row_id,task\na\n", DataRefusedError, "row 2 of .* has 1 columns, and the header 2"),
    ],
)
def test_unreadable_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, error: type[RelevanceError], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_audit(tmp_path / name)


def test_file_without_judged_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(judged_rows()[0]) + "\n")
    with pytest.raises(DataRefusedError, match="file has no rows"):
        read_audit(tmp_path / "a.csv")
