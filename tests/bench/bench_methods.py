"""Adapter methods beside each other, on a GPU or, slowly, without one: what their trained models are worth.

    python -m tests.bench.bench_methods prepare DIR                  # encode the real data of ../shared/data
    python -m tests.bench.bench_methods train DIR [--processes N]
    python -m tests.bench.bench_methods table DIR                    # the tables

Each method is trained at each rate with one seed, and at its best rate with the others.

All methods have about as many trained numbers, and see the same rows in the same steps (bare loop: no Ray, no
DeepSpeed; the batches, model, loss and optimizer of `relevance train`, all rows weighing the same, and the
weights of the last step). The rate is chosen on the valid split with the first seed. Tables give macro PR-AUC
(accuracy on the commonsense mix) on the test split, the mean over seeds with its interval over queries, and
each method minus MTL-LoRA, draw by draw on the same queries. What was trained in DIR before is not trained
again; after `train --deadline-s` seconds nothing is started.
"""

import argparse
import json
import multiprocessing
import os
import time
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
from pipeline.encoding.batches import EncodedRows, collate, length_batches
from pipeline.encoding.encoded_dataset import read_encoded
from tests.bench.support.method_mixes import MIXES, encode_commonsense, encode_relevance
from tests.support.places import ROOT, SHARED_DATA

