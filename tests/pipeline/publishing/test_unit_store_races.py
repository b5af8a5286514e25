"""Races for one unit: one publication wins, the others leave nothing."""

import subprocess
import sys
import threading
from pathlib import Path

from pipeline.publishing.unit_store import list_published_units
from pipeline.storage.filesystem import put_if_absent
from tests.support.places import ROOT
from tests.support.published_tables import publish_rows, published_rows
from tests.support.score_partitions import files_below


def test_one_of_racing_threads_publishes_each_unit(tmp_path: Path) -> None:
    rounds, racers = 50, 3
    won: list[list[bool]] = [[] for _ in range(rounds)]
    gate = threading.Barrier(racers)

    def race(racer: int) -> None:
        for number in range(rounds):
            gate.wait()
            won[number].append(publish_rows(tmp_path, f"p{number}", 2, f"{racer}-{number}-"))

    threads = [threading.Thread(target=race, args=(racer,)) for racer in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(results) for results in won] == [[False, False, True]] * rounds
    assert len(files_below(tmp_path)) == 2 * rounds
    rows = published_rows(tmp_path)
    assert len(rows) == 2 * rounds and {row.split("-")[1] for row in rows} == {str(n) for n in range(rounds)}


PROCESS = """
import sys, time
from pathlib import Path
from tests.support.published_tables import publish_rows
root, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0.0, start - time.time()))
print(sum(publish_rows(root, f"p{n}", 0) for n in range(50)))
"""


def test_one_of_racing_processes_publishes_each_unit(tmp_path: Path) -> None:
    import time

    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(time.time() + 1.5)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    won = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(won) == 50
    assert len(files_below(tmp_path)) == 100
    assert len(list_published_units(tmp_path)) == 50


def test_put_if_absent_never_overwrites(tmp_path: Path) -> None:
    assert put_if_absent(tmp_path / "a" / "log.json", b"first") is True
    assert put_if_absent(tmp_path / "a" / "log.json", b"second") is False
    assert (tmp_path / "a" / "log.json").read_bytes() == b"first"
    assert files_below(tmp_path) == ["a/log.json"]
