"""Structured log: one JSON object per line, from the command and its workers."""

import json
import logging
from pathlib import Path

import pytest

from pipeline.escaping import INVISIBLE
from pipeline.runtime.run_log import JsonLinesHandler, RunLog, log_work_unit, logging_to, new_run_id, read_log

logger = logging.getLogger("pipeline.some_module")


def test_run_ids_sort_in_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for seconds in (1_700_000_000.001, 1_700_000_000.002, 1_700_000_001.0):
        monkeypatch.setattr("time.time_ns", lambda seconds=seconds: int(seconds * 1e9))
        ids += [new_run_id(), new_run_id()]
    assert [text[:19] for text in ids] == sorted(text[:19] for text in ids)
    assert len(set(ids)) == len(ids)


def test_lines_say_time_run_process_unit_and_message(tmp_path: Path) -> None:
    log = RunLog("20261130-031455-123-4f9a2c", tmp_path / "logs" / "x.jsonl")
    with logging_to(log, "rank 0"):
        logger.info("rows: %d", 3)
        with log_work_unit("part-7"):
            logger.warning("slow")
    first, second = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert first["message"] == "rows: 3" and first["level"] == "info" and first["work_unit"] is None
    assert (first["run_id"], first["process"]) == (log.run_id, "rank 0")
    assert first["time"].endswith("Z") and first["logger"] == "pipeline.some_module"
    assert (second["work_unit"], second["level"]) == ("part-7", "warning")


def test_libraries_are_recorded_from_warning_on(tmp_path: Path) -> None:
    log = RunLog("id", tmp_path / "x.jsonl")
    with logging_to(log, "command"):
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("some.library").warning("trouble")
    assert [line["message"] for line in read_log(log.path)] == ["trouble"]


def test_wrong_arguments_of_a_message_end_nothing(tmp_path: Path) -> None:
    log = RunLog("id", tmp_path / "x.jsonl")
    record = logging.LogRecord("some.library", logging.WARNING, "", 0, "%d rows of %s", ("x",), None)
    JsonLinesHandler(log, "command").emit(record)
    assert [line["message"] for line in read_log(log.path)] == ["%d rows of %s"]


def test_line_separators_of_unicode_stay_inside_a_message(tmp_path: Path) -> None:
    log, text = RunLog("id", tmp_path / "x.jsonl"), "row a\u2028b\u2029c\u0085d\x1ee\n failed"
    with logging_to(log, "command"):
        logger.error("%s", text)
    assert [line["message"] for line in read_log(log.path)] == [text]


def test_log_shown_in_a_terminal_steers_nothing(tmp_path: Path) -> None:
    log, text = RunLog("id", tmp_path / "x.jsonl"), "\x1b[2J\x9b31m\u202eno\u2066\r\nerror: forged"
    with logging_to(log, "command"):
        logger.error("%s", text)
    (line,) = log.path.read_text(encoding="utf-8").split("\n")[:-1]
    assert INVISIBLE.search(line) is None
    assert [line["message"] for line in read_log(log.path)] == [text]


def test_exceptions_are_recorded_with_their_traceback(tmp_path: Path) -> None:
    log = RunLog("id", tmp_path / "x.jsonl")
    with logging_to(log, "command"):
        try:
            raise ValueError("broke")
        except ValueError as error:
            logger.error("failed", exc_info=error)
    line = read_log(log.path)[0]
    assert "Traceback" in line["exception"] and "ValueError: broke" in line["exception"]


def test_half_written_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"message": "one"}\n{"message": "tw')
    assert [line["message"] for line in read_log(path)] == ["one"]
    assert read_log(tmp_path / "none.jsonl") == []


def test_logging_levels_and_handlers_are_restored(tmp_path: Path) -> None:
    root, package = logging.getLogger(), logging.getLogger("pipeline")
    before = (list(root.handlers), package.level)
    with logging_to(RunLog("id", tmp_path / "x.jsonl"), "command"):
        assert package.level == logging.INFO
    assert (list(root.handlers), package.level) == before
