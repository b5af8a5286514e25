"""Cache of verdicts: files are read again only if they or the rules changed."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import validation.gate.cross_file_checks
import validation.gate.file_checks
import validation.gate.runner
from pipeline.config.extensions import DATA_CHECKS
from pipeline.data.row_files import RowFile
from pipeline.errors import DamagedInputError, RetryableError
from tests.support.gate_cases import LENIENT, STRICT
from tests.support.places import ROOT
from validation.gate.file_checks import FileJob, check_file, rule_files, rules_digest
from validation.gate.runner import GateRun, validate


def test_only_new_and_changed_files_are_read_again(tmp_path, task, build_table, write_rows, monkeypatch):
    read = []
    whole = validation.gate.file_checks.read_and_check
    monkeypatch.setattr(
        validation.gate.file_checks,
        "read_and_check",
        lambda job, *rest: read.append(job.file.name) or whole(job, *rest),
    )
    for tables, expected in (
        ([build_table("a"), build_table("b")], ["part-0", "part-1"]),
        ([build_table("a"), build_table("b")], []),
        ([build_table("a"), build_table("b"), build_table("c")], ["part-2"]),
        ([build_table("a"), build_table("x"), build_table("c")], ["part-1"]),
        ([build_table("c"), build_table("a"), build_table("x")], []),
    ):
        read.clear()
        report = validate(
            GateRun(write_rows({"query-ad": tables}), [task], tmp_path / "out", tmp_path / "accepted")
        )
        assert sorted(path.split("/")[1].removesuffix(".parquet") for path in read) == expected
        assert report.passed and len(
            [path for path in (tmp_path / "out" / "partitions").iterdir() if path.is_dir()]
        ) == len(tables)
    changed = task.model_copy(update={"labels": ("a", "b", "c", "d")})
    read.clear()
    validate(GateRun(tmp_path / "data", [changed], tmp_path / "out", tmp_path / "accepted"))
    assert len(read) == 3, "a change of the rules must invalidate the cache"


def test_files_are_read_again_when_the_code_of_a_check_changes(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    source = tmp_path / "shop_checks.py"
    source.write_text("def shop_check(task, labels_required):\n    return []\n")
    shop_checks = {}
    exec(compile(source.read_text(), str(source), "exec"), shop_checks)
    monkeypatch.setitem(DATA_CHECKS._items, "shop_check", shop_checks["shop_check"])
    run = GateRun(write_rows({"query-ad": [build_table()]}), [task], tmp_path / "out")
    kept = []
    for text in ("    return []\n", "    return []\n", "    return list()\n"):
        source.write_text(f"def shop_check(task, labels_required):\n{text}")
        rules_digest.cache_clear()
        validate(run)
        kept.append({path.name for path in (tmp_path / "out" / "partitions").iterdir() if path.is_dir()})
    rules_digest.cache_clear()
    assert kept[0] == kept[1] and kept[1].isdisjoint(kept[2])


def test_digest_covers_every_module_that_reads_or_checks_rows():
    program = """
import sys, validation.gate.runner
for name, module in sys.modules.items():
    if name.startswith(("validation.", "pipeline.data.", "pipeline.schema")):
        print(module.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = {Path(path) for path in done.stdout.split() if not path.endswith("__init__.py")}
    assert ROOT / "pipeline/data/visible_text.py" in imported
    assert imported - rule_files() == set()


def test_identical_files_checked_concurrently_are_read_once(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    read, whole = [], validation.gate.file_checks.read_and_check

    def slowly(job, *rest):
        read.append(job.file.name)
        threading.Event().wait(0.2)
        return whole(job, *rest)

    monkeypatch.setattr(validation.gate.file_checks, "read_and_check", slowly)
    files = sorted(write_rows({"query-ad": [build_table()] * 2}).rglob("*.parquet"))
    jobs = [FileJob(RowFile(str(path.parent), path.name), task, True, tmp_path / "work") for path in files]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(check_file, jobs)
    assert (one.relative, other.relative) == ("part-0.parquet", "part-1.parquet")
    assert len(read) == 1 and one.folder == other.folder
    assert [path.name for path in (tmp_path / "work").iterdir() if path.is_dir()] == [Path(one.folder).name]


def test_file_that_changes_during_validation_is_retryable(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    data = write_rows({"query-ad": [build_table()]})
    path = next(data.rglob("*.parquet"))
    for module, name in (
        (validation.gate.file_checks, "read_and_check"),
        (validation.gate.runner, "find_duplicates"),
    ):
        with monkeypatch.context() as patched:
            original = getattr(module, name)

            def swapping(*arguments, original=original):
                found = original(*arguments)
                pq.write_table(build_table("other"), path)
                return found

            patched.setattr(module, name, swapping)
            with pytest.raises(
                RetryableError,
                match="part-0.parquet changed during validation; run the same command again",
            ):
                validate(GateRun(data, [task], tmp_path / "out", tmp_path / "accepted", config=STRICT))
        assert not (tmp_path / "accepted").exists() and not (tmp_path / "out" / "report.json").exists()
        assert not list(tmp_path.glob(".accepted*"))
    assert validate(GateRun(data, [task], tmp_path / "out", tmp_path / "accepted", config=STRICT)).passed


def test_damage_is_not_cached_and_names_each_file(tmp_path, validate_tables, build_table, monkeypatch):
    def fails(file, path, check_text):
        raise DamagedInputError(f"{path} is damaged (read error); write it again from its source")

    with monkeypatch.context() as patched:
        patched.setattr(validation.gate.file_checks, "read_rows", fails)
        report = validate_tables(build_table(), build_table())
        assert report.damaged == ("task=query-ad/part-0.parquet", "task=query-ad/part-1.parquet")
        assert all(f"part-{i}.parquet is damaged" in report.failures[i] for i in (0, 1))
    assert validate_tables(build_table(), build_table("b")).passed


@pytest.mark.parametrize("name", ["keys.parquet", "verdict.json", "sample.parquet"])
def test_truncated_cache_entry_is_rebuilt(tmp_path, validate_tables, build_table, name):
    before = validate_tables(build_table(query=["a", None, "c", "d", "e", "f"]), config=LENIENT)
    (path,) = (tmp_path / "out" / "partitions").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-5])
    assert validate_tables(build_table(query=["a", None, "c", "d", "e", "f"]), config=LENIENT) == before
