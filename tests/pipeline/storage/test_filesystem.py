"""Names, paths and writes: no name leads out of its folder, no file is seen half-written."""

import errno
import hashlib
import json
import os
import random
import string
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.files import file_sha256
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.names import check_name
from pipeline.storage import filesystem as files
from pipeline.storage.filesystem import (
    json_sha256,
    publish_dir,
    read_json,
    remove_tree,
    safe_join,
    write_bytes,
    write_json,
)

PLAIN = string.ascii_lowercase + string.digits
HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\0",
    "\0",
    "%2e%2e",
    "%2e%2e%2f",
    "a" * 64,
    "a" * 300,
    "CON",
    "Nul",
    "-rf",
    "_a",
    "a b",
    "a\n",
    "\na",
    "a.b",
    "a\\b",
    "c:",
    "~",
    "$HOME",
    "a;b",
    "раураl",
    "аbc",
    "ａｂｃ",
    "a\u200b",
    "\u202eabc",
    "é",
    "ⅷ",
    "１",
    "a\u0301",
    "ſ",
    "K",
    "İ",
]
HOSTILE_CHARACTERS = PLAIN + "_-" * 6 + "./\\\0 %~ABCZ\n\tа\u0430ａ１é\u0301\u200b\u202e$;:"
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
LEADING_OUT = [
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


def random_names(count: int) -> list[str]:
    """Half of plain characters alone and half of hostile ones too, of lengths around the limit as well."""
    draw = random.Random(0)
    pools = (PLAIN + "_-", HOSTILE_CHARACTERS)
    return [
        "".join(draw.choices(pools[n % 2], k=draw.choice((1, 2, 3, 8, 62, 63, 64, 300))))
        for n in range(count)
    ]


def obeys_the_rule(name: str) -> bool:
    """The rule once more, without a regular expression."""
    return 1 <= len(name) <= 63 and name[0] in PLAIN and all(c in PLAIN + "_-" for c in name)


def test_a_name_passes_exactly_when_the_rule_allows_it() -> None:
    accepted = 0
    for name in [*HOSTILE_NAMES, *random_names(10_000)]:
        if obeys_the_rule(name):
            accepted += 1
            assert check_name(name, "run") == name
            assert Path(name).parts == (name,)
        else:
            with pytest.raises(ConfigError):
                check_name(name, "run")
    assert 2_000 < accepted < 9_000


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_refused_with_what_it_names_and_the_rule(name: str) -> None:
    with pytest.raises(ConfigError, match="^model .* is not a valid name; use 1 to 63 of a-z, 0-9, _ and -"):
        check_name(name, "model")


@pytest.fixture
def root_with_links(tmp_path: Path) -> Path:
    """A folder with a link out, a link inside and a link to itself."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root / "a")
    (root / "loop").symlink_to(root / "loop")
    return root


def test_a_join_stays_inside_its_root_or_is_refused(root_with_links: Path) -> None:
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


@pytest.mark.parametrize("parts", LEADING_OUT)
def test_a_path_that_leads_out_is_refused(root_with_links: Path, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="use a path inside it"):
        safe_join(root_with_links, *parts)


def test_a_link_to_the_inside_is_followed(root_with_links: Path) -> None:
    assert safe_join(root_with_links, "in", "file") == root_with_links.resolve() / "a" / "file"


def test_a_root_that_is_itself_a_link_may_be_used(root_with_links: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root_with_links)
    assert safe_join(tmp_path / "alias", "a") == root_with_links.resolve() / "a"


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(path: Path, *arguments: Any, opened: Callable[..., Any] = Path.open, **options: Any) -> Any:
    """An open file whose disk is full after two bytes."""
    file = opened(path, *arguments, **options)

    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            file.close()

        def write(self, content: bytes) -> None:
            file.write(content[:2])
            file.flush()
            full_disk()

    return Full()


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "write": (Path, "open", half_written),
    "sync": (os, "fsync", full_disk),
    "rename": (Path, "replace", full_disk),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [None, {"old": 1}])
def test_a_json_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, before: dict[str, int] | None
) -> None:
    path = tmp_path / "value.json"
    if before is not None:
        write_json(path, before)
    with monkeypatch.context() as patched:
        patched.setattr(*FAULTS[fault])
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"new": list(range(1000))})
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["value.json"])
    assert before is None or read_json(path) == before


def test_a_failed_sync_of_the_folder_leaves_the_new_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(files, "sync_dir", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_file_is_on_disk_before_its_name_is_and_its_name_before_the_call_returns(
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
    write_bytes(tmp_path / "file", b"content")
    assert order == ["file", "rename", "folder"]


def test_readers_beside_a_writer_see_only_whole_values(tmp_path: Path) -> None:
    path, values = tmp_path / "value.json", [["a"] * 20_000, ["b"] * 10]
    write_json(path, values[0])
    done = threading.Event()

    def write_on() -> None:
        for number in range(40):
            write_json(path, values[number % 2])
        done.set()

    writer = threading.Thread(target=write_on)
    writer.start()
    reads = 0
    while not done.is_set():
        assert read_json(path) in values
        reads += 1
    writer.join()
    assert reads > 10


def test_json_that_is_not_whole_is_damaged_input(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(DamagedInputError, match="value.json is not whole json") as caught:
        read_json(path)
    assert caught.value.exit_code == 4


def test_written_json_is_read_back_with_its_letters(tmp_path: Path) -> None:
    value = {"größe": "靴 👟", "n": [1, 2.5, None]}
    write_json(tmp_path / "deep" / "er" / "value.json", value)
    assert read_json(tmp_path / "deep" / "er" / "value.json") == value
    assert "größe" in (tmp_path / "deep" / "er" / "value.json").read_text(encoding="utf-8")


def test_a_digest_of_json_ignores_the_order_of_keys_and_nothing_else() -> None:
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


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def folder_with(path: Path, **contents: str) -> Path:
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_text(content)
    return path


def test_a_published_folder_replaces_the_older_one_whole(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "model", old="1", both="1")
    publish_dir(folder_with(tmp_path / ".staged", both="2", new="2"), final)
    assert {p.name: p.read_text() for p in final.iterdir()} == {"both": "2", "new": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_published_below_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    publish_dir(folder_with(tmp_path / "staged", a="1"), tmp_path / "new" / "deep" / "model")
    assert (tmp_path / "new" / "deep" / "model" / "a").read_text() == "1"


def test_a_publication_that_fails_leaves_the_older_folder_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, staged = folder_with(tmp_path / "model", old="1"), folder_with(tmp_path / "staged", new="2")
    rename = Path.rename

    def rename_but_not_staged(path: Path, target: Path) -> Path:
        if path == staged:
            full_disk()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_but_not_staged)
    with pytest.raises(OSError, match="No space left"):
        publish_dir(staged, final)
    assert (final / "old").read_text() == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "staged"]


def test_removing_a_tree_removes_it_and_does_not_mind_its_absence(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "tree" / "deep", a="1").parent
    remove_tree(folder)
    remove_tree(folder)
    (tmp_path / "file").write_text("in the place of a folder")
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_says_at_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/\.state\.json\..*\.tmp'"):
        write_json(tmp_path / "state.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_json_file_ends_in_a_line_break(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    assert (tmp_path / "a.json").read_text() == json.dumps([1], indent=2) + "\n"
