"""How fast training is beside what people use: `python tests/bench/bench_train.py [--steps N] [--rounds N]`. Needs the real pairs of ../shared/data.

SmolLM2-135M in its own precision, batches of 8 real pairs, the same rows on every side, sides in turn, each in a process of its own, medians. Sides:
our `relevance train` (Ray Train, DeepSpeed) with one worker of two threads and with two workers of one; Hugging Face's Trainer with PEFT's LoRA of as
many parameters on AutoModelForSequenceClassification, with its default padding and with batches grouped by length; a bare PyTorch loop over our model
and our batches. Prints tables, and as its last line one JSON object.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SHARED_DATA = ROOT.parent / "shared" / "data"
BATCH_ROWS, WARM_STEPS = 8, 5  # steps that do not count: first touch of memory, libraries' own set-up
SPENT = ("data", "forward", "backward", "communication", "optimizer")
LORA_RANK = 15  # 1.73 M parameters beside MTL-LoRA's 1.70 M

Figures = dict[str, float]


def read_run(run_dir: Path, **training: Any) -> Any:
    """The config of the real pairs, writing into `run_dir`."""
    from pipeline.config import read_config

    sets = {"work_dir": run_dir, "training.batch_rows": BATCH_ROWS, **{f"training.{key}": value for key, value in training.items()}}
    os.chdir(ROOT)  # the config names its sources from here
    return read_config(ROOT / "jobs" / "configs" / "esci.yaml", [f"{key}={value}" for key, value in sets.items()])


def prepare(run_dir: Path) -> None:
    """Import, validate and encode, as a run does before it trains."""
    from jobs.sources import bring_in
    from jobs.validate import run_validate
    from models.backbone import resolve_folder
    from pipeline.encoded_cache import EncodingPlan, publish_encoded
    from pipeline.logs import Console
    from pipeline.reader import find_partitions

    config, console = read_run(run_dir), Console(err=sys.stderr)
    bring_in(config, console)
    run_validate(config, console)
    partitions = find_partitions(config.accepted_dir, config.tasks)
    plan = EncodingPlan(partitions, config.split, config.tasks, config.encode, resolve_folder(config.backbone))
    publish_encoded(plan, config.run_dir, lambda _, __: None)


def encoded_rows(run_dir: Path) -> Any:
    """The training rows that `prepare` encoded."""
    from pipeline.encoded_files import read_encoded

    config = read_run(run_dir)
    (folder,) = (path for path in (config.run_dir / "cache" / "encoded").iterdir() if path.is_dir() and not path.name.startswith("."))
    return read_encoded(folder, "train", config.tasks)


def steps_of_an_epoch(run_dir: Path) -> int:
    """Batches in a pass over the training rows."""
    from pipeline.train_loop import build_sampler

    return int(build_sampler(read_run(run_dir), encoded_rows(run_dir)).batches_per_epoch)


def ours(run_dir: Path, steps: int, workers: int) -> Figures:
    """`relevance train`, from the command to the end."""
    threads = 2 // workers
    sets = [f"training.epochs={steps / steps_of_an_epoch(run_dir)}", f"training.num_workers={workers}", f"training.threads_per_worker={threads}"]
    sets += [f"work_dir={run_dir}", f"training.batch_rows={BATCH_ROWS}", "training.checkpoint_every_steps=100000"]
    shutil.rmtree(read_run(run_dir).run_dir / "trained", ignore_errors=True)  # or the command would find it finished
    started_s = time.time()
    command = [str(Path(sys.executable).with_name("relevance")), "train", "--config", str(ROOT / "jobs" / "configs" / "esci.yaml")]
    done = subprocess.run([*command, *(word for one in sets for word in ("--set", one))], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    records = [json.loads(line) for line in (read_run(run_dir).run_dir / "training" / "live.jsonl").read_text().splitlines()]
    counted = records[WARM_STEPS:]
    seconds = counted[-1]["at_s"] - records[WARM_STEPS - 1]["at_s"]
    spent = {name: sum(r["seconds"].get(name, 0.0) for r in counted) / seconds for name in SPENT}
    padding = 1 - sum(r["tokens"] for r in counted) / sum(r["tokens_computed"] for r in counted)
    return {
        "pairs_per_s": sum(r["rows"] for r in counted) / seconds, "padding": padding, "first_step_s": records[0]["at_s"] - started_s,
        "mfu": statistics.median(r["mfu"] for r in counted if r["mfu"] is not None), **spent,
    }  # fmt: skip


def step_rows(run_dir: Path, steps: int) -> list[Any]:
    """Row numbers of each step, as our sampler has them."""
    from pipeline.train_loop import build_sampler

    sampler = build_sampler(read_run(run_dir), encoded_rows(run_dir))
    return [sampler.global_rows(step) for step in range(steps)]


def bare(run_dir: Path, steps: int) -> Figures:
    """Our model and batches in a loop of plain torch."""
    import torch

    from models.losses import row_losses, task_sums
    from pipeline.batches import collate
    from pipeline.judge import fresh_judge
    from pipeline.optimizer import build_optimizer
    from pipeline.train_loop import start_heads

    torch.set_num_threads(2)
    config, encoded = read_run(run_dir), encoded_rows(run_dir)
    judge = fresh_judge(config)
    start_heads(judge, encoded)
    judge.model.train()
    optimizer = build_optimizer(judge.model, config.optimizer)
    relevant_from_T = torch.tensor([task.relevant_from for task in config.tasks])
    trained = list(judge.model.trainable_state().values())
    times, tokens = [time.perf_counter()], [0, 0]
    for rows in step_rows(run_dir, steps):
        batch = collate(encoded, rows, len(config.tasks), judge.pad_id)
        loss_B = row_losses(judge.model(batch.input_ids_BS, batch.mask_BS, batch.task_B), batch.label_B, relevant_from_T[batch.task_B])
        loss_T, _ = task_sums(loss_B, batch.weight_B, batch.task_B, len(config.tasks))
        (loss_T.sum() / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        tokens = [tokens[0] + int(batch.mask_BS.sum()), tokens[1] + batch.mask_BS.numel()]
    return {"pairs_per_s": (steps - WARM_STEPS) * BATCH_ROWS / (times[-1] - times[WARM_STEPS]), "padding": 1 - tokens[0] / tokens[1]}


def hugging_face(run_dir: Path, steps: int, grouped: bool) -> Figures:
    """transformers' Trainer over the very rows of our steps."""
    import numpy as np
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from models.backbone import choose_dtype, resolve_folder

    torch.set_num_threads(2)
    config, encoded = read_run(run_dir), encoded_rows(run_dir)
    folder = resolve_folder(config.backbone)
    rows = np.concatenate(step_rows(run_dir, steps)).tolist()
    items = [{"input_ids": encoded.ids[encoded.starts[row] : encoded.starts[row + 1]].tolist(), "labels": int(encoded.label_N[row])} for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = choose_dtype(config.backbone.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4, dtype=dtype, pad_token_id=tokenizer.pad_token_id)
    targets = list(config.adapter.target_modules)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=targets)
    model = get_peft_model(model, lora)
    collate, tokens, times = DataCollatorWithPadding(tokenizer), [0, 0], []

    def counted(examples: list[dict[str, Any]]) -> Any:
        batch = collate(examples)
        tokens[0] += sum(len(example["input_ids"]) for example in examples)
        tokens[1] += batch["input_ids"].numel()
        return batch

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out_dir:
        strategy = {"train_sampling_strategy": "group_by_length"} if grouped else {}
        arguments = TrainingArguments(
            out_dir, per_device_train_batch_size=BATCH_ROWS, max_steps=steps, report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True,
            disable_tqdm=True, learning_rate=5e-4, seed=17, **strategy,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=items, data_collator=counted, callbacks=[Clock()])
        trainer.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pairs_per_s = (steps - WARM_STEPS) * BATCH_ROWS / (times[-1] - times[WARM_STEPS - 1])
    return {"pairs_per_s": pairs_per_s, "padding": 1 - tokens[0] / tokens[1], "trained": trained}


