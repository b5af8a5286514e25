"""Digests and atomic writes of models/files.py: no file or folder is ever seen half-written."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import files
from models.files import (
    atomic_writer,
    file_sha256,
    parse_json,
    publish_dir,
    remove_tree,
    sync_tree,
    temporary_path,
)
from tests.support.kills import kill_at_every_event
from tests.support.places import ROOT


def write(path: Path, content: bytes) -> None:
    with atomic_writer(path) as file:
        file.write(content)


def folder_with(path: Path, **contents: str) -> Path:
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_text(content)
    return path


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_file_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_content_is_synced_before_rename_and_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (order.append(kinds[Path(f"/proc/self/fd/{fd}").resolve().is_dir()]), sync(fd)),
    )
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append("rename"), replace(path, target)))
    write(tmp_path / "file", b"content")
    assert order == ["file", "rename", "folder"]


def test_sync_tree_syncs_every_file_and_folder_but_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(tmp_path / "tree" / "inner", file="content").parent
    (folder / "link").symlink_to(folder_with(tmp_path / "outside", other="content"))
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    sync_tree(folder)
    assert sorted(synced) == [str(folder), str(folder / "inner"), str(folder / "inner" / "file")]


def test_failed_folder_sync_leaves_a_complete_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    monkeypatch.setattr(files, "sync_dir", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_disk_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/\.state\.json\..*\.tmp'"):
        write(tmp_path / "state.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_published_folder_replaces_the_older_one(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "model", old="1", both="1")
    publish_dir(folder_with(tmp_path / ".staged", both="2", new="2"), final)
    assert {p.name: p.read_text() for p in final.iterdir()} == {"both": "2", "new": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_publishing_creates_missing_parent_folders(tmp_path: Path) -> None:
    publish_dir(folder_with(tmp_path / "staged", a="1"), tmp_path / "new" / "deep" / "model")
    assert (tmp_path / "new" / "deep" / "model" / "a").read_text() == "1"


def test_failed_publication_keeps_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, staged = folder_with(tmp_path / "model", old="1"), folder_with(tmp_path / "staged", new="2")
    rename = Path.rename

    def rename_all_but_staged(path: Path, target: Path) -> Path:
        if path == staged:
            full_disk()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_all_but_staged)
    with pytest.raises(OSError, match="No space left"):
        publish_dir(staged, final)
    assert (final / "old").read_text() == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "staged"]


def test_remove_tree_removes_folders_files_and_absent_paths(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "tree" / "deep", a="1").parent
    remove_tree(folder)
    remove_tree(folder)
    (tmp_path / "file").write_text("in the place of a folder")
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_published_folder_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    for number, target in enumerate(("theirs", "missing")):
        (staged := tmp_path / "staged").mkdir()
        final = tmp_path / f"final-{number}"
        final.symlink_to(tmp_path / target)
        publish_dir(staged, final)
        assert final.is_dir() and not final.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final-0", "final-1", "theirs"]


def _replace_text(root: Path) -> None:
    with atomic_writer(root / "text") as file:
        file.write(b"new")


def _read_text(root: Path) -> str:
    return (root / "text").read_text()


def test_killed_writer_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    template = tmp_path / "template"
    folder_with(template, text="old")
    kills = kill_at_every_event(_replace_text, template, tmp_path / "root", look=_read_text)
    assert [event.partition(" ")[0] for event in kills.unkilled.events] == [
        "os.mkdir",
        "open",
        "os:fsync",
        "os.rename",
        "os:fsync",
        "os.remove",
    ]
    assert [kill.look.value for kill in kills.kills if kill.look] == ["old"] * 4 + ["new"] * 2
    assert kills.differences() == [], "the next writer deletes what a killed one left"


def test_leftovers_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    code = (
        "import sys, pathlib; from models.files import temporary_path; "
        "path = temporary_path(pathlib.Path(sys.argv[1])); path.write_text(''); print(path)"
    )
    dead = Path(
        subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    assert dead.is_file()
    own = temporary_path(path)
    assert not dead.exists()
    own.mkdir()
    others = [
        tmp_path / f".state.json.{'0' * 8}-1-1-abcdef.tmp",  # of another machine
        tmp_path / ".state.json.note.tmp",
    ]
    for other in others:
        other.touch()
    temporary_path(path)
    assert own.is_dir() and all(other.is_file() for other in others)
    # a later process may have the pid of one that was killed
    parts = own.name.split("-")
    reused = tmp_path / "-".join([*parts[:2], str(int(parts[2]) + 1), *parts[3:]])
    reused.mkdir()
    temporary_path(path)
    assert own.is_dir() and not reused.exists()
    os.utime(others[0], (1, 1))
    temporary_path(path)
    assert not others[0].exists() and others[1].is_file(), "old enough to be nobody's"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' is repeated"),
        (b'{"b": [{"a": 1, "a": 1}]}', "key 'a' is repeated"),
        (b"[NaN]", "number NaN is not finite"),
        (b"[-Infinity]", "number -Infinity is not finite"),
        (b"[1e999]", "number 1e999 is not finite"),
        (b"[" + b"9" * 5000 + b"]", "5,000 digits"),
        (b"[" * 100_000 + b"]" * 100_000, "nests too deep"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b'["\xff"]', "invalid start byte"),
        ('{"a": 1}'.encode("utf-16"), "invalid start byte"),
        (b'{"a": 1', "Expecting"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_readers_take_differently_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(content)


def test_json_is_read_as_it_was_written() -> None:
    value = {"größe": [1, -2.5, None, True, "😀", "\\u00e9", "\x00"], "b": {"a": 10**20}}
    for is_ascii in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=is_ascii)) == value
    assert parse_json("[1.5, Infinity]", allow_infinity=True) == [1.5, float("inf")]


# logs, whose damaged lines are skipped, and texts that a process wrote itself or a library checks
LENIENT_READERS = {
    "jobs/supervisor.py",
    "pipeline/data/importers/json_files.py",
    "pipeline/encoding/literal_tokenizer.py",
    "pipeline/inference/actor_pool.py",
    "pipeline/runtime/run_log.py",
    "pipeline/training/event_log.py",
}


def test_json_that_is_believed_is_read_strictly() -> None:
    packages = ("models", "pipeline", "validation", "jobs")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    lenient = {
        str(path.relative_to(ROOT))
        for path in sources
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert lenient - {"models/files.py"} == LENIENT_READERS
