"""Kill a function before each of its file events, run it again, and report what is left.

A fresh process imports the function once and forks for every run: a kill costs milliseconds. Events are what
Python's audit hooks see below the folder (open for writing, rename, remove, mkdir, link) and the calls in
CALLS, which write without an audit event.
"""

import contextlib
import fnmatch
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}

# of modules that the function's own module has imported
CALLS = (
    "os:fsync",
    "pyarrow.parquet.core:ParquetWriter.write_table",
    "pyarrow.parquet.core:ParquetWriter.close",
    "sqlalchemy.engine.default:DefaultDialect.do_commit",
)

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Step = Callable[[Path], Any]


@dataclass(frozen=True)
class Run:
    """End of a run in a process of its own."""

    events: list[str]  # the last one did not happen if the run was killed
    was_killed: bool
    value: Any = None  # what the function returned
    error: str = ""  # traceback
    modules: tuple[str, ...] = ()  # that it imported


@dataclass(frozen=True)
class Kill:
    """One kill, and the run after it."""

    event: str  # the process was killed before it
    look: Run | None  # `look` on the folder that the kill left
    rerun: Run
    files: dict[str, str]  # after the second run


@dataclass(frozen=True)
class Kills:
    """All kills of a function."""

    unkilled: Run
    files: dict[str, str]  # digests by path after a run that was not killed
    kills: list[Kill]

    def differences(self, unstable: Iterable[str] = ()) -> list[str]:
        """List the reruns that failed or left other files than a run that was not killed.

        Args:
            unstable: Patterns of paths that differ from run to run. Temporary files are always compared.
        """
        return [
            f"killed before {kill.event}: {problem}"
            for kill in self.kills
            for problem in self._problems(kill, tuple(unstable))
        ]

    def _problems(self, kill: Kill, unstable: tuple[str, ...]) -> Iterator[str]:
        if kill.rerun.error:
            yield kill.rerun.error
        for path in sorted({*self.files, *kill.files}):
            is_unstable = any(fnmatch.fnmatch(path, pattern) for pattern in unstable)
            if self.files.get(path) != kill.files.get(path) and (not is_unstable or path.endswith(".tmp")):
                yield f"{path} is {kill.files.get(path)}, not {self.files.get(path)}"


def kill_at_every_event(
    function: Step, template: Path, root: Path, look: Step | None = None, stride: int = 1
) -> Kills:
    """Kill `function(root)` before each of its file events, and run it again after each kill.

    Args:
        function: A function of a module.
        template: Folder that `root` is a copy of before each kill.
        root: The same path for every kill.
        look: Function of a module, called in a process of its own between kill and second run.
        stride: 1 to kill before every event, n before every nth; the variable KILL_STRIDE replaces it.
    """
    stride = int(os.environ.get("KILL_STRIDE", stride))
    result = root.parent / f"{root.name}.kills"
    arguments = [_name_of(function), _name_of(look) if look else "", str(template), str(root), str(stride)]
    subprocess.run(
        [sys.executable, "-m", "tests.support.kills", *arguments, str(result)],
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    kills: Kills = pickle.loads(result.read_bytes())
    return kills


def file_digests(root: Path) -> dict[str, str]:
    """Return a digest of each file below `root` and "folder" for each folder, by path; locks are left out."""
    return {
        str(path.relative_to(root)): _digest(path)
        for path in sorted(root.rglob("*"))
        if not path.name.endswith(".lock")
    }


def _digest(path: Path) -> str:
    return "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def _name_of(function: Step) -> str:
    # by file: pytest gives the modules of tests shorter names
    parts = Path(inspect.getfile(function)).relative_to(ROOT).with_suffix("").parts
    return f"{'.'.join(parts)}:{function.__qualname__}"


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def _kill_all(function: Step, look: Step | None, template: Path, root: Path, stride: int) -> Kills:
    _restore(template, root)
    unkilled = _run_forked(function, root)
    if unkilled.error:
        raise RuntimeError(f"the function fails without a kill: {unkilled.error}")
    expected, kills = file_digests(root), []
    for module in unkilled.modules:  # so that no later run imports them again
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for number in range(0, len(unkilled.events), stride):
        _restore(template, root)
        killed = _run_forked(function, root, number)
        if killed.was_killed:  # threads make the number of events vary
            seen = _run_forked(look, root) if look else None
            rerun = _run_forked(function, root)
            kills.append(Kill(f"{number} {killed.events[-1]}", seen, rerun, file_digests(root)))
    return Kills(unkilled, expected, kills)


def _restore(template: Path, root: Path) -> None:
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(template, root, symlinks=True)


def _run_forked(function: Step, root: Path, kill_before: int | None = None) -> Run:
    """Run a function in a fork of this process; kill it before an event by number."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        _run_counted(function, root, kill_before, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        lines = file.read().decode(errors="replace").splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    messages = [json.loads(line) for line in lines]
    events = [value for kind, value in messages if kind == "event"]
    ends = {kind: value for kind, value in messages if kind != "event"}
    error = ends.get("error", "" if status in (0, -signal.SIGKILL) else f"exit status {status}")
    return Run(events, status == -signal.SIGKILL, ends.get("value"), error, tuple(ends.get("modules", ())))


def _run_counted(function: Step, root: Path, kill_before: int | None, output: int) -> None:
    """Run a function, report its events and its end on `output`, and end this process."""
    numbers = itertools.count()

    def report(kind: str, value: Any) -> None:
        os.write(output, json.dumps([kind, value]).encode() + b"\n")

    def count(event: str) -> None:
        number = next(numbers)
        report("event", event)
        if number == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (path := _changed_path(event, arguments, root)):
            count(f"{event} {path}")

    _count_calls(count)
    sys.addaudithook(audit)
    modules = set(sys.modules)
    try:
        report("value", function(root))
        report("modules", [name for name in sys.modules if name not in modules])
    except BaseException:
        report("error", traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _changed_path(event: str, arguments: tuple[Any, ...], root: Path) -> str:
    """Return the path that an audit event changes; empty if it lies elsewhere, or is a lock."""
    if isinstance(arguments[0], int) or (event == "open" and not arguments[2] & WRITING):
        return ""
    path = Path(os.fsdecode(arguments[0]))
    is_below = not path.is_absolute() or path.is_relative_to(root)
    return str(path) if is_below and path.suffix != ".lock" else ""


def _count_calls(count: Callable[[str], None]) -> None:
    for call in CALLS:
        module, _, path = call.partition(":")
        if module in sys.modules:
            *owners, name = path.split(".")
            owner: Any = functools.reduce(getattr, owners, sys.modules[module])
            setattr(owner, name, _counted(getattr(owner, name), call, count))


def _counted(function: Any, name: str, count: Callable[[str], None]) -> Any:
    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        count(name)
        return function(*arguments, **settings)

    return call


def main() -> None:
    """Do what the arguments of `kill_at_every_event` say; write a pickle of the Kills."""
    from tests.support import kills  # classes of __main__ could not be read back

    function, look, template, root, stride, result = sys.argv[1:]
    found = kills._kill_all(
        _find(function), _find(look) if look else None, Path(template), Path(root), int(stride)
    )
    Path(result).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
