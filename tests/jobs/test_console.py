"""People see the command's own lines; what libraries print goes to a file, whatever level they print on."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import console as logs
from jobs.console import Console, LateLine
from tests.support.places import ROOT

NOISY = """
import ctypes, logging, os, subprocess, sys, warnings
from pathlib import Path
from jobs.console import Console, third_parties_in

print("before on stdout")
ctypes.CDLL(None).puts(b"before from C")
with third_parties_in(Path(sys.argv[1])) as console:
    print("noise print")
    print("noise print to stderr", file=sys.stderr)
    os.write(1, b"noise descriptor 1\\n")
    os.write(2, b"noise descriptor 2\\n")
    logging.warning("noise logging")
    warnings.warn("noise warning")
    subprocess.run("echo noise child; echo noise child to stderr >&2", shell=True, check=True)
    ctypes.CDLL(None).puts(b"noise from C")  # stays in C's buffer until somebody flushes it
    console.say("told to people")
    console.result("result for programs")
    with console.progress("train", 10, "steps") as progress:
        progress.update(10)
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
from jobs.console import third_parties_in
try:
    with third_parties_in(Path(sys.argv[1])) as console:
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
    assert err.splitlines()[0] == "told to people" and err.splitlines()[-1] == "after on stderr"
    assert err.splitlines()[1].startswith("  train 10/10 steps") and len(err.splitlines()) == 3
    log = log_path.read_text()
    assert all(f"noise {noise}" in log for noise in NOISES)
    assert "told" not in log and "result" not in log and "before" not in log and "after" not in log


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
    monkeypatch.setattr(logs, "time", clock)
    return clock


def test_progress_tells_done_rate_and_time_left(clock: Clock) -> None:
    err = io.StringIO()
    with Console(err=err, out=io.StringIO()).progress("train", 1_000, "steps") as progress:
        for done in range(0, 101, 10):
            clock.now_s = 100 + done / 10
            progress.update(done, "loss 0.5")
    assert err.getvalue().splitlines() == [
        "  train 50/1,000 steps  10.0/s  95 s left  loss 0.5",
        "  train 100/1,000 steps  10.0/s  90 s left  loss 0.5",
        "  train 100/1,000 steps  10.0/s  90 s left",
    ]


def test_work_that_was_done_before_a_resume_does_not_count_towards_the_rate(clock: Clock) -> None:
    err = io.StringIO()
    with Console(err=err, out=io.StringIO()).progress("train", 1_000, "steps", already=900) as progress:
        clock.now_s += 10
        progress.update(920)
    assert err.getvalue().splitlines()[-1] == "  train 920/1,000 steps  2.0/s  40 s left"


def test_a_stream_without_end_in_sight_tells_done_and_rate(clock: Clock) -> None:
    err = io.StringIO()
    with Console(err=err, out=io.StringIO()).progress("import", None, "rows") as progress:
        clock.now_s += 10
        progress.update(4_096)
    assert err.getvalue().splitlines() == ["  import 4,096 rows  409.6/s", "  import 4,096 rows  409.6/s"]


def test_an_error_closes_the_line_it_broke(clock: Clock) -> None:
    err = Terminal()
    with (
        pytest.raises(ValueError, match="broke"),
        Console(err=err, out=io.StringIO()).progress("train", 3, "steps"),
    ):
        raise ValueError("broke")
    assert err.getvalue().endswith("\n")


def test_progress_on_a_terminal_is_one_line_that_moves(clock: Clock) -> None:
    err = Terminal()
    with Console(err=err, out=io.StringIO()).progress("score", 3, "pairs") as progress:
        for done in (1, 2, 3):
            clock.now_s += 1
            progress.update(done)
    assert err.getvalue().count("\n") == 1 and err.getvalue().endswith("\n")
    assert err.getvalue().count("\r\x1b[K") == 4


def test_progress_without_anything_done_divides_by_nothing() -> None:
    err = io.StringIO()
    with Console(err=err, out=io.StringIO()).progress("score", 0, "pairs"):
        pass
    assert err.getvalue() == "  score 0/0 pairs  0.0/s  time left unknown\n"


def test_results_and_talk_go_to_their_own_streams(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("for people")
    console.result('{"for": "programs"}')
    assert capsys.readouterr() == ('{"for": "programs"}\n', "for people\n")


def test_a_late_line_opens_at_its_first_news_and_closes_when_all_is_done() -> None:
    heard = io.StringIO()
    line = LateLine(Console(err=heard, out=heard), "encode", "rows")
    assert heard.getvalue() == ""
    for done in (0, 500, 1_000):
        line.update(done, total=1_000)
    line.finish()
    assert heard.getvalue().count("\n") == 1
    assert heard.getvalue().startswith("  encode 1,000/1,000 rows  ") and "/s" in heard.getvalue()
