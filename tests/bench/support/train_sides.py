"""Our side of bench_train.py: `relevance train` from the command to the end, on rows that all sides take."""

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

BATCH_ROWS = int(os.environ.get("BENCH_BATCH_ROWS", "8"))  # as bench_train.py hands it on
WARM_STEPS = 5  # that do not count: first touch of memory, libraries' own set-up
SPENT = ("data", "forward", "backward", "communication", "optimizer")
SAVE_EVERY = 200  # steps between two saves, unless a config says otherwise

Figures = dict[str, float]


def read_run(run_dir: Path, **training: Any) -> Any:
    """The config of the real pairs, writing into `run_dir`."""
    from pipeline.config.loading import read_config

    sets = {
        "work_dir": run_dir,
        "training.batch_rows": BATCH_ROWS,
        **{f"training.{key}": value for key, value in training.items()},
    }
    os.chdir(ROOT)  # the config names its sources from here
    return read_config(
        ROOT / "jobs" / "configs" / "esci.yaml", [f"{key}={value}" for key, value in sets.items()]
    )


def prepare(run_dir: Path) -> None:
    """Import, validate and encode, as a run does before it trains."""
    from jobs.commands.data import bring_in
    from jobs.console import Console

    config = read_run(run_dir)
    bring_in(config, Console(err=sys.stderr))
    validate_and_encode(config)


def validate_and_encode(config: Any) -> Path:
    """The folder of the run's encoded rows."""
    from jobs.commands.validate import run_validate
    from jobs.console import Console
    from models.backbone import resolve_folder
    from pipeline.data.reader import find_partitions
    from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded

    run_validate(config, Console(err=sys.stderr))
    partitions = find_partitions(config.accepted_dir, config.tasks)
    plan = EncodingPlan(
        partitions, config.split, config.tasks, config.encode, resolve_folder(config.backbone)
    )
    return publish_encoded(plan, config.run_dir, lambda _, __: None)


def encoded_rows(run_dir: Path) -> Any:
    """The training rows that `prepare` encoded."""
    from pipeline.encoding.encoded_dataset import read_encoded

    config = read_run(run_dir)
    (folder,) = (
        path
        for path in (config.run_dir / "cache" / "encoded").iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    return read_encoded(folder, "train", config.tasks)


def steps_of_an_epoch(run_dir: Path) -> int:
    """Batches in a pass over the training rows."""
    from pipeline.training.worker_setup import build_sampler

    return int(build_sampler(read_run(run_dir), encoded_rows(run_dir)).batches_per_epoch)


def ours(run_dir: Path, steps: int, workers: int, compiled: bool, save_every: int = 100_000) -> Figures:
    """`relevance train`, from the command to the end."""
    import torch

    sets = {
        "work_dir": run_dir,
        "training.epochs": steps / steps_of_an_epoch(run_dir),
        "training.num_workers": workers,
        "training.threads_per_worker": 2 // workers,
        "training.batch_rows": BATCH_ROWS,
        "training.checkpoint_every_steps": save_every,
        "training.compile_layers": compiled,
        "training.evaluate_task_rows": 1,
        "training.use_gpu": torch.cuda.is_available(),
    }
    # or the command would find it finished
    shutil.rmtree(read_run(run_dir).run_dir / "trained", ignore_errors=True)
    started_s = time.time()
    command = [
        str(Path(sys.executable).with_name("relevance")),
        "train",
        "--config",
        str(ROOT / "jobs" / "configs" / "esci.yaml"),
    ]
    words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lines = [
        json.loads(line)
        for line in (read_run(run_dir).run_dir / "training" / "live.jsonl").read_text().splitlines()
    ]
    all_steps, start = (
        [line for line in lines if "step" in line],
        next(line for line in lines if "starts_after" in line),
    )
    counted = all_steps[WARM_STEPS:]
    seconds = counted[-1]["at_s"] - all_steps[WARM_STEPS - 1]["at_s"]
    spent = {name: sum(line["seconds"].get(name, 0.0) for line in counted) / seconds for name in SPENT}
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
    """What a save takes of the time between two saves, were there SAVE_EVERY steps between them: the time a
    step is held up, and how much longer a step beside which a checkpoint is written takes for its tokens than
    others do.
    """
    pace = {
        beside: [
            sum(v for k, v in line["seconds"].items() if k != "checkpoint") / line["tokens_computed"]
            for line in some
        ]
        for beside, some in (
            (True, [n for o, n in zip(counted, counted[1:], strict=False) if "checkpoint" in o["seconds"]]),
            (
                False,
                [n for o, n in zip(counted, counted[1:], strict=False) if "checkpoint" not in o["seconds"]],
            ),
        )
    }
    if not pace[True]:
        return 0.0
    tokens = statistics.mean(line["tokens_computed"] for line in counted)
    usual_s = statistics.median(pace[False]) * tokens
    held_s = statistics.median(
        line["seconds"]["checkpoint"] for line in counted if "checkpoint" in line["seconds"]
    )
    return (held_s + max(0.0, statistics.median(pace[True]) * tokens - usual_s)) / (SAVE_EVERY * usual_s)
