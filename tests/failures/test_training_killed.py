"""`relevance train` under signals: the same command resumes, and every step's loss is unchanged."""

import contextlib
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.runtime.watchdog import GRACE_S
from pipeline.training.checkpoint import find_newest_checkpoint
from tests.failures.support.train_command import TIMEOUT_S, Training, actors, kill_everything, wait_until_gone
from tests.support.patches import write_patch
from tests.support.planted import planted_config, write_config, write_planted

pytestmark = pytest.mark.e2e

Start = Callable[[str], Training]  # builds a training by name


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Start:
    """Return a function that builds a training by name."""
    root = tmp_path_factory.mktemp("killed")
    write_planted(root)
    config = planted_config(root, str(tiny_llama))
    path = write_config(root / "planted.yaml", config)

    def build(name: str) -> Training:
        return Training(root, path, name)

    return build


@pytest.fixture(scope="module")
def unbroken(start: Start) -> Training:
    training = start("unbroken")
    training.finish()
    assert len(training.losses()) == 36
    return training


def check_same(counts: Any, training: Training, unbroken: Training, before: dict[int, Any]) -> None:
    """Compare every loss of both commands and the weights bit for bit."""
    together, after = unbroken.losses(), training.losses()
    for mine in (before, after):
        counts.compare([loss for loss, *_ in mine.values()], [together[step][0] for step in mine])
        assert mine == {step: together[step] for step in mine}
    assert set(before) | set(after) == set(together)
    assert training.weights() == unbroken.weights()
    counts.add("resumed")


POINTS = [
    ("save", 2),
    ("step", 13),
    ("step", 1),
    ("step", 10),
    ("step", 11),
    ("step", 25),
    ("step", 35),
    ("save", 1),
    ("save", 3),
]


@pytest.mark.failures
@pytest.mark.parametrize(("kind", "number"), POINTS)
def test_training_killed_as_a_whole_resumes_by_the_same_command(
    counts: Any, start: Start, unbroken: Training, kind: str, number: int
) -> None:
    training = start(f"everything-{kind}-{number}")
    process = training.start()
    (training.wait_for_step if kind == "step" else training.wait_for_save)(process, number)
    kill_everything(process)
    counts.add("kills")
    for path in (training.dir / "training" / "ray").rglob("*"):  # Ray's own snapshots, truncated
        if path.is_file():
            path.write_bytes(path.read_bytes()[: number % 3])
    before, newest = training.losses(), find_newest_checkpoint(training.dir / "training" / "checkpoints")[0]
    assert newest is not None or number < (20 if kind == "step" else 2)
    output = training.finish()
    assert newest is None or f"resuming from {newest.name}" in output
    check_same(counts, training, unbroken, before)


WORKER_POINTS = [
    ("step", 17),
    ("step", 3),
    ("step", 12),
    ("step", 28),
    ("step", 33),
    ("save", 1),
    ("save", 2),
]


@pytest.mark.failures
@pytest.mark.parametrize(("kind", "number"), WORKER_POINTS)
def test_killed_worker_is_replaced_within_the_command(
    counts: Any, start: Start, unbroken: Training, kind: str, number: int
) -> None:
    training = start(f"worker-{kind}-{number}")
    process = training.start()
    workers = training.workers_at_step(process, 1)
    (training.wait_for_step if kind == "step" else training.wait_for_save)(process, number)
    workers[number % 2].kill()
    counts.add("kills")
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert output.count("restarting them, 1 of 3") == 1 and "2 of 3" not in output
    check_same(counts, training, unbroken, {})


@pytest.mark.failures
def test_killed_ray_controller_is_replaced_within_the_command(
    counts: Any, start: Start, unbroken: Training
) -> None:
    training = start("controller")
    process = training.start()
    training.workers_at_step(process, 1)
    (controller,) = actors(process, "TrainController")
    training.wait_for_step(process, 17)
    controller.kill()
    counts.add("kills")
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert output.count("restarting them, 1 of 3") == 1 and "2 of 3" not in output
    check_same(counts, training, unbroken, {})


@pytest.mark.failures
def test_killed_command_ends_its_workers_and_resumes(counts: Any, start: Start, unbroken: Training) -> None:
    training = start("command")
    process = training.start()
    held, other = training.workers_at_step(process, 13)
    held.suspend()  # otherwise the remaining steps might be done first
    process.kill()
    counts.add("kills")
    wait_until_gone(other)
    # the watchdog may have killed the stopped one by now
    with contextlib.suppress(psutil.NoSuchProcess):
        held.resume()
    wait_until_gone(held)
    before = training.losses()
    assert "resuming from step-00000" in training.finish()
    check_same(counts, training, unbroken, before)


@pytest.mark.failures
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "interrupted"])
def test_stopped_training_keeps_its_state_within_the_grace_time(
    counts: Any, start: Start, unbroken: Training, asked: signal.Signals
) -> None:
    training = start(f"stopped by {asked.name}")
    process = training.start()
    one = training.workers_at_step(process, 1)[0]
    one.suspend()  # all workers take a step or none: none is taken until the command got the signal
    process.send_signal(asked)
    counts.add("kills")
    training.wait_until(process, (training.dir / "training" / "stop").exists)
    one.resume()
    started_s = time.monotonic()
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3, output
    assert time.monotonic() - started_s < 25  # Kubernetes gives 30
    kept = re.search(r"its state after step (\d+) is kept; run the same command again", output)
    assert kept is not None, output
    step, before = int(kept.group(1)), training.losses()
    assert max(before) == step < 36
    assert "restarting them" not in output and len(before) == len(training.steps()) == step
    assert f"resuming from step-{step:08d}" in training.finish()
    assert min(training.losses()) == step + 1  # no step is done twice
    check_same(counts, training, unbroken, before)


