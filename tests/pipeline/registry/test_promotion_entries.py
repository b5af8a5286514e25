"""Reading a promotion log: every damage is named, and what our own writers leave is not one."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from models.files import temporary_path
from pipeline.errors import DamagedInputError
from pipeline.registry.promotion_entries import (
    BundleTags,
    GateTag,
    PromotionEntry,
    entry_name,
    last_rollback_of,
    read_entries,
)
from pipeline.storage.filesystem import canonical_json

FIRST = PromotionEntry(
    number=1,
    kind="promotion",
    version="1",
    expected_champion=None,
    by="ana",
    at="2026-01-31T12:00:00Z",
    bundle_sha256="1" * 64,
    macro_pr_auc=0.8,
    lexical_macro_pr_auc=0.7,
    previous_sha256=None,
)


def next_entry(previous: PromotionEntry, **changes: Any) -> PromotionEntry:
    """Return the entry that follows another one."""
    linked = {
        "number": previous.number + 1,
        "expected_champion": previous.version,
        "previous_sha256": previous.sha256,
    }
    return replace(previous, **{**linked, **changes})


SECOND = next_entry(FIRST, version="2", bundle_sha256="2" * 64, gate=GateTag("1", True, "g"))
THIRD = next_entry(SECOND, kind="rollback", version="1", bundle_sha256="1" * 64, override="bad", gate=None)
LOG = (FIRST, SECOND, THIRD)


def write_log(folder: Path, *entries: PromotionEntry) -> Path:
    """Write the files of a log."""
    folder.mkdir(exist_ok=True)
    for number, entry in enumerate(entries, start=1):
        (folder / entry_name(number)).write_bytes(entry.to_bytes())
    return folder


def test_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "absent") == []
    folder = write_log(tmp_path / "log", *LOG)
    assert read_entries(folder) == list(LOG)
    assert last_rollback_of(LOG, "2") == THIRD and last_rollback_of(LOG, "1") is None


def test_temporary_file_of_a_writer_is_no_entry(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log", *LOG)
    temporary_path(folder / entry_name(4)).write_bytes(b"half an en")
    assert read_entries(folder) == list(LOG)


def rewrite(number: int, **changes: Any) -> Callable[[Path], None]:
    """Return a damage that changes fields of one entry."""

    def damage(folder: Path) -> None:
        path = folder / entry_name(number)
        path.write_text(canonical_json(json.loads(path.read_text()) | changes))

    return damage


def without(number: int, field: str) -> Callable[[Path], None]:
    """Return a damage that removes a field of one entry."""

    def damage(folder: Path) -> None:
        path = folder / entry_name(number)
        fields = json.loads(path.read_text())
        del fields[field]
        path.write_text(canonical_json(fields))

    return damage


def entries(*log: PromotionEntry) -> Callable[[Path], Any]:
    """Return a damage that replaces the log by one that nobody could have written."""
    return lambda folder: write_log(folder, *log)


def change_bytes(number: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a damage to the bytes of one entry."""

    def damage(folder: Path) -> None:
        path = folder / entry_name(number)
        path.write_bytes(change(path.read_bytes()))

    return damage


def plant(name: str) -> Callable[[Path], Any]:
    """Return a damage that puts a file beside the entries."""
    return lambda folder: (folder / name).write_bytes(FIRST.to_bytes())


