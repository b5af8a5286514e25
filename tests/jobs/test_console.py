"""Terminal output of a command; the output of libraries goes to a file, whatever level it is printed on."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import console as console_module
from jobs.console import Console, ConsoleHandler, aligned, messages_on
from pipeline.escaping import INVISIBLE
from tests.support.places import ROOT

NOISY = """
import ctypes, logging, os, subprocess, sys, warnings
from pathlib import Path
from jobs.console import Console, libraries_in, messages_on

print("before on stdout")
ctypes.CDLL(None).puts(b"before from C")
with libraries_in(Path(sys.argv[1])) as console:
    print("noise print")
    print("noise print to stderr", file=sys.stderr)
    os.write(1, b"noise descriptor 1\\n")
    os.write(2, b"noise descriptor 2\\n")
    logging.warning("noise logging")
    warnings.warn("noise warning")
    subprocess.run("echo noise child; echo noise child to stderr >&2", shell=True, check=True)
    ctypes.CDLL(None).puts(b"noise from C")  # stays in C's buffer until somebody flushes it
    console.say("message for people")
    console.result("result for programs")
    with messages_on(console), console.track("train", 10, "steps") as bar:
        bar.update(10)
    sys.stdout.write("noise without a line break")
print("after on stdout")
print("after on stderr", file=sys.stderr)
"""
NOISES = (
    "print",
    "print to stderr",
    "descriptor 1",
    "descriptor 2",
    "logging",
    "warning",
    "child",
    "child to stderr",
    "from C",
    "without a line break",
)

RAISING = """
import sys
from pathlib import Path
from jobs.console import libraries_in
try:
    with libraries_in(Path(sys.argv[1])) as console:
        print("noise")
        raise ValueError("broke")
except ValueError as error:
    print(f"caught {error}")
    print("caught it", file=sys.stderr)
"""


def run(script: str, *arguments: str) -> tuple[str, str]:
    """(stdout, stderr) of a script in a process of its own, whose streams are pipes and buffered as they are
    for programs.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return process.stdout, process.stderr


