"""How fast training is beside what people use: `python -m tests.bench.bench_train [--steps N] [--rounds N]
[--batch-rows N] [--only SIDE ..]`. Needs the real pairs of ../shared/data.

SmolLM2-135M in its own precision, batches of 8 real pairs, the same rows on every side, two threads or one
GPU, sides in turn, each in processes of its own, medians. Sides: our `relevance train` (Ray Train,
DeepSpeed), with compiled layers and without; Hugging Face's Trainer with PEFT's LoRA of as many parameters on
AutoModelForSequenceClassification, with its default padding and with batches grouped by length; a bare
PyTorch loop over our model and our batches. All on one process of two threads, the compiled ones and the
Trainer also on two workers of one thread that share each batch. Prints what each took, and as its last line
one JSON object.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.support.plain_sides import bare, hugging_face, in_two_processes
from tests.bench.support.train_sides import SPENT, Figures, ours, prepare
from tests.support.places import ROOT, SHARED_DATA

SIDES: dict[str, Callable[[Path, int], Figures]] = {
    "ours": lambda run_dir, steps: ours(run_dir, steps, 1, compiled=False),
    "ours, compiled": lambda run_dir, steps: ours(run_dir, steps, 1, compiled=True),
    "ours, saving": lambda run_dir, steps: ours(run_dir, steps, 1, compiled=False, save_every=5),
    "bare loop": lambda run_dir, steps: bare(run_dir, steps, False),
    "bare loop, compiled": lambda run_dir, steps: bare(run_dir, steps, True),
    "HF Trainer, default": lambda run_dir, steps: hugging_face(run_dir, steps, False),
    "HF Trainer, grouped": lambda run_dir, steps: hugging_face(run_dir, steps, True),
    "ours, compiled, 2 workers": lambda run_dir, steps: ours(run_dir, steps, 2, compiled=True),
    "bare loop, compiled, 2 workers": lambda run_dir, steps: in_two_processes(bare, run_dir, steps, True),
    "HF Trainer, default, 2 workers": lambda run_dir, steps: in_two_processes(
        hugging_face, run_dir, steps, False
    ),
    "HF Trainer, grouped, 2 workers": lambda run_dir, steps: in_two_processes(
        hugging_face, run_dir, steps, True
    ),
}

RATIOS = {
    "speed_over_hf_trainer": ("ours, compiled", "HF Trainer, default"),
    "speed_over_hf_grouped": ("ours, compiled", "HF Trainer, grouped"),
    "speed_over_bare_loop": ("ours", "bare loop"),
    "compiled_over_compiled_bare_loop": ("ours, compiled", "bare loop, compiled"),
    "uncompiled_over_hf_trainer": ("ours", "HF Trainer, default"),
    "uncompiled_over_hf_grouped": ("ours", "HF Trainer, grouped"),
    "two_workers_over_hf_trainer": ("ours, compiled, 2 workers", "HF Trainer, default, 2 workers"),
    "two_workers_over_hf_grouped": ("ours, compiled, 2 workers", "HF Trainer, grouped, 2 workers"),
    "two_workers_over_bare_loop": ("ours, compiled, 2 workers", "bare loop, compiled, 2 workers"),
    "two_workers_over_hf_trainer_of_one": ("ours, compiled, 2 workers", "HF Trainer, default"),
}


def run_side(side: str, run_dir: Path, steps: int, batch_rows: int) -> Figures:
    """One side in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_train",
        "--side",
        side,
        "--run-dir",
        str(run_dir),
        "--steps",
        str(steps),
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "BENCH_BATCH_ROWS": str(batch_rows),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def possible_sides() -> list[str]:
    """All, or on a machine with one GPU those of one worker."""
    import torch

    return [side for side in SIDES if torch.cuda.device_count() != 1 or "2 workers" not in side]


def main() -> None:
    """All sides in turn."""
    parser = argparse.ArgumentParser(description="Training beside what people use")
    parser.add_argument(
        "--steps", type=int, default=100, help="in 100 the Trainer pads as in a whole epoch; in 25 or 40 less"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SIDES,
        default=possible_sides(),
        metavar="SIDE",
        help="of " + ", ".join(SIDES),
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        with contextlib.redirect_stdout(sys.stderr):
            figures = SIDES[arguments.side](arguments.run_dir, arguments.steps)
        print(json.dumps(figures))
        return
    if not SHARED_DATA.is_dir():
        sys.exit(f"{SHARED_DATA} is absent: this bench trains on the real pairs")
    with tempfile.TemporaryDirectory(prefix="bench_train") as name:
        run_dir = Path(name)
        prepare(run_dir)
        seen: dict[str, list[Figures]] = {side: [] for side in arguments.only}
        for number in range(arguments.rounds):
            for side, figures in seen.items():
                print(f"round {number + 1} of {arguments.rounds}: {side}", file=sys.stderr, flush=True)
                figures.append(run_side(side, run_dir, arguments.steps, arguments.batch_rows))
                print(f"    {figures[-1]['pairs_per_s']:.2f} pairs/s", file=sys.stderr, flush=True)
    median = {
        side: {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        for side, figures in seen.items()
    }
    for side, figures in median.items():
        print_side(side, figures)
    speed = {side: figures["pairs_per_s"] for side, figures in median.items()}
    result = {
        name: speed[one] / speed[other]
        for name, (one, other) in RATIOS.items()
        if {one, other} <= speed.keys()
    }
    if "ours" in median:
        result["padding_share"] = median["ours"]["padding"]
    if "ours, saving" in median:
        result["checkpoint_cost_share"] = median["ours, saving"]["save_cost"]
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))


def print_side(side: str, figures: Figures) -> None:
    """What one side did, and what its time went into."""
    print(f"{side:26} {figures['pairs_per_s']:6.2f} pairs/s  padding {figures['padding']:.1%}")
    if "mfu" in figures:
        shares = ", ".join(f"{key} {figures[key]:.1%}" for key in SPENT)
        print(f"    a step: {shares}; {figures['tokens_per_s']:.0f} tokens/s, MFU {figures['mfu']:.1%}")
        before = {
            key.removeprefix("before first step: "): value
            for key, value in figures.items()
            if key.startswith("before first step")
        }
        listed = ", ".join(f"{key} {value:.1f}" for key, value in before.items())
        print(f"    {figures['first_step_s']:.1f} s to the end of the first step: {listed}")


if __name__ == "__main__":
    main()
