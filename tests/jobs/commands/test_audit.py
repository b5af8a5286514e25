"""`relevance sample-labels` and `relevance audit`: from published labels to precision."""

import csv
from pathlib import Path

from pipeline.errors import ConfigError
from tests.support.commands import check_refused, last_json
from tests.support.commands import relevance_in_process as relevance
from tests.support.score_partitions import publish_input


def judge(path: Path) -> None:
    """Fill in that every other row is relevant."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["judgement"] = "Relevant" if number % 2 else "irrelevant"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_judged_sample_gives_precision_and_defect_rate(tmp_path: Path) -> None:
    publish_input(tmp_path, "a", ["us"] * 300 + ["de"] * 100)
    arguments = ("sample-labels", "scores", "audit.csv", "--rows", "60", "--task", "search")
    closing = last_json(relevance(*arguments, cwd=tmp_path))
    assert (closing["rows"], closing["rows_without_texts"]) == (60, 0)
    assert closing["next"] == "relevance audit audit.csv"
    with (tmp_path / "audit.csv").open(newline="", encoding="utf-8") as file:
        assert {row["ad_title"] for row in csv.DictReader(file)} == {"'=title"}  # no formula
    refused = relevance("audit", "audit.csv", cwd=tmp_path)
    check_refused(refused, 1, "row 2, column judgement of audit.csv is empty")
    judge(tmp_path / "audit.csv")
    result = relevance("audit", "audit.csv", cwd=tmp_path)
    task = last_json(result)["tasks"]["search"]
    for name in ("precision", "defect_rate"):
        assert 0 < task[name]["low"] < task[name]["value"] < task[name]["high"] < 1
    assert f"{task['precision']['value']:.3f} [{task['precision']['low']:.3f}, " in result.stdout
    check_refused(relevance(*arguments, cwd=tmp_path), ConfigError.exit_code, "audit.csv exists already")


def test_sample_without_texts_says_what_is_missing(tmp_path: Path) -> None:
    publish_input(tmp_path, "a", ["us"] * 30).unlink()
    result = relevance("sample-labels", "scores", "audit.parquet", "--rows", "9", cwd=tmp_path)
    assert last_json(result)["rows_without_texts"] == 9
    assert "texts missing of 9 rows" in result.stderr and "a.parquet: changed or removed" in result.stderr


def test_sample_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    publish_input(tmp_path, "a", ["us"] * 30)
    result = relevance("sample-labels", "scores", "audit.csv", "--rows", "2", cwd=tmp_path)
    check_refused(result, 2, "rows too few: 2; give --rows 3 or more")
    assert not (tmp_path / "audit.csv").exists()
