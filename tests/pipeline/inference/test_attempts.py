"""Notes about attempts: rows in flight, crashed loads, evidence of failures."""

from pathlib import Path

import numpy as np

from pipeline.inference.attempts import LoadAttempts, UnitAttempts, attempt_evidence, create_attempts_dir
from tests.support.linked_folders import link_away, refuses_link


def test_rows_in_flight_are_candidates_from_the_second_attempt_on(tmp_path: Path) -> None:
    attempts = UnitAttempts(tmp_path, "unit-1")
    assert attempts.describe_in_flight() == "before any row was scored"
    attempts.begin()
    attempts.record_in_flight(np.array([3, 7]), ["c", "g"])
    assert attempts.retry_candidates() == []
    attempts.begin()
    assert UnitAttempts(tmp_path, "unit-1").retry_candidates() == [3, 7]
    assert attempts.describe_in_flight() == "while scoring rows c, g"


def test_published_units_leave_no_evidence(tmp_path: Path) -> None:
    folder = create_attempts_dir(tmp_path, "scoring", "20261130-1")
    for unit_id in ("good", "bad"):
        attempts = UnitAttempts(folder, unit_id)
        attempts.begin()
        attempts.record_in_flight(np.array([0]), ["a"])
    UnitAttempts(folder, "good").finish()
    (folder / "stuck-empty.txt").touch()
    (folder / "stuck-actor.txt").write_text("Thread 1")
    assert [path.name for path in attempt_evidence(folder)] == ["bad.rows", "stuck-actor.txt"]


def test_linked_folder_is_refused_and_keeps_its_content(tmp_path: Path) -> None:
    kept = link_away(tmp_path / "run" / "scoring")
    with refuses_link():
        create_attempts_dir(tmp_path / "run", "scoring", "20261130-1")
    assert kept.is_file()


def test_half_written_notes_count_as_none(tmp_path: Path) -> None:
    attempts = UnitAttempts(tmp_path, "unit-1")
    attempts.begin()
    attempts.begin()
    (tmp_path / "unit-1.rows").write_text('{"rows": [1')
    assert attempts.retry_candidates() == [] and attempts.count() == 2


def test_loads_are_counted_until_one_succeeds(tmp_path: Path) -> None:
    loads = LoadAttempts(tmp_path)
    loads.begin()
    loads.begin()
    assert LoadAttempts(tmp_path).count() == 2
    loads.reset()
    assert loads.count() == 0
