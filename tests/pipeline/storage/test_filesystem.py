"""No name leads out of its folder, and no reader sees a partly written file."""

import errno
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.files import temporary_path
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.storage.filesystem import (
    json_sha256,
    list_files,
    open_to_append,
    read_json,
    safe_join,
    write_json,
)

HOSTILE_PARTS = [
    "..",
    ".",
    "a",
    "b",
    "out",
    "in",
    "loop",
    "/etc",
    "/",
    "\0",
    "a\0b",
    "~",
    "%2e%2e",
    "x" * 300,
    "..\\..",
    "．．",
    "a/../..",
    "b/../a",
    "",
]
ESCAPING_PARTS = [
    ("out",),
    ("out", "file"),
    ("..",),
    ("a", "..", ".."),
    ("/etc/passwd",),
    ("a\0b",),
    ("loop", "x"),
    ("in", "..", ".."),
    ("loop", "..", "out"),
    ("..", "root-beside"),
]


@pytest.fixture
def root_with_links(tmp_path: Path) -> Path:
    """Return a folder with a link to the outside, one to the inside and one to itself."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root / "a")
    (root / "loop").symlink_to(root / "loop")
    return root


def test_safe_join_stays_inside_its_root(root_with_links: Path) -> None:
    draw = random.Random(1)
    joined, refused = 0, 0
    for _ in range(10_000):
        parts = draw.choices(HOSTILE_PARTS, k=draw.randint(1, 4))
        try:
            path = safe_join(root_with_links, *parts)
        except ConfigError:
            refused += 1
        else:
            joined += 1
            assert Path(os.path.realpath(path)).is_relative_to(root_with_links.resolve()), parts
    assert joined > 500 and refused > 500


@pytest.mark.parametrize("parts", ESCAPING_PARTS)
def test_path_to_the_outside_is_refused(root_with_links: Path, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="use a path inside it"):
        safe_join(root_with_links, *parts)


def test_no_link_inside_the_root_is_followed(root_with_links: Path) -> None:
    for parts in (("in", "file"), ("in",), ("out",), ("loop", "x")):
        with pytest.raises(ConfigError, match="is a symbolic link, and links inside .* are not followed"):
            safe_join(root_with_links, *parts)
    assert safe_join(root_with_links, "in", last_may_be_link=True) == root_with_links.resolve() / "in"
    with pytest.raises(ConfigError, match="root/in is a symbolic link"):
        safe_join(root_with_links, "in", "file", last_may_be_link=True)


def test_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    os.write(open_to_append(tmp_path / "log"), b"one")
    os.write(open_to_append(tmp_path / "log"), b"two")
    (tmp_path / "link").symlink_to(tmp_path / "log")
    with pytest.raises(ConfigError, match="link is a symbolic link, and logs .*; remove it"):
        open_to_append(tmp_path / "link")
    assert (tmp_path / "log").read_bytes() == b"onetwo"


def test_root_may_be_a_link(root_with_links: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root_with_links)
    assert safe_join(tmp_path / "alias", "a") == root_with_links.resolve() / "a"


def fail_with_full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(path: Path, *arguments: Any, opened: Callable[..., Any] = Path.open, **options: Any) -> Any:
    """Open a file whose disk is full after two bytes."""
    file = opened(path, *arguments, **options)

    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            file.close()

        def write(self, content: bytes) -> None:
            file.write(content[:2])
            file.flush()
            fail_with_full_disk()

    return Full()


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "write": (Path, "open", half_written),
    "sync": (os, "fsync", fail_with_full_disk),
    "rename": (Path, "replace", fail_with_full_disk),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [None, {"old": 1}])
def test_failed_write_leaves_only_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, before: dict[str, int] | None
) -> None:
    path = tmp_path / "value.json"
    if before is not None:
        write_json(path, before)
    temporary_path(path)  # reads the machine's id once a process
    with monkeypatch.context() as patched:
        patched.setattr(*FAULTS[fault])
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"new": list(range(1000))})
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["value.json"])
    assert before is None or read_json(path) == before


def test_concurrent_readers_see_only_complete_values(tmp_path: Path) -> None:
    path, values = tmp_path / "value.json", [{"a": ["a"] * 20_000}, {"b": ["b"] * 10}]
    write_json(path, values[0])
    done = threading.Event()

    def write_repeatedly() -> None:
        for number in range(40):
            write_json(path, values[number % 2])
        done.set()

    writer = threading.Thread(target=write_repeatedly)
    writer.start()
    reads = 0
    while not done.is_set():
        assert read_json(path) in values
        reads += 1
    writer.join()
    assert reads > 10


def test_incomplete_json_is_damaged_input(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(DamagedInputError, match="value.json is not complete JSON") as caught:
        read_json(path)
    assert caught.value.exit_code == 4


def test_json_keeps_unicode(tmp_path: Path) -> None:
    value = {"größe": "靴 👟", "n": [1, 2.5, None]}
    write_json(tmp_path / "deep" / "er" / "value.json", value)
    assert read_json(tmp_path / "deep" / "er" / "value.json") == value
    assert "größe" in (tmp_path / "deep" / "er" / "value.json").read_text(encoding="utf-8")


def test_json_digest_ignores_only_the_key_order() -> None:
    assert json_sha256({"a": 1, "b": [1, 2]}) == json_sha256({"b": [1, 2], "a": 1})
    values: list[Any] = [
        {"a": 1},
        {"a": "1"},
        {"a": [1]},
        {"a": 1, "b": None},
        [["a", 1]],
        {"a": True},
        {"ab": 1},
    ]
    assert len({json_sha256(value) for value in values}) == len(values)


def test_json_file_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    assert (tmp_path / "a.json").read_text() == json.dumps([1], indent=2) + "\n"


def test_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/two", "a/one", "top"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = ["a/one", "b/two", "link", "top"]
    assert [str(path.relative_to(tmp_path)) for path in list_files(tmp_path)] == names
    assert list_files(tmp_path / "absent") == []
    scandir = os.scandir

    def refusing(path: Any = ".") -> Any:
        if Path(path) == tmp_path / "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="b'"):
        list_files(tmp_path)
