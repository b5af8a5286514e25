"""Run records: running, closed, and what a killed command leaves."""

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DamagedInputError
from pipeline.runtime import run_record
from pipeline.runtime.run_record import (
    DIED,
    DONE,
    RUNNING,
    BarState,
    RunRecord,
    RunRecorder,
    is_locked,
    read_all_records,
    read_record,
    read_records,
)
from tests.support.places import ROOT


def make_recorder(folder: Path, run_id: str = "20261130-031455-123-4f9a2c") -> RunRecorder:
    return RunRecorder(folder, run_id, "score", "daily", ("score", "--config", "c.yaml"))


def test_a_record_is_running_while_its_command_lives(tmp_path: Path) -> None:
    with make_recorder(tmp_path) as recorder:
        record = read_record(recorder.path)
        assert (record.state, record.command, record.name) == (RUNNING, "score", "daily")
        recorder.update(state=DONE, exit_code=0)
    assert read_record(recorder.path).state == DONE


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    with make_recorder(tmp_path) as recorder:
        recorder.set_progress("score", BarState(12, 40, "pairs"))
        recorder.set_counts(units=40, units_done=12)
        recorder.add_evidence(tmp_path / "stuck.txt", tmp_path / "stuck.txt")
        record = read_record(recorder.path)
        assert record == recorder.record
        assert record.progress["score"] == BarState(12, 40, "pairs") and record.counts["units"] == 40
        assert record.evidence == (str(tmp_path / "stuck.txt"),)
    assert json.loads(recorder.path.read_text())["format"] == 1


def test_counts_survive_progress_of_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = make_recorder(tmp_path)
    inside, go_on = threading.Event(), threading.Event()

    def slow(record: RunRecord, **changes: Any) -> RunRecord:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(0.2)
        return replace(record, **changes)

    monkeypatch.setattr(run_record, "replace", slow)
    thread = threading.Thread(target=recorder.set_progress, args=("score", BarState(12, 40, "pairs")))
    thread.start()
    assert inside.wait(10)
    recorder.set_counts(units_done=12)
    go_on.set()
    thread.join()
    assert recorder.record.counts == {"units_done": 12}
    assert recorder.record.progress == {"score": BarState(12, 40, "pairs")}


def test_a_killed_command_is_seen_as_died(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from pipeline.runtime.run_record import RunRecorder
with RunRecorder(Path({str(tmp_path)!r}), "id", "score", "daily", ("score",)):
    print("started", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    path = tmp_path / "records" / "id.json"
    assert read_record(path).state == RUNNING
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    assert read_record(path).state == DIED


def test_command_that_ends_during_the_look_is_not_seen_as_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_recorder(tmp_path) as recorder:
        recorder.update()

    def end_first(path: Path) -> bool:
        recorder.update(state=DONE)
        return is_locked(path)

    monkeypatch.setattr(run_record, "is_locked", end_first)
    assert read_record(recorder.path).state == DONE


def test_progress_is_written_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    with make_recorder(tmp_path) as recorder:
        recorder.update(stage="7/7 scoring")
        for done in range(100):
            recorder.set_progress("score", BarState(done, 100, "pairs"))
        assert read_record(recorder.path).progress == {}
        recorder.update(state=DONE)
        assert read_record(recorder.path).progress["score"].done == 99


def test_newest_records_come_first_from_all_run_folders(tmp_path: Path) -> None:
    for folder, run_id in (("one", "20260101-1"), ("two", "20260103-1"), (".", "20260102-1")):
        with make_recorder(tmp_path / folder, run_id) as recorder:
            recorder.update(state=DONE)
    assert [record.run_id for record in read_all_records(tmp_path)] == [
        "20260103-1",
        "20260102-1",
        "20260101-1",
    ]


def test_damaged_records_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "records").mkdir()
    for name, text in (("half", '{"run_id": "x"'), ("other", "[]"), ("old", '{"run_id": "x"}')):
        (tmp_path / "records" / f"{name}.json").write_text(text)
        with pytest.raises(DamagedInputError):
            read_record(tmp_path / "records" / f"{name}.json")
    assert read_records(tmp_path) == []
    assert all(f"{name}.json" in caplog.text for name in ("half", "other", "old"))


def test_a_full_disk_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with make_recorder(tmp_path) as recorder:
        monkeypatch.setattr("pipeline.runtime.run_record.write_json", fail)
        recorder.set_counts(units=1)
        recorder.update(state=DONE)
    assert "run record not written" in caplog.text


def test_unknown_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    with make_recorder(tmp_path) as recorder:
        pass
    value = {**json.loads(recorder.path.read_text()), "format": 2, "later": 1}
    assert RunRecord.from_json(value) == recorder.record
