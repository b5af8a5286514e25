"""Training speed against common alternatives.

    python -m tests.bench.bench_train [--steps N] [--rounds N] [--batch-rows N] [--only SIDE ..]

Needs the real pairs of ../shared/data. SmolLM2-135M in its own precision, batches of 8 real pairs, the same
rows on every side, two threads or one GPU. The sides run in turn, each in new processes; medians count.
Sides:

- our `relevance train` (Ray Train, DeepSpeed), with compiled layers and without
- Hugging Face's Trainer with PEFT's LoRA of about as many parameters, with default padding and with batches
  grouped by length
- a plain PyTorch loop over our model and our batches

All run on one process of two threads; the compiled ones and the Trainer also on two workers of one thread
that share each batch. The last line of the output is one JSON object.
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
from tests.bench.support.train_sides import TIME_SHARES, Measurements, ours, prepare
from tests.support.places import ROOT, SHARED_DATA

SIDES: dict[str, Callable[[Path, int], Measurements]] = {
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


def run_side(side: str, run_dir: Path, steps: int, batch_rows: int) -> Measurements:
    """Run one side in a new process."""
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
    measurements: Measurements = json.loads(done.stdout.splitlines()[-1])
    return measurements


def possible_sides() -> list[str]:
    """Return all sides; on a machine with one GPU those of one worker."""
    import torch

    return [side for side in SIDES if torch.cuda.device_count() != 1 or "2 workers" not in side]


def main() -> None:
    """Measure all sides in turn."""
    parser = argparse.ArgumentParser(description="Training speed against common alternatives")
    parser.add_argument(
        "--steps",
        type=int,
        default=100,
        help="with 100 the Trainer pads as in a whole epoch; with fewer less",
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SIDES,
        default=possible_sides(),
        metavar="SIDE",
        help="sides: " + ", ".join(SIDES),
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        with contextlib.redirect_stdout(sys.stderr):
            measurements = SIDES[arguments.side](arguments.run_dir, arguments.steps)
        print(json.dumps(measurements))
        return
    if not SHARED_DATA.is_dir():
        sys.exit(f"real pairs missing: {SHARED_DATA}; this bench trains on them")
    with tempfile.TemporaryDirectory(prefix="bench_train") as name:
        run_dir = Path(name)
        prepare(run_dir)
        rounds: dict[str, list[Measurements]] = {side: [] for side in arguments.only}
        for number in range(arguments.rounds):
            for side, results in rounds.items():
                print(f"round {number + 1} of {arguments.rounds}: {side}", file=sys.stderr, flush=True)
                results.append(run_side(side, run_dir, arguments.steps, arguments.batch_rows))
                print(f"    {results[-1]['pairs_per_s']:.2f} pairs/s", file=sys.stderr, flush=True)
    median = {
        side: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for side, results in rounds.items()
    }
    for side, measurements in median.items():
        print_side(side, measurements)
    speed = {side: measurements["pairs_per_s"] for side, measurements in median.items()}
    ratios = {
        name: speed[first] / speed[second]
        for name, (first, second) in RATIOS.items()
        if {first, second} <= speed.keys()
    }
    if "ours" in median:
        ratios["padding_share"] = median["ours"]["padding"]
    if "ours, saving" in median:
        ratios["checkpoint_cost_share"] = median["ours, saving"]["save_cost"]
    print(json.dumps({key: round(value, 4) for key, value in ratios.items()}))


def print_side(side: str, measurements: Measurements) -> None:
    """Print the speed of one side and its time shares."""
    print(f"{side:26} {measurements['pairs_per_s']:6.2f} pairs/s  padding {measurements['padding']:.1%}")
    if "mfu" in measurements:
        shares = ", ".join(f"{key} {measurements[key]:.1%}" for key in TIME_SHARES)
        rate = f"{measurements['tokens_per_s']:.0f} tokens/s, MFU {measurements['mfu']:.1%}"
        print(f"    a step: {shares}; {rate}")
        before = {
            key.removeprefix("before first step: "): value
            for key, value in measurements.items()
            if key.startswith("before first step")
        }
        listed = ", ".join(f"{key} {value:.1f}" for key, value in before.items())
        print(f"    {measurements['first_step_s']:.1f} s to the end of the first step: {listed}")


if __name__ == "__main__":
    main()
