"""A lease has one holder at a time, even if holders die or lose the store."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from models.processes import machine_id
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.storage.lease import Lease, LeaseRecord, lease_key
from pipeline.storage.object_store import Folder, Store, open_store
from tests.support.places import ROOT

DURATION_S = 0.8


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> Store:
    return open_store(tmp_path / "scores" if request.param == "folder" else f"s3://labels/{tmp_path.name}")


def short_lease(store: Store) -> Lease:
    """Return a lease that expires soon."""
    return Lease(store, duration_s=DURATION_S)


def foreign_record(until_s: float, machine: str = "elsewhere", renewals: int = 0) -> bytes:
    """Return the lease file of a process on another machine."""
    return LeaseRecord(socket.gethostname(), machine, 1, 0.0, until_s, renewals=renewals).to_json()


def test_renewed_lease_excludes_others_and_names_holder(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = f"is leased by process {os.getpid()} on .*; wait for that process and run the same command"
    with caplog.at_level(logging.INFO, "pipeline.storage.lease"), short_lease(store) as held:
        for _ in range(2):
            with pytest.raises(RetryableError, match=refusal), short_lease(store):
                pass
        held.check()
        time.sleep(DURATION_S)
        assert not held.is_lost
    assert len(caplog.messages) == 2
    assert "waiting up to 1 s to see whether the lease is renewed" in caplog.messages[0]
    with short_lease(store), pytest.raises(RetryableError), short_lease(store):
        pass


UNCHANGED = {
    "ahead": foreign_record(time.time() + 86_400),
    "behind": foreign_record(time.time() - 86_400),
    "nan": foreign_record(float("nan")),
    "huge": foreign_record(1e308),
    "infinite": foreign_record(float("inf")),
    "absent": foreign_record(1.0).replace(b'"until_s":1.0', b'"run_id":""'),
    "text": foreign_record(1.0).replace(b'"until_s":1.0', b'"until_s":"tomorrow"'),
    "start of the process": foreign_record(1.0, machine_id()).replace(b'start_s":0.0', b'start_s":NaN'),
    "huge pid": foreign_record(1.0, machine_id()).replace(b'"pid":1,', b'"pid":1e400,'),
    "torn": b'{"host": "elsewhe',
    "list": b"[1]",
    "empty": b"",
}


@pytest.mark.parametrize("content", UNCHANGED.values(), ids=UNCHANGED.keys())
def test_unchanged_lease_is_taken_over_after_its_duration(tmp_path: Path, content: bytes) -> None:
    store = Folder(tmp_path)
    store.put(lease_key(7), content)
    started_s = time.monotonic()
    with short_lease(store) as held:
        assert DURATION_S <= time.monotonic() - started_s < 60
        assert held.number == 8


def test_expired_lease_of_another_machine_is_taken_over(store: Store) -> None:
    store.put(lease_key(99_999_999), foreign_record(0.5))
    with short_lease(store) as held:
        assert held.number == 100_000_000
    with short_lease(store) as held:
        assert held.number == 100_000_001


@pytest.mark.parametrize("skew_s", [-86_400.0, 86_400.0])
def test_renewed_lease_of_a_wrong_clock_is_respected(tmp_path: Path, skew_s: float) -> None:
    store, is_over = Folder(tmp_path), threading.Event()

    def renew() -> None:
        renewals = 0
        while not is_over.wait(DURATION_S / 4):
            renewals += 1
            store.put(lease_key(7), foreign_record(time.time() + skew_s, renewals=renewals))

    store.put(lease_key(7), foreign_record(time.time() + skew_s))
    holder = threading.Thread(target=renew)
    holder.start()
    try:
        with pytest.raises(RetryableError, match="is leased by process 1 on"), short_lease(store):
            pass
    finally:
        is_over.set()
        holder.join()


def test_clock_that_is_set_does_not_end_a_local_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with short_lease(Folder(tmp_path)):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with pytest.raises(RetryableError, match="is leased by"), short_lease(Folder(tmp_path)):
            pass


def test_what_is_no_file_in_a_leases_place_is_named(tmp_path: Path) -> None:
    folder, pipe, outer = (Folder(tmp_path / name) for name in ("folder", "pipe", "outer"))
    (folder.root / lease_key(1)).mkdir(parents=True)
    (pipe.root / "lease").mkdir(parents=True)
    os.mkfifo(pipe.root / lease_key(1))
    outer.root.mkdir()
    os.mkfifo(outer.root / "lease")
    for store in (folder, pipe):
        with (
            pytest.raises(DamagedInputError, match="00000001.json is not a file; remove it"),
            short_lease(store),
        ):
            pass
    with pytest.raises(ConfigError, match="lease is not a folder; remove it"), short_lease(outer):
        pass


def test_holder_detects_takeover_and_leaves_new_lease(store: Store) -> None:
    with short_lease(store) as held:
        foreign = foreign_record(time.time() + 60)
        store.put(lease_key(held.number + 1), foreign)
        held._renewal_thread.join(timeout=10)
        with pytest.raises(RetryableError, match="was lost to another process"):
            held.check()
    assert store.get(lease_key(held.number + 1)) == foreign


def test_unreachable_store_at_exit_does_not_hide_the_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RetryableError("unreachable")

    with pytest.raises(ZeroDivisionError), short_lease(store):
        monkeypatch.setattr(type(store), "put", fail)
        raise ZeroDivisionError


def test_lease_deleted_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Folder(tmp_path)
    store.put(lease_key(3), foreign_record(0.0))
    get, calls = Folder.get, []

    def get_after_deletion(store: Store, key: str) -> bytes:
        calls.append(key)
        if len(calls) == 1:
            raise FileNotFoundError(key)
        return get(store, key)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "get", get_after_deletion)
    with short_lease(store) as held:
        assert held.number == 4


def test_other_files_in_the_lease_folder_stay(store: Store) -> None:
    store.put("lease/README", b"hands off")
    with short_lease(store):
        pass
    assert store.get("lease/README") == b"hands off"


def test_store_that_ignores_put_if_absent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "put_if_absent", lambda store, key, content: store.put(key, content) or True)
    with (
        pytest.raises(ConfigError, match="overwrites existing files despite If-None-Match"),
        short_lease(Folder(tmp_path)),
    ):
        pass


PROGRAM = """
import sys, time
from pipeline.storage.lease import Lease
from pipeline.storage.object_store import open_store
with Lease(open_store(sys.argv[1]), duration_s=600.0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_lease_of_a_killed_local_process_is_free_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    started_s = time.monotonic()
    with Lease(Folder(tmp_path), duration_s=600.0):
        assert time.monotonic() - started_s < 60


def test_of_many_threads_one_holds_the_lease(store: Store) -> None:
    num_inside, max_inside, num_done = 0, 0, 0
    guard = threading.Lock()

    def hold_once() -> None:
        nonlocal num_inside, max_inside, num_done
        while True:
            try:
                with short_lease(store):
                    with guard:
                        num_inside += 1
                        max_inside = max(max_inside, num_inside)
                    time.sleep(0.05)
                    with guard:
                        num_inside, num_done = num_inside - 1, num_done + 1
                    return
            except RetryableError:
                continue

    threads = [threading.Thread(target=hold_once) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (max_inside, num_done) == (1, 6)
    assert len(list(store.list("lease"))) <= 2