@pytest.mark.failures
def test_hanging_worker_is_restarted_after_the_timeout(start: Start, unbroken: Training) -> None:
    training = start("hanging")
    process = training.start("training.hang_timeout_s=15")
    hung = training.workers_at_step(process, 12)[1]
    hung.suspend()
    try:
        _, output = process.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            hung.kill()
    assert process.returncode == 0, output
    assert "restarting them, 1 of 3" in output
    assert training.losses() == unbroken.losses()
    assert training.weights() == unbroken.weights()


ALONE = ("training.num_workers=1", "training.hang_timeout_s=10")


@pytest.fixture(scope="module")
def unbroken_alone(start: Start) -> Training:
    """Return a finished training of a single worker."""
    training = start("alone")
    training.finish(*ALONE)
    return training


@pytest.mark.failures
def test_suspended_single_worker_is_killed_and_restarted(
    counts: Any, start: Start, unbroken_alone: Training
) -> None:
    training = start("stopped alone")
    process = training.start(*ALONE)
    (worker,) = training.workers_at_step(process, 12, number=1)
    worker.suspend()
    started_s = time.monotonic()
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert time.monotonic() - started_s < 10 + GRACE_S + 60, "the timeout, and a start of the workers"
    assert "restarting them, 1 of 3" in output
    stuck = re.search(r"made no progress for 10 s.*; its stack traces are in (.*)", output)
    assert (
        stuck is not None
        and f"process {worker.pid} killed: no heartbeat for 15 s" in Path(stuck.group(1)).read_text()
    )
    counts.add("kills")
    check_same(counts, training, unbroken_alone, {})


HANGING = """
def instead_of(train_step):
    def hang_once(worker, step, stop):
        hung = pathlib.Path({marker!r})
        if step == 12 and not hung.exists():
            hung.touch()
            hold_still()
        return train_step(worker, step, stop)
    return hang_once
"""


@pytest.mark.failures
def test_hanging_single_worker_leaves_its_stack_traces(
    start: Start, unbroken_alone: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_patch(
        tmp_path / "patch",
        "pipeline.training.worker",
        "train_step",
        HANGING.format(marker=str(tmp_path / "hung")),
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"))
    training = start("hanging alone")
    output = training.finish(*ALONE)
    assert (tmp_path / "hung").exists() and "restarting them, 1 of 3" in output
    stuck = re.search(r"made no progress for 10 s.*; its stack traces are in (.*)", output)
    assert stuck is not None and "in hang_once" in Path(stuck.group(1)).read_text()
    assert training.losses() == unbroken_alone.losses()
    assert training.weights() == unbroken_alone.weights()


def test_sigterm_before_any_worker_ends_with_3(start: Start) -> None:
    training = start("terminated at once")
    process = training.start()
    assert process.stderr is not None and process.stderr.readline().startswith("train planted: run ")
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3, output
    assert "interrupted; run the same command again" in output


@pytest.mark.failures
def test_interrupted_training_refuses_another_config(counts: Any, start: Start, unbroken: Training) -> None:
    training = start("changed")
    process = training.start()
    training.wait_for_step(process, 12)
    kill_everything(process)
    counts.add("kills")
    before = training.losses()
    other = training.start("optimizer.learning_rate=0.005", "training.epochs=4")
    _, output = other.communicate(timeout=TIMEOUT_S)
    assert other.returncode == 2, output
    assert "optimizer.learning_rate was 0.01, is 0.005; training.epochs was 3.0, is 4.0" in output
    assert "remove" in output and "to start from the beginning" in output
    training.finish()
    check_same(counts, training, unbroken, before)


NO_GRADIENT = """
def instead_of(gradient_norms):
    def not_finite_once(engine):
        norms = gradient_norms(engine)
        return {**norms, "heads": float("nan")} if engine.global_steps == 4 else norms
    return not_finite_once
"""


@pytest.mark.failures
def test_infinite_gradient_stops_before_the_step(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_patch(tmp_path / "patch", "pipeline.training.step", "gradient_norms", NO_GRADIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"))
    training = start("no gradient")
    process = training.start()
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    assert (
        re.search(
            r"the gradient of the heads of step 5 is not finite \(task .*two.*; rows (two|three)-1-\d+",
            output,
        )
        is not None
    ), output
    assert len(training.steps()) == 4 and not (training.dir / "trained").exists()


@pytest.mark.failures
def test_infinite_loss_names_its_rows_and_publishes_nothing(start: Start) -> None:
    training = start("diverged")
    process = training.start("optimizer.learning_rate=1e30", "optimizer.head_learning_rate=1e30")
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    found = re.search(r"of step (\d+) is not finite \(task (two|three)[^;]*; rows (two|three)-1-\d+", output)
    assert found is not None, output
    assert "restarting them" not in output
    assert not (training.dir / "trained").exists()
