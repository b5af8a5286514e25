"""One scorer at a time at a place, whatever becomes of those who hold its lease."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.storage.lease import Lease, key_of
from pipeline.storage.object_store import Folder, Store, open_store
from tests.support.places import ROOT

LASTS_S = 0.8


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> Store:
    return open_store(tmp_path / "scores" if request.param == "folder" else f"s3://labels/{tmp_path.name}")


def lease(store: Store, said: list[str] | None = None) -> Lease:
    return Lease(store, (said if said is not None else []).append, LASTS_S)


def test_who_holds_a_lease_keeps_it_by_renewing_it_and_others_are_told_who(store: Store) -> None:
    said: list[str] = []
    with lease(store) as held:
        for _ in range(2):
            told = f"process {os.getpid()}, scores into .*; wait for it and run the same command again"
            with pytest.raises(RetryableError, match=told), lease(store, said):
                pass
        held.check()
        time.sleep(LASTS_S)
        assert not held.lost
    assert len(said) == 2 and "waiting to see whether it still does" in said[0]
    with lease(store), pytest.raises(RetryableError), lease(store):
        pass


def test_a_lease_of_another_machine_is_taken_when_it_has_run_out_and_not_before(store: Store) -> None:
    far = {
        "host": socket.gethostname(),
        "machine": "elsewhere",
        "pid": 1,
        "process_started_s": 0.0,
        "until_s": time.time() + 1.0,
    }
    store.put(key_of(7), json.dumps(far).encode())
    started_s = time.time()
    with lease(store) as held:
        assert time.time() >= far["until_s"] and time.time() - started_s < 10
        assert held.number == 8


def test_a_holder_whose_lease_was_taken_over_learns_of_it_and_leaves_the_new_one_alone(store: Store) -> None:
    with lease(store) as held:
        far = json.dumps(
            {
                "host": "elsewhere",
                "machine": "elsewhere",
                "pid": 1,
                "process_started_s": 0.0,
                "until_s": time.time() + 60,
            }
        ).encode()
        store.put(key_of(held.number + 1), far)
        held._renewing.join(timeout=10)
        with pytest.raises(RetryableError, match="another took over the scoring"):
            held.check()
    assert store.get(key_of(held.number + 1)) == far


def test_a_store_that_is_away_at_the_end_does_not_hide_what_the_work_ended_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RetryableError("away")

    with pytest.raises(ZeroDivisionError), lease(store) as held:
        monkeypatch.setattr(held, "_put", away)
        raise ZeroDivisionError


def test_a_file_that_says_nothing_of_a_lease_is_named_and_others_are_left_alone(store: Store) -> None:
    store.put("lease/README", b"hands off")
    with lease(store):
        pass
    store.put(key_of(9), b'{"host": "elsewhe')
    with (
        pytest.raises(
            DamagedInputError, match="lease/00000009.json says nothing of a lease .* then delete it"
        ),
        lease(store),
    ):
        pass


def test_a_store_that_replaces_what_it_should_keep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "put_if_absent", lambda store, key, content: store.put(key, content) or True)
    with (
        pytest.raises(ConfigError, match="replaces what is there though it is asked not to.*If-None-Match"),
        lease(Folder(tmp_path)),
    ):
        pass


PROGRAM = """
import sys, time
from pipeline.storage.lease import Lease
from pipeline.storage.object_store import open_store
with Lease(open_store(sys.argv[1]), print, 600.0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    started_s = time.monotonic()
    with Lease(Folder(tmp_path), print, 600.0):
        assert time.monotonic() - started_s < 5


def test_of_many_at_once_one_holds_the_lease_at_any_time(store: Store) -> None:
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        while True:
            try:
                with lease(store):
                    with guard:
                        inside, most = inside + 1, max(most, inside + 1)
                    time.sleep(0.05)
                    with guard:
                        inside, done = inside - 1, done + 1
                    return
            except RetryableError:
                continue

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (most, done) == (1, 6)
    assert len(list(store.list("lease"))) <= 2