def replace_file(put: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return a damage that puts something else in the place of the second entry."""

    def damage(folder: Path) -> None:
        path = folder / entry_name(2)
        path.rename(folder.parent / f"{folder.name}.kept")
        put(path)

    return damage


NOT_REGULAR = "entry of the promotion log is not a regular file: {folder}/000002"

DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (change_bytes(2, lambda content: content[:20]), "is damaged (Invalid JSON"),
    "empty": (change_bytes(3, lambda content: b""), "is damaged (Invalid JSON"),
    "no object": (change_bytes(1, lambda content: b"[1]"), "is damaged (Input should be an object"),
    "a space": (change_bytes(3, lambda content: content + b" "), "bytes are not those that were recorded"),
    "a name twice": (
        change_bytes(3, lambda content: content[:-1] + b',"version":"1"}'),
        "bytes are not those that were recorded",
    ),
    "unknown field": (rewrite(3, more=1), "bytes are not those that were recorded"),
    "without a chain": (without(1, "previous_sha256"), "is damaged (previous_sha256: Field required"),
    "entry that is a folder": (replace_file(Path.mkdir), NOT_REGULAR),
    "entry that is a pipe": (replace_file(os.mkfifo), NOT_REGULAR),
    "link to the entry elsewhere": (
        replace_file(lambda path: path.symlink_to(f"{path.parent}.kept")),
        NOT_REGULAR,
    ),
    "link to nothing": (replace_file(lambda path: path.symlink_to("/nonexistent")), NOT_REGULAR),
    "link to itself": (replace_file(lambda path: path.symlink_to(path)), NOT_REGULAR),
    "metric that is no number": (entries(replace(FIRST, macro_pr_auc=float("nan"))), "macro_pr_auc: "),
    "metric above 1": (entries(replace(FIRST, macro_pr_auc=5.0)), "macro_pr_auc: Input should be less"),
    "negative floor": (entries(replace(FIRST, lexical_macro_pr_auc=-1.0)), "lexical_macro_pr_auc: Input "),
    "another type": (rewrite(1, version=1), "is damaged (version: Input should be a valid string"),
    "version that is a path": (rewrite(1, version="../1"), "is damaged (version: String should match"),
    "unknown kind": (rewrite(1, kind="demotion"), "is damaged (kind: Input should be 'promotion'"),
    "altered": (rewrite(1, by="bob"), "the entry before it is not the one that it names): {folder}/000002"),
    "lost in the middle": (lambda folder: (folder / entry_name(2)).unlink(), "lacks entry 2"),
    "lost at the start": (lambda folder: (folder / entry_name(1)).unlink(), "lacks entry 1"),
    "another number": (entries(FIRST, replace(SECOND, number=3)), "broken (it has number 3)"),
    "chained to nothing": (entries(replace(FIRST, previous_sha256="0" * 64)), "it names one before it"),
    "another champion": (
        entries(FIRST, next_entry(FIRST, version="3", expected_champion="2")),
        "it replaces version 2, the champion was version 1",
    ),
    "first with a champion": (
        entries(replace(FIRST, expected_champion="7")),
        "it replaces version 7, the champion was version None",
    ),
    "promotion of the champion": (entries(FIRST, next_entry(FIRST)), "it promotes the champion, version 1"),
    "rollback first": (
        entries(replace(FIRST, kind="rollback")),
        "version 1 is not the champion that a rollback returns to",
    ),
    "rollback to another version": (
        entries(FIRST, SECOND, next_entry(SECOND, kind="rollback", version="3", gate=None)),
        "version 3 is not the champion that a rollback returns to",
    ),
    "rollback to another bundle": (
        entries(FIRST, SECOND, replace(THIRD, bundle_sha256="3" * 64)),
        "version 1 is not the champion that a rollback returns to",
    ),
    "copy": (plant("000003 (1).json"), "holds files that are no entries: 000003 (1).json; move them"),
    "hidden": (plant(".DS_Store"), "holds files that are no entries: .DS_Store"),
    "folder": (lambda folder: (folder / "old").mkdir(), "holds files that are no entries: old"),
    "name with too many zeros": (plant("0000004.json"), "lacks entry 4"),
}


def test_each_damage_of_a_log_is_refused_by_name(tmp_path: Path) -> None:
    accepted = []
    for number, (name, (damage, words)) in enumerate(DAMAGES.items()):
        folder = write_log(tmp_path / str(number), *LOG)
        damage(folder)
        try:
            read_entries(folder)
            accepted.append(f"{name}: not refused")
        except DamagedInputError as error:
            remedies = ("relevance promote --begin-log", "move them away")
            if words.format(folder=folder) not in str(error) or not any(map(str(error).count, remedies)):
                accepted.append(f"{name}: {error}")
    assert accepted == []


def test_log_folder_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("/nonexistent")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "link", "loop"):
        with pytest.raises(DamagedInputError, match=f"promotion log is not a folder: .*/{name}; mount or"):
            read_entries(tmp_path / name)


def test_recorded_entry_keeps_its_names() -> None:
    recorded = json.loads(SECOND.to_bytes())
    assert recorded == asdict(SECOND) and recorded["gate"] == {"against": "1", "passed": True, "sha256": "g"}
    assert "gate" not in json.loads(THIRD.to_bytes())


@pytest.mark.parametrize(
    "tag", ["", "{", "[]", '{"against":"1","passed":"yes","sha256":"g"}', '{"passed":true}']
)
def test_altered_gate_tag_is_damaged_input(tag: str) -> None:
    with pytest.raises(DamagedInputError, match="tag gate of the version is damaged"):
        GateTag.from_tags({"gate": tag})


def test_tags_that_no_entry_may_record_are_refused() -> None:
    tags = {"bundle_sha256": "1" * 64, "macro_pr_auc": "0.812345", "lexical_macro_pr_auc": "1"}
    assert BundleTags.parse(tags) == BundleTags("1" * 64, 0.812345, 1.0)
    digests = ("", "none", "A" * 64, "1" * 63)
    numbers = ("", "abc", "nan", "NaN", "inf", "1e999", "-1", "5", "1_0", "0_1", "true", '"0.8"', "[0.8]")
    for name, values in {
        "bundle_sha256": digests,
        "macro_pr_auc": numbers,
        "lexical_macro_pr_auc": numbers,
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}: "):
                BundleTags.parse({**tags, name: value})
