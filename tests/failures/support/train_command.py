"""The command `relevance train` as a process to watch, signal and kill."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.commands import RELEVANCE

TIMEOUT_S = 240


@dataclass
class Training:
    """One training in a folder of its own."""

    root: Path
    config: Path
    name: str

    @property
    def dir(self) -> Path:
        return self.root / self.name / "planted"

    def start(self, *sets: str) -> subprocess.Popen[str]:
        """Start the command and return its process."""
        words = [word for one in (f"work_dir={self.root / self.name}", *sets) for word in ("--set", one)]
        command = [*RELEVANCE, "train", "--config", str(self.config), *words]
        return subprocess.Popen(
            command,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *sets: str) -> str:
        """Run the command to its end and return its output."""
        process = self.start(*sets)
        _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, said
        return said

    def losses(self) -> dict[int, Any]:
        """Return the losses by step of the last command; a step done twice must be equal both times."""
        found: dict[int, Any] = {}
        for line in self.steps():
            numbers = (line["loss"], line["task_losses"], line["gradient_norm"])
            assert found.setdefault(line["step"], numbers) == numbers
        return found

    def live(self) -> list[dict[str, Any]]:
        path = self.dir / "training" / "live.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.live() if "step" in line]

    def weights(self) -> bytes:
        return (self.dir / "trained" / "weights.safetensors").read_bytes()

    def wait_until(self, process: subprocess.Popen[str], happened: Callable[[], Any]) -> None:
        """Poll many times a second."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not happened():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline_s, "it did not happen in time"
            time.sleep(0.005)

    def wait_for_step(self, process: subprocess.Popen[str], step: int) -> None:
        self.wait_until(process, lambda: any(line["step"] >= step for line in self.steps()))

    def workers_at_step(
        self, process: subprocess.Popen[str], step: int, number: int = 2
    ) -> list[psutil.Process]:
        """Return the worker processes once the step is done.

        They are looked up before the step, which takes less time than the search.
        """
        self.wait_until(process, lambda: len(train_workers(process)) == number)
        workers = train_workers(process)
        self.wait_for_step(process, step)
        return workers

    def wait_for_save(self, process: subprocess.Popen[str], number: int) -> None:
        """Wait until the number-th checkpoint is being written."""
        self.wait_until(
            process,
            lambda: list((self.dir / "training" / "checkpoints").glob(f".step-{10 * number:08d}.*.tmp")),
        )


def kill_everything(process: subprocess.Popen[str]) -> None:
    """Kill the command and all its descendants.

    Ray's processes lead their own sessions, and no other Ray on this machine may be killed.
    """
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()


def wait_until_gone(worker: psutil.Process) -> None:
    """Wait until a process has ended, its exit code unread."""
    deadline_s = time.monotonic() + 60
    with contextlib.suppress(psutil.NoSuchProcess):
        while worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline_s, "it goes on without the command"
            time.sleep(0.05)


def actors(process: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
    """Return the processes of the command's Ray whose names hold `kind`."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if kind in " ".join(child.cmdline()):
                found.append(child)
    return found


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of the command."""
    return actors(process, "RayTrainWorker")
