"""Files of a data place: each is read, or named as not read."""

from pathlib import Path

from pipeline.data.data_files import scan_folder, sort_names


def _write(root: Path, *names: str, content: bytes = b"PAR1") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_every_file_is_read_named_or_bookkeeping_of_writers(tmp_path: Path) -> None:
    read = [
        "task=a/market=us/day=1/part-0.parquet",
        "task=a/part-0.parquet/part-00000",  # Spark writes a folder
        "task=a/part-1.PARQUET",
        "task=a/part-10.parquet",
        "task=a/part-2.parquet",
        "task=a/without-suffix",
        "task=b/x",
    ]
    _write(tmp_path, *read)
    ignored = [
        "task=a/_SUCCESS",
        "task=a/.part-0.parquet.crc",
        "task=a/._SUCCESS.crc",
        ".rows.00000000-1-2-abcdef.tmp/task=a/part-0.parquet",
        "task=a/_committed_123",
        "catalogue.json",
        "quarantine/esci.parquet",
    ]
    _write(tmp_path, *ignored)
    skipped = [
        ".beside.parquet",
        ".hidden/",
        "Task=a/",
        "beside.parquet",
        "task=a/.hidden/",
        "task=a/.part-5.parquet",
        "task=a/_temporary/0/part-0.parquet",
        "task=a/part-3.parquet.gz",
        "task=a/part-4.parquet.bak",
        "year=2026/",
    ]
    _write(tmp_path, *(name + "part-0.parquet" * name.endswith("/") for name in skipped), content=b"PAR1")
    files = scan_folder(tmp_path)
    assert files.by_task == {"a": read[:-1], "b": read[-1:]}
    assert list(files.skipped) == skipped
    assert files.describe_skipped("here") == (
        "10 entries of here are not read: .beside.parquet, .hidden/, Task=a/, beside.parquet, "
        "task=a/.hidden/, and 5 more; rows are parquet files below task=<name>/"
    )
    (tmp_path / "catalogue.json").unlink()  # without it, the rejects are not of an import
    assert sorted({*scan_folder(tmp_path).skipped} - {*skipped}) == ["quarantine/"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    _write(tmp_path, "elsewhere/part-0.parquet")
    root = tmp_path / "rows"
    (root / "task=b").mkdir(parents=True)
    (root / "task=a").symlink_to(tmp_path / "elsewhere")
    (root / "task=b" / "up").symlink_to(root)
    (root / "task=b" / "gone.parquet").symlink_to(tmp_path / "gone")
    files = scan_folder(root)
    assert files.by_task == {"a": ["task=a/part-0.parquet"], "b": ["task=b/gone.parquet"]}
    assert files.skipped == ("task=b/up/",)


def test_objects_are_sorted_by_their_names_alone() -> None:
    files = sort_names(["task=a/b=c/x.Parquet", "task=a/x", "y"], is_parquet=lambda name: False)
    assert (files.by_task, files.skipped) == ({"a": ["task=a/b=c/x.Parquet"]}, ("task=a/x", "y"))
    hidden = ["task=a/.b/x.parquet", "task=a/.x.parquet", "task=a/.x.parquet.crc"]
    assert sort_names(hidden, is_parquet=lambda name: False).skipped == tuple(hidden[:2])
