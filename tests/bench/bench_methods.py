"""Quality of adapter methods, on a GPU or, slowly, on CPUs.

    python -m tests.bench.bench_methods prepare DIR                  # encode the real data of ../shared/data
    python -m tests.bench.bench_methods train DIR [--processes N]
    python -m tests.bench.bench_methods table DIR                    # print the tables

Each method is trained at each learning rate with the first seed; the best rate on the valid split is
trained with the other seeds. All methods have about as many trained parameters and see the same rows in
the same steps. Training is a plain loop without Ray and DeepSpeed, with the batches, model, loss and
optimizer of `relevance train`; all rows have the same weight, and the weights of the last step count.

Tables show macro PR-AUC (accuracy on the commonsense mix) on the test split: the mean over seeds with its
interval over queries, and each method minus MTL-LoRA, draw by draw on the same queries. Trainings that
DIR already has are skipped; after `train --deadline-s` seconds no training is started.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.config import AdapterConfig
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows, collate, length_batches
from pipeline.encoding.encoded_dataset import read_encoded
from tests.bench.support.method_mixes import MIXES, encode_commonsense, encode_relevance
from tests.support.places import ROOT, SHARED_DATA

SEEDS, RATES = (17, 18, 19), (1e-3, 2e-3, 4e-3)
EPOCHS = {"agreeing": 2.0, "conflicting": 2.0, "commonsense": 1.0}
BATCH_ROWS, EVALUATE_TOKENS = 64, 16_384
# adapter of about 1.7 million parameters by mix ("" for all others) and method
METHODS: dict[str, dict[str, AdapterConfig]] = {
    "": {
        "mtl_lora": MTLLoRAConfig(),
        "lora": LoRAConfig(rank=15, lora_alpha=30),
        "per_task_lora": PerTaskLoRAConfig(rank=4, lora_alpha=8),
        "multi_lora": MultiLoRAConfig(rank=5, lora_alpha=10),
        "moe_lora": MoELoRAConfig(rank=15, lora_alpha=30, num_experts=5),
        "hydra_lora": HydraLoRAConfig(),
    },
    "conflicting": {"per_task_lora": PerTaskLoRAConfig(rank=5, lora_alpha=10)},  # three tasks
}


@dataclass(frozen=True)
class Run:
    """One training."""

    mix: str
    method: str
    rate: float
    seed: int

    def path(self, folder: Path) -> Path:
        """Return the file of its logits."""
        return folder / self.mix / f"{self.method}-{self.rate:g}-{self.seed}.npz"

    def config(self, folder: Path) -> RunConfig:
        """Return the config that `relevance train` would have."""
        settings = json.loads((folder / self.mix / "settings.json").read_text())
        adapter = {**METHODS[""], **METHODS.get(self.mix, {})}[self.method]
        settings |= {
            "seed": self.seed,
            "adapter": asdict(adapter),
            "training": {"batch_rows": BATCH_ROWS, "epochs": EPOCHS[self.mix]},
        }
        settings["optimizer"] = {"learning_rate": self.rate, "head_learning_rate": min(self.rate, 1e-3)}
        return build_config(settings, f"{self.mix}'s settings")


def train_run(run: Run, folder: Path) -> dict[str, Any]:
    """Train one model and save its logits of the valid and the test rows."""
    from models.losses import row_losses
    from models.training.flat_parameters import FlatModel
    from pipeline.inference.predictor import build_predictor
    from pipeline.training.head_init import initialize_heads
    from pipeline.training.optimizer import build_optimizer, learning_rate_scale
    from pipeline.training.worker_setup import build_sampler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, started_s = run.config(folder), time.perf_counter()
    rows_of = {
        side: read_encoded(folder / run.mix / "encoded", side, config.tasks)
        for side in ("train", "valid", "test")
    }
    predictor, train, num_tasks = build_predictor(config, device), rows_of["train"], len(config.tasks)
    relevant_from_T = torch.tensor([task.relevant_from for task in config.tasks], device=device)
    if run.mix == "commonsense":  # answers have no order: no initial direction, no relevance loss
        relevant_from_T.zero_()
        predictor.model.heads.weight_KD.data.normal_(
            0.0, predictor.backbone.width**-0.5, generator=torch.Generator(device).manual_seed(run.seed)
        )
    initialize_heads(predictor, train, None)
    predictor.model.train()
    trained = sum(parameter.numel() for parameter in predictor.model.trainable_state().values())
    model = FlatModel(predictor.model)
    sampler = build_sampler(train, config.tasks, config.training, config.seed)
    optimizer = build_optimizer(model, config.optimizer)
    num_steps = round(EPOCHS[run.mix] * sampler.batches_per_epoch)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            scale = learning_rate_scale(step, num_steps, config.optimizer.warmup_share)
            group["lr"] = group["peak_rate"] * scale
        rows = sampler.global_rows(step)
        batch = collate(train, rows, num_tasks, predictor.pad_id).to(device)
        loss_B = row_losses(model(*batch.inputs), batch.label_B, relevant_from_T[batch.task_B])
        loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(
            list(model.trainable_state().values()), config.optimizer.gradient_clipping
        )
        optimizer.step()
        optimizer.zero_grad()
    logits = {
        side: logits_of(model.eval(), rows_of[side], num_tasks, predictor.pad_id, device)
        for side in ("valid", "test")
    }
    seconds = time.perf_counter() - started_s
    staged = run.path(folder).with_suffix(".tmp.npz")
    np.savez(staged, steps=num_steps, trained=trained, seconds=seconds, **logits)
    staged.rename(run.path(folder))
    return {
        **asdict(run),
        "steps": num_steps,
        "seconds": round(seconds, 1),
        "valid": round(macro(run, folder, "valid"), 4),
    }


@torch.no_grad()
def logits_of(
    model: Any, encoded: EncodedRows, num_tasks: int, pad_id: int, device: torch.device
) -> np.ndarray:
    """Return the logits (N, C) of all rows."""
    parts = length_batches(encoded.length_N, EVALUATE_TOKENS)
    batches = [collate(encoded, rows, num_tasks, pad_id).to(device) for rows in parts]
    found = torch.cat([model(*batch.inputs).double() for batch in batches]).cpu().numpy()
    return np.asarray(found[np.argsort(np.concatenate(parts))])


def task_metrics(run: Run, folder: Path, side: Any) -> list[tuple[float, np.ndarray]]:
    """Return each task's PR-AUC (accuracy on the commonsense mix), with draws (D,) on the test side."""
    from pipeline.evaluation.bootstrap import ClusterBootstrap

    config = run.config(folder)
    encoded = read_encoded(folder / run.mix / "encoded", side, config.tasks)
    logits_NC = np.load(run.path(folder))[side]
    found = []
    for index, task in enumerate(config.tasks):
        rows = np.flatnonzero(encoded.task_N == index)
        metric = metric_function(run.mix, task, logits_NC[rows, : len(task.labels)], encoded.labels_of(rows))
        value = float(metric(np.ones((1, len(rows))))["metric"][0])
        draws = np.zeros(0)
        if side == "test":
            draws = ClusterBootstrap(encoded.queries_of(rows), SEEDS[0]).draws(metric)["metric"]
        found.append((value, draws))
    return found