def test_noise_of_every_level_goes_to_the_file_and_the_console_to_the_real_streams(tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "run.log"
    out, err = run(NOISY, str(log_path))
    assert sorted(out.splitlines()) == [
        "after on stdout",
        "before from C",
        "before on stdout",
        "result for programs",
    ]
    assert out.splitlines()[-1] == "after on stdout"
    assert err.splitlines()[0] == "message for people" and err.splitlines()[-1] == "after on stderr"
    assert err.splitlines()[1].startswith("  train 10/10 steps") and len(err.splitlines()) == 3
    log = log_path.read_text()
    assert all(f"noise {noise}" in log for noise in NOISES)
    assert "people" not in log and "result" not in log and "before" not in log and "after" not in log


def test_an_error_gives_the_streams_back(tmp_path: Path) -> None:
    out, err = run(RAISING, str(tmp_path / "run.log"))
    assert (out, err) == ("caught broke\n", "caught it\n")
    assert (tmp_path / "run.log").read_text() == "noise\n"


def test_a_log_that_exists_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("older\n")
    run(RAISING, str(tmp_path / "run.log"))
    assert (tmp_path / "run.log").read_text() == "older\nnoise\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    return clock


def test_progress_lines_show_done_rate_and_time_left(clock: Clock) -> None:
    err = io.StringIO()
    console = Console(err=err, out=io.StringIO())
    with messages_on(console), console.track("train", 1_000, "steps") as bar:
        for done in range(0, 101, 10):
            clock.now_s = 100 + done / 10
            bar.update(done, "loss 0.5")
    assert err.getvalue().splitlines() == [
        "  train 50/1,000 steps  10.0/s  95 s left  loss 0.5",
        "  train 100/1,000 steps  10.0/s  90 s left  loss 0.5",
        "  train 100/1,000 steps  10.0/s  90 s left  loss 0.5",
    ]


def test_elements_done_earlier_do_not_count_towards_the_rate(clock: Clock) -> None:
    err = io.StringIO()
    console = Console(err=err, out=io.StringIO())
    with messages_on(console), console.track("train", 1_000, "steps", initial=900) as bar:
        bar.update(900)
        clock.now_s += 10
        bar.update(920)
    assert err.getvalue().splitlines()[-1] == "  train 920/1,000 steps  2.0/s  40 s left"


def test_unknown_totals_show_done_and_rate(clock: Clock) -> None:
    err = io.StringIO()
    console = Console(err=err, out=io.StringIO())
    with messages_on(console), console.track("import", None, "rows") as bar:
        bar.update(0)
        clock.now_s += 10
        bar.update(4_096)
    assert err.getvalue().splitlines() == ["  import 4,096 rows  409.6/s", "  import 4,096 rows  409.6/s"]


def test_a_bar_opens_at_its_first_update_and_closes_when_all_is_done() -> None:
    err = io.StringIO()
    console = Console(err=err, out=io.StringIO())
    with messages_on(console), console.track("encode", None, "rows") as bar:
        assert err.getvalue() == ""
        for done in (0, 500, 1_000):
            bar.update(done, total=1_000)
        assert err.getvalue().startswith("  encode 1,000/1,000 rows  ") and "/s" in err.getvalue()
    assert err.getvalue().count("\n") == 1


def test_an_error_closes_the_bar(clock: Clock) -> None:
    console = Console(err=Terminal(), out=io.StringIO())
    with pytest.raises(ValueError, match="broke"), console.track("train", 3, "steps") as bar:
        bar.update(1)
        assert console.live is not None
        raise ValueError("broke")
    assert console.live is None


def test_terminal_bars_move_and_messages_stand_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    console = Console(err=err, out=io.StringIO())
    with messages_on(console), console.track("score", 3, "pairs") as bar:
        for done in (1, 2, 3):
            bar.update(done, "units 1/2")
        console.say("a message :b:")
    text = err.getvalue()
    assert "score 3/3 pairs" in text and "units 1/2" in text and "a message :b:\n" in text


def test_results_and_messages_go_to_their_own_streams(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("for people")
    console.result('{"for": "programs"}')
    assert capsys.readouterr() == ('{"for": "programs"}\n', "for people\n")


def test_only_our_modules_are_shown_and_handlers_are_restored() -> None:
    err = io.StringIO()
    logger = logging.getLogger("pipeline")
    before = list(logger.handlers)
    with messages_on(Console(err=err, out=io.StringIO())):
        assert isinstance(logger.handlers[0], ConsoleHandler)
        logging.getLogger("pipeline.data").info("rows read")
        logging.getLogger("pipeline.data").debug("details")
        logging.getLogger("some_library").info("chatter")
    assert err.getvalue() == "rows read\n"
    assert logger.handlers == before


def test_message_with_wrong_arguments_is_shown_as_it_is() -> None:
    screen = io.StringIO()
    record = logging.LogRecord("pipeline.module", logging.WARNING, "", 0, "%d rows", ("x",), None)
    ConsoleHandler(Console(err=screen, out=io.StringIO())).emit(record)
    assert screen.getvalue() == "%d rows\n"


def test_tables_are_aligned_and_never_wrapped() -> None:
    rows = [("task", "p"), ("query-title", "0.9"), ("[bold]x", "w" * 300)]
    assert aligned(rows) == ["task         p", "query-title  0.9", f"[bold]x      {'w' * 300}"]


def test_texts_of_others_steer_no_terminal_and_forge_no_line() -> None:
    text, streams = "a\n\x1b[2J\u202eno\u2029\rerror: forged", (io.StringIO(), io.StringIO())
    console = Console(err=streams[0], out=streams[1])
    with messages_on(console):
        logging.getLogger("jobs").error("bad market: %s", text)
        logging.getLogger("jobs").info("scores of %s drifted", text)
    console.say("one", text)
    console.table([("market", text), ("b", "c")])
    console.result(text, "two")
    console.result(json.dumps({"market": text}, ensure_ascii=False))
    for stream, lines in zip(streams, (4, 5), strict=True):
        assert INVISIBLE.search(stream.getvalue().replace("\n", "")) is None
        assert stream.getvalue().count("\n") == lines
        assert not any(line.startswith("error: forged") for line in stream.getvalue().splitlines())
    assert json.loads(streams[1].getvalue().splitlines()[-1]) == {"market": text}