SEEDS, RATES = (17, 18, 19), (1e-3, 2e-3, 4e-3)
EPOCHS = {"agreeing": 2.0, "conflicting": 2.0, "commonsense": 1.0}
BATCH_ROWS, EVALUATE_TOKENS = 64, 16_384
# mix, or "" for the others -> method -> about 1.7 million numbers
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
        """Where its logits go."""
        return folder / self.mix / f"{self.method}-{self.rate:g}-{self.seed}.npz"

    def config(self, folder: Path) -> RunConfig:
        """As `relevance train` would have it."""
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
    """Train one model and keep its logits of the valid and the test rows."""
    from models.losses import row_losses
    from models.training.flat_parameters import FlatModel
    from pipeline.inference.predictor import fresh_judge
    from pipeline.training.head_init import start_heads
    from pipeline.training.optimizer import build_optimizer, rate_share
    from pipeline.training.worker_setup import build_sampler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, started_s = run.config(folder), time.perf_counter()
    rows_of = {
        side: read_encoded(folder / run.mix / "encoded", side, config.tasks)
        for side in ("train", "valid", "test")
    }
    judge, train, num_tasks = fresh_judge(config, device), rows_of["train"], len(config.tasks)
    relevant_from_T = torch.tensor([task.relevant_from for task in config.tasks], device=device)
    if run.mix == "commonsense":  # answers have no order: no direction to start from, and no second loss
        relevant_from_T.zero_()
        judge.model.heads.weight_KD.data.normal_(
            0.0, judge.backbone.width**-0.5, generator=torch.Generator(device).manual_seed(run.seed)
        )
    start_heads(judge, train, None)
    judge.model.train()
    trained = sum(parameter.numel() for parameter in judge.model.trainable_state().values())
    model, sampler = FlatModel(judge.model), build_sampler(config, train)
    optimizer = build_optimizer(model, config.optimizer)
    num_steps = round(EPOCHS[run.mix] * sampler.batches_per_epoch)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_rate"] * rate_share(step, num_steps, config.optimizer.warmup_share)
        rows = sampler.global_rows(step)
        batch = collate(train, rows, num_tasks, judge.pad_id).to(device)
        loss_B = row_losses(model(*batch.inputs), batch.label_B, relevant_from_T[batch.task_B])
        loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(
            list(model.trainable_state().values()), config.optimizer.gradient_clipping
        )
        optimizer.step()
        optimizer.zero_grad()
    logits = {
        side: logits_of(model.eval(), rows_of[side], num_tasks, judge.pad_id, device)
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
    """(N, C) of all rows."""
    parts = length_batches(encoded.length_N, EVALUATE_TOKENS)
    batches = [collate(encoded, rows, num_tasks, pad_id).to(device) for rows in parts]
    found = torch.cat([model(*batch.inputs).double() for batch in batches]).cpu().numpy()
    return np.asarray(found[np.argsort(np.concatenate(parts))])


def figures(run: Run, folder: Path, side: Any) -> list[tuple[float, np.ndarray]]:
    """Of each task PR-AUC, or accuracy on the commonsense mix, and its draws (D,)."""
    from pipeline.evaluation.bootstrap import QueryDraws
    from pipeline.evaluation.metrics import ranking_figures
    from pipeline.inference.calibration import label_probabilities, relevance_probability

    config, found = run.config(folder), []
    encoded, logits_NC = (
        read_encoded(folder / run.mix / "encoded", side, config.tasks),
        np.load(run.path(folder))[side],
    )
    for index, task in enumerate(config.tasks):
        mine = np.flatnonzero(encoded.task_N == index)
        label_N, logits_MC = encoded.label_N[mine], logits_NC[mine, : len(task.labels)]
        right_N = logits_MC.argmax(1) == label_N
        probability_N = relevance_probability(label_probabilities(logits_MC, 1.0), task)

        def of(
            weight_DN: np.ndarray,
            right_N: Any = right_N,
            said: Any = probability_N,
            truth: Any = label_N >= task.relevant_from,
        ) -> Any:
            if run.mix == "commonsense":
                return {"figure": weight_DN @ right_N / weight_DN.sum(1)}
            return {"figure": ranking_figures(said, truth, weight_DN)["pr_auc"]}

        draws = (
            QueryDraws(encoded.queries_of(mine), SEEDS[0]).of(of)["figure"] if side == "test" else np.zeros(0)
        )
        found.append((float(of(np.ones((1, len(mine))))["figure"][0]), draws))
    return found


def macro(run: Run, folder: Path, side: str) -> float:
    """Mean over tasks."""
    return float(np.mean([value for value, _ in figures(run, folder, side)]))


def tried_rates(mix: str, method: str, folder: Path) -> list[float]:
    """Rates that were tried with the first seed, the best one on the valid split first."""
    runs = [run for rate in RATES if (run := Run(mix, method, rate, SEEDS[0])).path(folder).is_file()]
    return [run.rate for run in sorted(runs, key=lambda run: -macro(run, folder, "valid"))]


def work(job: tuple[Run, Path, float]) -> str:
    """One training in a process of a pool, unless it was done before or its time is over."""
    run, folder, until_s = job
    if run.path(folder).is_file() or time.time() > until_s:
        return ""
    try:
        return json.dumps(train_run(run, folder))
    except Exception as error:  # the others go on
        return f"{run} failed: {type(error).__name__}: {error}"


def train_all(folder: Path, mixes: list[str], processes: int, deadline_s: float) -> None:
    """First every method at every rate, then the best rate of each with the other seeds."""
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
                for told in pool.imap_unordered(work, [(run, folder, until_s) for run in runs]):
                    print(told, flush=True)


def table(folder: Path, mix: str) -> list[str]:
    """Lines of a mix's table, in markdown."""
    from pipeline.evaluation.bootstrap import interval

    lines, first_D, first = (
        ["| method | numbers | rate, of tried | seeds | test | by task | minus mtl_lora |", "|---" * 7 + "|"],
        None,
        0.0,
    )
    for method in METHODS[""]:
        rates = tried_rates(mix, method, folder)
        runs = [
            run
            for seed in SEEDS
            for rate in rates[:1]
            if (run := Run(mix, method, rate, seed)).path(folder).is_file()
        ]
        if not runs:
            continue
        each = [figures(run, folder, "test") for run in runs]
        value_T = np.mean([[value for value, _ in one] for one in each], axis=0)
        macro_D = np.mean([[draw_D for _, draw_D in one] for one in each], axis=(0, 1))
        whole = interval(float(value_T.mean()), macro_D)
        spread = ", ".join(f"{np.mean([value for value, _ in one]):.3f}" for one in each)
        if method == "mtl_lora":
            first, first_D = whole.value, macro_D
        gap = (
            None
            if first_D is None or method == "mtl_lora"
            else interval(whole.value - first, macro_D - first_D)
        )
        minus = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" if gap else ""
        about = (
            f"| {method} | {int(np.load(runs[0].path(folder))['trained']):,} | {rates[0]:g} of "
            f"{len(rates)} | {spread} |"
        )
        tasks = ", ".join(f"{value:.3f}" for value in value_T)
        lines.append(f"{about} {whole.value:.3f} [{whole.low:.3f}, {whole.high:.3f}] | {tasks} | {minus} |")
    return lines


def main() -> None:
    """One of the three steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "train", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--deadline-s", type=float, default=float("inf"))
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.what == "prepare":
        if not SHARED_DATA.is_dir():
            parser.error(f"{SHARED_DATA} is absent: methods are compared on the real data")
        os.chdir(ROOT)  # the config names its sources from here
        for mix in arguments.mixes:
            if (folder / mix / "settings.json").is_file():
                continue
            (folder / mix).mkdir(parents=True)
            encode_commonsense(folder / mix) if mix == "commonsense" else encode_relevance(mix, folder / mix)
    elif arguments.what == "train":
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
