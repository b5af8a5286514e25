"""The data gate on rows in a bucket: as in a folder, with versions in place of file stamps."""

import pytest

import validation.gate.runner
from pipeline.errors import DamagedInputError, RetryableError
from pipeline.storage.object_store import Bucket, open_store
from tests.support.gate_cases import LENIENT
from validation.gate.report import check_report
from validation.gate.runner import GateRun, validate


@pytest.fixture
def root(write_rows, build_table):
    """Folder of a file of good rows, and one with a bad row."""
    bad = build_table("b").set_column(1, "query", [["", "b", "c", "d", "e", "f"]])
    return write_rows({"query-ad": [build_table("a"), bad]})


@pytest.fixture
def place(tmp_path, s3, root):
    """Bucket with the same files."""
    store = open_store(f"s3://labels/{tmp_path.name}")
    for path in root.rglob("*.parquet"):
        store.put(path.relative_to(root).as_posix(), path.read_bytes())
    return store.location


@pytest.fixture
def reads(monkeypatch):
    """Keys of the objects that are read, one for each range."""
    keys, get_range = [], Bucket.get_range

    def recorded(bucket, key, *rest):
        keys.append(key)
        return get_range(bucket, key, *rest)

    monkeypatch.setattr(Bucket, "get_range", recorded)
    return keys


@pytest.fixture
def run(tmp_path, place, task):
    """Run of the gate on the bucket."""
    return GateRun(place, [task], tmp_path / "out", tmp_path / "accepted", config=LENIENT)


def contents(folder):
    """Return the files of a folder by name."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def test_bucket_and_folder_give_the_same_verdict_and_rows(tmp_path, root, task, run):
    report = validate(run)
    other = GateRun(root, [task], tmp_path / "of_folder", tmp_path / "accepted_folder", config=LENIENT)
    expected = validate(other)
    assert report.passed and report.to_json()["data_dir"] == run.data_dir
    assert (report.files, report.tasks, report.data_digest) == (
        expected.files,
        expected.tasks,
        expected.data_digest,
    )
    assert contents(run.accepted_dir) == contents(other.accepted_dir) != {}
    assert contents(run.out_dir / "quarantine") == contents(other.out_dir / "quarantine") != {}


def test_unchanged_objects_are_not_checked_again(tmp_path, run, place, reads, build_table, root):
    first, expected = validate(run), contents(tmp_path / "accepted")
    reads.clear()
    assert validate(run) == first and contents(tmp_path / "accepted") == expected
    assert set(reads) == {"task=query-ad/part-1.parquet"}  # split again, as it has a bad row
    changed = (root / "task=query-ad" / "part-1.parquet").read_bytes()
    open_store(place).put("task=query-ad/part-0.parquet", changed)
    assert validate(run).tasks["query-ad"].accepted < first.tasks["query-ad"].accepted


def test_object_replaced_between_check_and_split_is_retryable(tmp_path, run, place, monkeypatch):
    find_duplicates = validation.gate.runner.find_duplicates
    key = "task=query-ad/part-0.parquet"

    def replacing(*arguments):
        store = open_store(place)
        store.put(key, store.get(key) + b"x")
        return find_duplicates(*arguments)

    monkeypatch.setattr(validation.gate.runner, "find_duplicates", replacing)
    with pytest.raises(RetryableError, match=f"{place}/{key} changed while it was read"):
        validate(run)
    assert not (tmp_path / "accepted").exists() and not (tmp_path / "out" / "report.json").exists()


def test_damaged_object_is_named_and_others_are_checked(run, place):
    open_store(place).put("task=query-ad/part-1.parquet", b"PAR1")
    report = validate(run)
    assert report.damaged == ("task=query-ad/part-1.parquet",) and report.files[0].rows == 6
    message = f"data in {place} refused: .*part-1.parquet is not whole parquet"
    with pytest.raises(DamagedInputError, match=message):
        check_report(report)
