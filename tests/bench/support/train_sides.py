"""Our side of bench_train.py: `relevance train`, on the rows that all sides train on."""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.places import ROOT

BATCH_ROWS = int(os.environ.get("BENCH_BATCH_ROWS", "8"))  # set by bench_train.py
WARM_STEPS = 5  # not counted: memory and libraries warm up
TIME_SHARES = ("data", "forward", "backward", "communication", "optimizer")
SAVE_EVERY = 200  # steps between two saves, the default of training.checkpoint_every_steps

Measurements = dict[str, float]


def read_run(run_dir: Path, **training: Any) -> Any:
    """Return the config of the real pairs, with `run_dir` as its work_dir."""
    from pipeline.config.loading import read_config

    overrides = {
        "work_dir": run_dir,
        "training.batch_rows": BATCH_ROWS,
        **{f"training.{key}": value for key, value in training.items()},
    }
    os.chdir(ROOT)  # the config's sources are relative paths
    return read_config(
        ROOT / "jobs" / "configs" / "esci.yaml", [f"{key}={value}" for key, value in overrides.items()]
    )


def prepare(run_dir: Path) -> None:
    """Import, validate and encode the rows, as a run does before it trains."""
    from jobs.command_run import CommandRun
    from jobs.commands.data import import_sources
    from jobs.console import Console

    config = read_run(run_dir)
    import_sources(config, CommandRun(Console(out=sys.stderr)))
    validate_and_encode(config)


def validate_and_encode(config: Any) -> Path:
    """Validate and encode a run's rows; return the folder of encoded rows."""
    from jobs.command_run import CommandRun
    from jobs.commands.validate import run_validate
    from jobs.console import Console
    from models.backbone import resolve_folder
    from pipeline.data.reader import find_partitions
    from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
    from pipeline.runtime.progress import SilentProgress

    run_validate(config, CommandRun(Console(out=sys.stderr)))
    partitions = find_partitions(config.accepted_dir, config.tasks)
    plan = EncodingPlan(
        partitions, config.split, config.tasks, config.encode, resolve_folder(config.backbone)
    )
    return publish_encoded(plan, config.run_dir, SilentProgress())


def encoded_rows(run_dir: Path) -> Any:
    """Return the training rows that `prepare` encoded."""
    from pipeline.encoding.encoded_dataset import read_encoded

    config = read_run(run_dir)
    (folder,) = (
        path
        for path in (config.run_dir / "cache" / "encoded").iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    return read_encoded(folder, "train", config.tasks)


def steps_per_epoch(run_dir: Path) -> int:
    """Return the batches in a pass over the training rows."""
    from pipeline.training.worker_setup import build_sampler

    config, encoded = read_run(run_dir), encoded_rows(run_dir)
    return int(build_sampler(encoded, config.tasks, config.training, config.seed).batches_per_epoch)


def ours(run_dir: Path, steps: int, workers: int, compiled: bool, save_every: int = 100_000) -> Measurements:
    """Run `relevance train`; return speed, padding and time shares."""
    import torch

    overrides = {
        "work_dir": run_dir,
        "training.epochs": steps / steps_per_epoch(run_dir),
        "training.num_workers": workers,
        "training.threads_per_worker": 2 // workers,
        "training.batch_rows": BATCH_ROWS,
        "training.checkpoint_every_steps": save_every,
        "training.compile_layers": compiled,
        "training.evaluate_task_rows": 1,
        "training.use_gpu": torch.cuda.is_available(),
    }
    # the command would otherwise find the training finished
    shutil.rmtree(read_run(run_dir).run_dir / "trained", ignore_errors=True)
    started_s = time.time()
    command = [
        str(Path(sys.executable).with_name("relevance")),
        "train",
        "--config",
        str(ROOT / "jobs" / "configs" / "esci.yaml"),
    ]
    options = [word for name, value in overrides.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    log = (read_run(run_dir).run_dir / "training" / "live.jsonl").read_text()
    events = [json.loads(line) for line in log.splitlines()]
    all_steps = [event for event in events if "step" in event]
    start = next(event for event in events if "starts_after" in event)
    counted = all_steps[WARM_STEPS:]
    seconds = counted[-1]["at_s"] - all_steps[WARM_STEPS - 1]["at_s"]
    spent = {name: sum(line["seconds"].get(name, 0.0) for line in counted) / seconds for name in TIME_SHARES}
    before = {f"before first step: {name}": value for name, value in start["seconds"].items()}
    before["before first step: command to workers"] = (
        start["at_s"] - sum(start["seconds"].values()) - started_s
    )
    before["before first step: first step"] = all_steps[0]["at_s"] - start["at_s"]
    return {
        "pairs_per_s": sum(line["rows"] for line in counted) / seconds,
        "padding": sum(line["padding"] for line in counted)
        / sum(line["tokens_computed"] for line in counted),
        "computed": sum(line["tokens_computed"] for line in counted)
        / sum(line["tokens"] for line in counted),
        "first_step_s": all_steps[0]["at_s"] - started_s,
        "mfu": statistics.median(line["mfu"] for line in counted),
        "tokens_per_s": sum(line["tokens"] for line in counted) / seconds,
        "save_cost": save_cost(counted),
        **spent,
        **before,
    }


def save_cost(counted: list[dict[str, Any]]) -> float:
    """Return the share of time that saving costs with SAVE_EVERY steps between two saves.

    It is the time that a step waits for a save, and the slowdown of the step during which the checkpoint is
    written, by the tokens it computes.

    Args:
        counted: Step events of a training.
    """
    with_save = [step for step in counted if "checkpoint" in step["seconds"]]
    during_save = [step for last, step in itertools.pairwise(counted) if "checkpoint" in last["seconds"]]
    undisturbed = [step for last, step in itertools.pairwise(counted) if "checkpoint" not in last["seconds"]]
    if not during_save:
        return 0.0
    mean_tokens = statistics.mean(step["tokens_computed"] for step in counted)
    usual_s = statistics.median(map(seconds_per_token, undisturbed)) * mean_tokens
    during_save_s = statistics.median(map(seconds_per_token, during_save)) * mean_tokens
    waiting_s = statistics.median(step["seconds"]["checkpoint"] for step in with_save)
    return (waiting_s + max(0.0, during_save_s - usual_s)) / (SAVE_EVERY * usual_s)


def seconds_per_token(step: dict[str, Any]) -> float:
    """Return a step's time per computed token, without saving."""
    seconds = sum(value for name, value in step["seconds"].items() if name != "checkpoint")
    return float(seconds / step["tokens_computed"])
