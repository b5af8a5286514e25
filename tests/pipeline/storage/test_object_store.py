"""A folder and a bucket, held to the same promises; then what only a bucket goes through."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.object_store import Bucket, Store, StoredFile, open_store
from tests.support.servers import Trouble, proxy

RACERS, RACES = 4, 25


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> Path | str:
    """Where a store of the test's own is."""
    return tmp_path / "store" if request.param == "folder" else f"s3://labels/{tmp_path.name}"


def keys(store: Store, folder: str = "") -> list[str]:
    return [entry.key for entry in store.list(folder)]


def test_what_is_put_is_there_whole_until_it_is_deleted(place: Path | str) -> None:
    store = open_store(place)
    assert not store.exists("a/one") and keys(store) == []
    with pytest.raises(FileNotFoundError, match="a/one"):
        store.get("a/one")
    store.put("a/one", b"first")
    store.put("a/one", b"second")
    store.put("b/two.json", b"")
    assert store.get("a/one") == b"second" and store.exists("a/one") and store.get("b/two.json") == b""
    assert keys(store) == ["a/one", "b/two.json"] and keys(store, "a") == ["a/one"] and keys(store, "c") == []
    (entry,) = store.list("a")
    assert entry.size == 6 and abs(entry.modified_s - time.time()) < 60 and not entry.hidden
    store.delete("a/one")
    store.delete("a/one")
    assert keys(store) == ["b/two.json"]


def test_put_if_absent_never_overwrites(place: Path | str) -> None:
    store = open_store(place)
    assert store.put_if_absent("log/1.json", b"first") is True
    assert store.put_if_absent("log/1.json", b"second") is False
    assert store.get("log/1.json") == b"first" and keys(store) == ["log/1.json"]


def test_of_those_who_race_for_a_key_one_wins(place: Path | str) -> None:
    won: list[list[bool]] = [[] for _ in range(RACES)]
    gate = threading.Barrier(RACERS)

    def race(racer: int) -> None:
        store = open_store(place)
        for number in range(RACES):
            gate.wait()
            won[number].append(store.put_if_absent(f"k{number}", str(racer).encode()))

    threads = [threading.Thread(target=race, args=(racer,)) for racer in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(results) for results in won] == [[False] * (RACERS - 1) + [True]] * RACES


def test_a_key_leads_nowhere_else(place: Path | str) -> None:
    store = open_store(place)
    for key in ("../outside", "a/../../outside"):
        with pytest.raises(ConfigError, match="use a path inside it"):
            store.put(key, b"x")
        with pytest.raises(ConfigError, match="use a path inside it"):
            store.get(key)


@pytest.fixture
def troubled(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bucket, Trouble]]:
    """A bucket behind something that goes wrong."""
    trouble = Trouble()
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield Bucket("s3://labels/troubled"), trouble


def test_a_put_whose_answer_was_lost_is_ours_all_the_same(troubled: tuple[Bucket, Trouble]) -> None:
    bucket, trouble = troubled
    trouble.lose_answers_to = "/lost.json"
    try:
        won = bucket.put_if_absent("lost.json", b"ours")
    except RetryableError:  # it may not know; then it says so, and asked again it does
        won = bucket.put_if_absent("lost.json", b"ours")
    assert trouble.lose_answers_to == "" and won is True
    assert bucket.get("lost.json") == b"ours" and bucket.put_if_absent("lost.json", b"theirs") is False


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (403, ConfigError, "refuses access to k .*check AWS_ACCESS_KEY_ID"),
        (401, ConfigError, "refuses access to k .*check AWS_ACCESS_KEY_ID"),
        (400, RetryableError, "does not do what it is asked"),
    ],
)
def test_what_a_store_refuses_is_told(
    troubled: tuple[Bucket, Trouble], status: int, error: type[Exception], told: str
) -> None:
    bucket, trouble = troubled
    trouble.status = status
    for ask in (
        lambda: bucket.get("k"),
        lambda: bucket.put("k", b""),
        lambda: bucket.put_if_absent("k", b""),
    ):
        with pytest.raises(error, match=told):
            ask()


def test_a_store_that_is_ill_for_good_or_away_is_given_up_in_a_bounded_time(
    troubled: tuple[Bucket, Trouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, trouble = troubled
    trouble.status = 503
    started_s = time.monotonic()
    with pytest.raises(RetryableError, match="does not do what it is asked"):
        bucket.get("k")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match="does not do what it is asked"):
        Bucket("s3://labels/away").put_if_absent("k", b"")
    assert time.monotonic() - started_s < 100


def test_a_bucket_that_is_not_there_is_an_error_of_the_config(s3: str) -> None:
    bucket = Bucket("s3://nowhere/labels")
    for ask in (lambda: bucket.get("k"), lambda: bucket.put("k", b""), lambda: list(bucket.list(""))):
        with pytest.raises(
            ConfigError, match="s3://nowhere/labels lies in no bucket that there is; make the bucket"
        ):
            ask()


def test_a_stored_file_is_read_as_files_are_and_only_as_long_as_it_is_the_same(s3: str) -> None:
    bucket = Bucket("s3://labels/files")
    bucket.put("f", bytes(range(100)))
    (entry,) = bucket.list("")
    file = StoredFile(bucket, entry)
    assert (file.read(3), file.tell(), file.seek(-2, io.SEEK_END), file.read(), file.read(1)) == (
        b"\0\1\2",
        3,
        98,
        b"bc",
        b"",
    )
    assert file.seek(10) == 10 and file.seek(5, io.SEEK_CUR) == 15 and file.read(1) == b"\x0f"
    bucket.put("f", bytes(reversed(range(100))))
    file.seek(0)
    with pytest.raises(RetryableError, match="s3://labels/files/f changed while it was read"):
        file.read(3)


def test_a_place_is_asked_through_one_client_as_long_as_the_settings_are_the_same(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store("s3://labels/a")
    assert open_store("s3://labels/a/") is first and open_store("s3://labels/b") is not first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert open_store("s3://labels/a") is not first


def test_places_are_told_apart() -> None:
    assert is_bucket("s3://b/p") and not is_bucket("/data/s3://b") and not is_bucket(Path("b"))
    with pytest.raises(ConfigError, match="is no place in an object store"):
        open_store("s3://")
