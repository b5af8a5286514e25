"""Cached entries: current ones come back, no damaged one does, and there are few segments."""

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RetryableError
from pipeline.storage import entry_cache
from pipeline.storage.entry_cache import Entry, EntryCache
from pipeline.storage.object_store import Folder, Store
from tests.support.memory_bucket import MemoryBucket
from tests.support.score_partitions import files_below


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Folder(tmp_path) if request.param == "folder" else MemoryBucket()


def save(store: Store, values: Mapping[str, str], **forgotten: Any) -> None:
    """Read the cache and save the values, whose stamps are the values themselves."""
    cache = EntryCache(store, "c")
    known = {(entry.key, entry.stamp) for entry in cache.read()}
    for key, value in values.items():
        if (key, value) not in known:
            cache.add(Entry(key, value, value.encode()))
    cache.save(values, **forgotten)


def load(store: Store) -> dict[str, str]:
    found = list(EntryCache(store, "c").read())
    assert all(entry.stamp == entry.value.decode() for entry in found)
    return {entry.key: entry.stamp for entry in found}


def num_segments(store: Store) -> int:
    return len(list(store.list("cache")))


def test_saved_entries_come_back_and_old_ones_go(store: Store) -> None:
    save(store, {"a": "1", "b": "1"})
    assert load(store) == {"a": "1", "b": "1"}
    save(store, {"a": "1", "b": "2"})
    assert load(store) == {"a": "1", "b": "2"} and num_segments(store) == 1
    save(store, {"a": "1", "b": "2"}, forgotten=["b"])
    assert load(store) == {"a": "1"}
    save(store, {})
    assert load(store) == {} and num_segments(store) == 0


def test_save_without_news_changes_nothing() -> None:
    bucket = MemoryBucket()
    save(bucket, {"a": "1"})
    bucket.requests.clear()
    save(bucket, {"a": "1"})
    assert [method for method, _ in bucket.requests] == ["list", "get"]


def test_many_small_saves_leave_few_segments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_cache, "SEGMENT_BYTES", 400)
    values: dict[str, str] = {}
    for number in range(60):
        values[f"key-{number}"] = str(number) * 10
        save(store, values)
    assert load(store) == values
    total = sum(len(key) + 2 * len(value) for key, value in values.items())
    assert num_segments(store) <= total / 200 + 1
    values = {key: values[key] for key in list(values)[-5:]}
    save(store, values)
    assert values.items() <= load(store).items() and num_segments(store) <= 2


@pytest.mark.parametrize("damage", ["torn", "altered", "gone", "folder"])
def test_damaged_segment_is_passed_over_and_replaced(tmp_path: Path, damage: str) -> None:
    store = Folder(tmp_path)
    save(store, {"a": "1"})
    [name] = files_below(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(content[:40] if damage == "torn" else content.replace(b"1", b"2"))
    assert load(store) == {}
    save(store, {"a": "1", "b": "1"})
    assert load(store) == {"a": "1", "b": "1"}


class _FailingStore(Folder):
    """Folder that fails at one of its changes, as if the process ended there."""

    def __init__(self, root: Path, fails_at: int) -> None:
        super().__init__(root)
        self.changes, self.fails_at = itertools.count(), fails_at

    def _change(self) -> None:
        if next(self.changes) >= self.fails_at:
            raise RetryableError("store lost")

    def put(self, key: str, content: bytes) -> None:
        self._change()
        super().put(key, content)

    def delete(self, key: str) -> None:
        self._change()
        super().delete(key)


def test_save_that_ends_anywhere_loses_no_saved_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entry_cache, "SEGMENT_BYTES", 100)
    old = {f"key-{number}": "1" * 9 for number in range(9)}
    for fails_at in range(8):
        root = tmp_path / str(fails_at)
        for number in range(9):
            save(Folder(root), dict(list(old.items())[: number + 1]))
        save(_FailingStore(root, fails_at), old | {"new": "2"}, forgotten=["key-1", "key-5"])
        found = load(Folder(root))
        assert {key: found[key] for key in old if key not in ("key-1", "key-5")}.items() <= old.items()
        assert len(found) >= 7 and set(found.items()) <= {*old.items(), ("new", "2")}
    assert "cache not written" in caplog.text


def test_writers_at_once_lose_no_entry(store: Store) -> None:
    save(store, {"a": "1"})
    start = threading.Barrier(4)

    def write(number: int) -> None:
        start.wait()
        save(store, {"a": "1", f"b{number}": "1"})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load(store)
    assert found["a"] == "1" and set(found) <= {"a", "b0", "b1", "b2", "b3"}