def metric_function(
    mix: str, task: Task, logits_NC: np.ndarray, label_N: np.ndarray
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function from row weights (D, N) to a task's metric (D,)."""
    from pipeline.evaluation.metrics import ranking_metrics
    from pipeline.inference.calibration import label_probabilities, relevance_probability

    is_right_N = logits_NC.argmax(1) == label_N
    is_relevant_N = label_N >= task.relevant_from
    probability_N = relevance_probability(label_probabilities(logits_NC, 1.0), task)

    def metric(weight_DN: np.ndarray) -> dict[str, np.ndarray]:
        if mix == "commonsense":
            return {"metric": weight_DN @ is_right_N / weight_DN.sum(1)}
        return {"metric": ranking_metrics(probability_N, is_relevant_N, weight_DN)["pr_auc"]}

    return metric


def macro(run: Run, folder: Path, side: str) -> float:
    """Return the mean metric over tasks."""
    return float(np.mean([value for value, _ in task_metrics(run, folder, side)]))


def tried_rates(mix: str, method: str, folder: Path) -> list[float]:
    """Return the rates trained with the first seed, the best one on the valid split first."""
    runs = [run for rate in RATES if (run := Run(mix, method, rate, SEEDS[0])).path(folder).is_file()]
    return [run.rate for run in sorted(runs, key=lambda run: -macro(run, folder, "valid"))]


def train_in_pool(job: tuple[Run, Path, float]) -> str:
    """Train in a process of a pool, unless the run is done or the deadline is over."""
    run, folder, until_s = job
    if run.path(folder).is_file() or time.time() > until_s:
        return ""
    try:
        return json.dumps(train_run(run, folder))
    except Exception as error:  # the other runs continue
        return f"{run} failed: {type(error).__name__}: {error}"


def train_all(folder: Path, mixes: list[str], processes: int, deadline_s: float) -> None:
    """Train every method at every rate, then its best rate with the other seeds."""
    until_s = time.time() + deadline_s
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for seeds in (SEEDS[:1], SEEDS[1:]):
            for mix in mixes:
                rates = {
                    method: RATES if seeds == SEEDS[:1] else tried_rates(mix, method, folder)[:1]
                    for method in METHODS[""]
                }
                runs = [
                    Run(mix, method, rate, seed)
                    for seed in seeds
                    for method, some in rates.items()
                    for rate in some
                ]
                for line in pool.imap_unordered(train_in_pool, [(run, folder, until_s) for run in runs]):
                    print(line, flush=True)


def table(folder: Path, mix: str) -> list[str]:
    """Return the lines of a mix's table, in Markdown."""
    from pipeline.evaluation.bootstrap import interval

    heading = "| method | parameters | rate, of tried | seeds | test | by task | minus mtl_lora |"
    lines = [heading, "|---" * 7 + "|"]
    reference: tuple[float, np.ndarray] | None = None  # value and draws of mtl_lora
    for method in METHODS[""]:
        rates = tried_rates(mix, method, folder)
        planned = [Run(mix, method, rate, seed) for seed in SEEDS for rate in rates[:1]]
        runs = [run for run in planned if run.path(folder).is_file()]
        if not runs:
            continue
        by_run = [task_metrics(run, folder, "test") for run in runs]
        value_T = np.mean([[value for value, _ in tasks] for tasks in by_run], axis=0)
        macro_D = np.mean([[draw_D for _, draw_D in tasks] for tasks in by_run], axis=(0, 1))
        whole = interval(float(value_T.mean()), macro_D)
        minus = ""
        if method == "mtl_lora":
            reference = (whole.value, macro_D)
        elif reference is not None:
            gap = interval(whole.value - reference[0], macro_D - reference[1])
            minus = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        num_parameters = int(np.load(runs[0].path(folder))["trained"])
        seeds = ", ".join(f"{np.mean([value for value, _ in tasks]):.3f}" for tasks in by_run)
        by_task = ", ".join(f"{value:.3f}" for value in value_T)
        lines.append(
            f"| {method} | {num_parameters:,} | {rates[0]:g} of {len(rates)} | {seeds} "
            f"| {whole.value:.3f} [{whole.low:.3f}, {whole.high:.3f}] | {by_task} | {minus} |"
        )
    return lines


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("prepare", "train", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--deadline-s", type=float, default=float("inf"))
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.step == "prepare":
        if not SHARED_DATA.is_dir():
            parser.error(f"real data missing: {SHARED_DATA}; methods are compared on it")
        os.chdir(ROOT)  # the config's sources are relative paths
        for mix in arguments.mixes:
            if (folder / mix / "settings.json").is_file():
                continue
            (folder / mix).mkdir(parents=True)
            encode_commonsense(folder / mix) if mix == "commonsense" else encode_relevance(mix, folder / mix)
    elif arguments.step == "train":
        train_all(folder, arguments.mixes, arguments.processes, arguments.deadline_s)
    else:
        for mix in arguments.mixes:
            print(
                "\n".join(
                    [f"{mix}, {EPOCHS[mix]:g} epochs, batches of {BATCH_ROWS}", *table(folder, mix), ""]
                )
            )


if __name__ == "__main__":
    main()
