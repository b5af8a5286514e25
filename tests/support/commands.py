"""The `relevance` command, run in a new process or in this one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from tests.support.in_process import InProcessEngine
from tests.support.places import ROOT

RELEVANCE = [str(Path(sys.executable).with_name("relevance"))]


def relevance(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a folder outside the repository, with variables added."""
    environment = os.environ | variables
    return subprocess.run(
        [*RELEVANCE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )


def relevance_in_process(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves the imports. Rows are predicted without Ray."""
    from jobs import row_prediction
    from jobs.cli import app
    from jobs.environment import restrict_file_modes

    mask = os.umask(0)
    os.umask(mask)
    restrict_file_modes()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        streams = (_stream_to(1, "stdout", out), _stream_to(2, "stderr", err))
        engine = patch.object(row_prediction, "RayEngine", lambda *_: InProcessEngine())
        with contextlib.chdir(cwd), streams[0], streams[1], engine:
            try:
                app(list(arguments))
                code: Any = 0
            except SystemExit as error:
                code = error.code or 0
            finally:
                os.umask(mask)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(arguments, int(code), *texts)


@contextlib.contextmanager
def _stream_to(descriptor: int, name: str, file: IO[str]) -> Iterator[None]:
    """Redirect a file descriptor, and the stream of `sys` on it, into a file."""
    stream = getattr(sys, name)
    stream.flush()
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        with os.fdopen(os.dup(descriptor), "w", buffering=1) as replaced:
            setattr(sys, name, replaced)
            yield
    finally:
        setattr(sys, name, stream)
        os.dup2(kept, descriptor)
        os.close(kept)


def last_json(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON object in the last line of stdout."""
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


def check_refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check the exit code and the words on stderr, without a traceback and with nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