SIDES: dict[str, Callable[[Path, int], Figures]] = {
    "ours, 1 worker of 2 threads": lambda run_dir, steps: ours(run_dir, steps, 1),
    "ours, 2 workers of 1 thread": lambda run_dir, steps: ours(run_dir, steps, 2),
    "bare PyTorch loop": bare,
    "HF Trainer, default padding": lambda run_dir, steps: hugging_face(run_dir, steps, grouped=False),
    "HF Trainer, grouped by length": lambda run_dir, steps: hugging_face(run_dir, steps, grouped=True),
}


def run_side(side: str, run_dir: Path, steps: int) -> Figures:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--run-dir", str(run_dir), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """All sides in turn."""
    parser = argparse.ArgumentParser(description="Training beside what people use")
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=3)
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
        seen: dict[str, list[Figures]] = {side: [] for side in SIDES}
        for number in range(arguments.rounds):
            for side, figures in seen.items():
                print(f"round {number + 1} of {arguments.rounds}: {side}", file=sys.stderr, flush=True)
                figures.append(run_side(side, run_dir, arguments.steps))
    median = {side: {key: statistics.median(one[key] for one in figures) for key in figures[0]} for side, figures in seen.items()}
    for side, figures in median.items():
        shares = "  ".join(f"{key} {figures[key]:.1%}" for key in SPENT if key in figures)
        more = f"  first step after {figures['first_step_s']:.1f} s  MFU {figures['mfu']:.1%}" if "mfu" in figures else ""
        print(f"  {side:30} {figures['pairs_per_s']:6.2f} pairs/s  padding {figures['padding']:.1%}{more}  {shares}".rstrip())
    mine, two, loop, default, grouped = (figures["pairs_per_s"] for figures in median.values())
    result = {
        "over_hf_default": mine / default, "over_hf_grouped": mine / grouped, "two_workers_over_hf_default": two / default,
        "over_bare_loop": mine / loop, "padding": median["ours, 1 worker of 2 threads"]["padding"],
    }  # fmt: skip
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
