"""A folder and a bucket keep the same promises; a bucket survives lost answers and outages."""

import errno
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.storage.object_store import Bucket, BucketFile, Store, open_store
from tests.support.servers import ProxyFaults, proxy

RACERS, RACES = 4, 25


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> Path | str:
    """Return the location of an empty store."""
    return tmp_path / "store" if request.param == "folder" else f"s3://labels/{tmp_path.name}"


def keys(store: Store, folder: str = "") -> list[str]:
    return [entry.key for entry in store.list(folder)]


def test_content_stays_until_it_is_deleted(location: Path | str) -> None:
    store = open_store(location)
    assert not store.exists("a/one") and keys(store) == []
    with pytest.raises(FileNotFoundError, match="a/one"):
        store.get("a/one")
    store.put("a/one", b"first")
    store.put("a/one", b"second")
    store.put("b/two.json", b"")
    assert store.get("a/one") == b"second" and store.exists("a/one") and store.get("b/two.json") == b""
    assert keys(store) == ["a/one", "b/two.json"] and keys(store, "a") == ["a/one"] and keys(store, "c") == []
    (entry,) = store.list("a")
    assert entry.size == 6 and abs(entry.modified_s - time.time()) < 60 and not entry.is_hidden
    store.delete("a/one")
    store.delete("a/one")
    assert keys(store) == ["b/two.json"]


def test_put_if_absent_never_overwrites(location: Path | str) -> None:
    store = open_store(location)
    assert store.put_if_absent("log/1.json", b"first") is True
    assert store.put_if_absent("log/1.json", b"second") is False
    assert store.get("log/1.json") == b"first" and keys(store) == ["log/1.json"]


def test_one_of_several_racers_creates_a_key(location: Path | str) -> None:
    won: list[list[bool]] = [[] for _ in range(RACES)]
    gate = threading.Barrier(RACERS)

    def race(racer: int) -> None:
        store = open_store(location)
        for number in range(RACES):
            gate.wait()
            won[number].append(store.put_if_absent(f"k{number}", str(racer).encode()))

    threads = [threading.Thread(target=race, args=(racer,)) for racer in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(results) for results in won] == [[False] * (RACERS - 1) + [True]] * RACES


def test_key_outside_the_store_is_refused(location: Path | str) -> None:
    store = open_store(location)
    for key in ("../outside", "a/../../outside"):
        with pytest.raises(ConfigError, match="use a path inside it"):
            store.put(key, b"x")
        with pytest.raises(ConfigError, match="use a path inside it"):
            store.get(key)


def test_folder_never_follows_a_link_to_a_file_or_folder(tmp_path: Path) -> None:
    store, outside = open_store(tmp_path / "store"), tmp_path / "outside"
    store.put("data/kept", b"kept")
    outside.mkdir()
    (outside / "file").write_bytes(b"theirs")
    for name, target in (
        ("file", outside / "file"),
        ("inner", tmp_path / "store/data/kept"),
        ("dir", outside),
    ):
        (tmp_path / "store" / "data" / name).symlink_to(target)
    linked = ["data/dir", "data/file", "data/inner"]
    assert keys(store) == sorted([*linked, "data/kept"]), "of a linked folder nothing is listed"
    for key in (*linked, "data/dir/file"):
        for use in (
            store.get,
            store.exists,
            lambda key: store.put(key, b""),
            lambda key: store.put_if_absent(key, b""),
        ):
            with pytest.raises(ConfigError, match="links inside .* are not followed"):
                use(key)
    with pytest.raises(ConfigError, match="links inside .* are not followed"):
        store.delete("data/dir/file")
    for key in linked:
        store.delete(key)
    assert keys(store) == ["data/kept"] and store.get("data/kept") == b"kept"
    assert (outside / "file").read_bytes() == b"theirs"


def test_folder_refuses_to_read_what_is_no_file(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for key in ("pipe", "folder"):
        assert not store.exists(key)
        with pytest.raises(DamagedInputError, match=f"{key} is not a file; remove it"):
            store.get(key)


def test_folder_without_permission_to_list_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.put("manifests/a.json", b"{}")

    def refusing(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="manifests"):
        keys(store, "manifests")


@pytest.fixture
def troubled(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bucket, ProxyFaults]]:
    """Return a bucket behind a proxy that misbehaves as configured."""
    trouble = ProxyFaults()
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield Bucket("s3://labels/troubled"), trouble


def test_put_with_lost_answer_still_wins(troubled: tuple[Bucket, ProxyFaults]) -> None:
    bucket, trouble = troubled
    trouble.lose_answers_to = "/lost.json"
    try:
        won = bucket.put_if_absent("lost.json", b"ours")
    except RetryableError:  # the first call may not know who won; a second call does
        won = bucket.put_if_absent("lost.json", b"ours")
    assert trouble.lose_answers_to == "" and won is True
    assert bucket.get("lost.json") == b"ours" and bucket.put_if_absent("lost.json", b"theirs") is False


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (403, ConfigError, "refuses access to k .*check AWS_ACCESS_KEY_ID"),
        (401, ConfigError, "refuses access to k .*check AWS_ACCESS_KEY_ID"),
        (400, RetryableError, "request to s3://labels/troubled failed"),
    ],
)
def test_refusal_names_its_remedy(
    troubled: tuple[Bucket, ProxyFaults], status: int, error: type[Exception], message: str
) -> None:
    bucket, trouble = troubled
    trouble.status = status
    for request in (
        lambda: bucket.get("k"),
        lambda: bucket.put("k", b""),
        lambda: bucket.put_if_absent("k", b""),
    ):
        with pytest.raises(error, match=message):
            request()


def test_requests_to_a_failing_store_end_in_bounded_time(
    troubled: tuple[Bucket, ProxyFaults], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, trouble = troubled
    trouble.status = 503
    started_s = time.monotonic()
    with pytest.raises(RetryableError, match="request to s3://labels/.* failed"):
        bucket.get("k")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match="request to s3://labels/.* failed"):
        Bucket("s3://labels/away").put_if_absent("k", b"")
    assert time.monotonic() - started_s < 100


def test_missing_bucket_is_a_config_error(s3: str) -> None:
    bucket = Bucket("s3://nowhere/labels")
    for request in (lambda: bucket.get("k"), lambda: bucket.put("k", b""), lambda: list(bucket.list(""))):
        with pytest.raises(ConfigError, match="bucket does not exist: s3://nowhere/labels; create it"):
            request()


def test_bucket_file_reads_like_a_file_until_it_changes(s3: str) -> None:
    bucket = Bucket("s3://labels/files")
    bucket.put("f", bytes(range(100)))
    (entry,) = bucket.list("")
    file = BucketFile(bucket, entry)
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


def test_client_is_shared_until_the_settings_change(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store("s3://labels/a")
    assert open_store("s3://labels/a/") is first and open_store("s3://labels/b") is not first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert open_store("s3://labels/a") is not first


def test_invalid_url_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="object store URL is invalid: s3:"):
        open_store("s3://")
