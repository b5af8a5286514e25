"""Quality of training recipes.

    python -m tests.bench.bench_recipe --work-dir DIR [--only NAME]... [--epochs N]

Needs the real pairs of ../shared/data. Each recipe is trained and evaluated with the commands that a user
types, on one of two mixes of tasks (see tests/bench/support/method_mixes.py): agreeing or conflicting.
Prints macro PR-AUC on the test rows with its interval clustered by query, and each recipe minus the first
of its mix, draw by draw on the same queries. Recipes that DIR already has are not trained again.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.bench.support.method_mixes import ESCI_CONFIG, conflicting_settings, write_conflicting
from tests.support.places import ROOT, SHARED_DATA

RELEVANCE = str(Path(sys.executable).with_name("relevance"))
LORA = "adapter={method: lora, rank: 15, lora_alpha: 30}"  # 1.73 M parameters; MTL-LoRA has 1.70 M
RECIPES: dict[str, tuple[str, list[str]]] = {
    "mtl_lora": ("agreeing", []),
    "lora": ("agreeing", [LORA]),
    "mtl_lora-upper-half": ("agreeing", [f"adapter.layers_to_transform={list(range(15, 30))}"]),
    "mtl_lora-half-rate": ("agreeing", ["optimizer.learning_rate=5e-4", "optimizer.head_learning_rate=5e-4"]),
    "mtl_lora-double-rate": (
        "agreeing",
        ["optimizer.learning_rate=2e-3", "optimizer.head_learning_rate=2e-3"],
    ),
    "mtl_lora-rank-4": ("agreeing", ["adapter.rank=4", "adapter.lora_alpha=8"]),
    "mtl_lora-rank-16": ("agreeing", ["adapter.rank=16", "adapter.lora_alpha=32"]),
    "mtl_lora-one-up": ("agreeing", ["adapter.num_up_projections=1"]),
    "mtl_lora-six-ups": ("agreeing", ["adapter.num_up_projections=6"]),
    "mtl_lora-tau-2": ("agreeing", ["adapter.mixture_temperature=2"]),
    "mtl_lora-tau-tenth": ("agreeing", ["adapter.mixture_temperature=0.1"]),
    "mtl_lora-qv": ("agreeing", ["adapter.target_modules=[q_proj, v_proj]"]),
    "mtl_lora-all-linears": ("agreeing", ["adapter.target_modules=all-linear"]),
    "mtl_lora-batch-16": ("agreeing", ["training.batch_rows=16"]),
    "mtl_lora-two-epochs": ("agreeing", ["training.epochs=2"]),
    "conflicting-mtl_lora": ("conflicting", []),
    "conflicting-lora": ("conflicting", [LORA]),
    "conflicting-per_task_lora": (
        "conflicting",
        ["adapter={method: per_task_lora, rank: 5, lora_alpha: 10}"],
    ),
}


def relevance(*arguments: str) -> None:
    """Run a command; its output goes to stderr."""
    subprocess.run([RELEVANCE, *arguments], cwd=ROOT, check=True, stdout=sys.stderr)


def conflicting_config(work_dir: Path) -> Path:
    """Return the path of the conflicting mix's config; write it and its rows if needed."""
    path, judged = work_dir / "conflicting.yaml", work_dir / "conflicting"
    if not path.is_file():
        relevance("import", "esci", str(SHARED_DATA / "esci_sample"), str(work_dir / "esci"))
        write_conflicting(work_dir / "esci" / "task=esci_us", judged)
        path.write_text(yaml.safe_dump(conflicting_settings(judged)))
    return path


def measure(name: str, work_dir: Path, epochs: float) -> dict[str, Any]:
    """Train and evaluate one recipe, unless the work folder has it; return its evaluation."""
    run_name = f"recipe-{name}-{epochs:g}"
    run_dir = work_dir / run_name
    if not (run_dir / "seconds.json").is_file():
        mix, sets = RECIPES[name]
        config = conflicting_config(work_dir) if mix == "conflicting" else ESCI_CONFIG
        sets = [
            f"name={run_name}",
            f"work_dir={work_dir}",
            f"training.epochs={epochs}",
            "training.compile_layers=true",
            *sets,
        ]
        options = ["--config", str(config), *(word for override in sets for word in ("--set", override))]
        if mix == "agreeing":
            for kind, path in (
                ("esci", "esci_sample"),
                ("chorus", "chorus_electronics/query_product_ratings.tsv"),
            ):
                relevance("import", kind, str(SHARED_DATA / path), str(run_dir / "data" / "judged"))
        started_s = time.time()
        relevance("train", *options)
        seconds = time.time() - started_s
        relevance("evaluate", *options)
        (run_dir / "seconds.json").write_text(json.dumps(seconds))
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    return {"name": name, "seconds": json.loads((run_dir / "seconds.json").read_text()), **evaluation}


def differences(names: list[str], work_dir: Path, epochs: float) -> list[str]:
    """Return lines with macro PR-AUC of each recipe minus the first of its mix, paired by query draws."""
    from pipeline.config.loading import read_config
    from pipeline.data.reader import read_split
    from pipeline.evaluation.bootstrap import interval
    from pipeline.evaluation.comparison import compare_task, labeled_rows
    from pipeline.inference.predictor import load_predictor
    from tests.support.predicted import predicted_version

    path = conflicting_config(work_dir) if RECIPES[names[0]][0] == "conflicting" else ESCI_CONFIG
    config = read_config(path, [f"name=recipe-{names[0]}-{epochs:g}", f"work_dir={work_dir}"])
    tables = read_split(config.accepted_dir, config.tasks, config.split, "test")
    rows = {task.name: replace(labeled_rows(task, tables[task.name]), slices={}) for task in config.tasks}
    predictions: dict[str, dict[str, Any]] = {}
    lines = []
    for name in names:
        predictor, _ = load_predictor(work_dir / f"recipe-{name}-{epochs:g}" / "bundle")
        version = predicted_version(predictor, tables, config.scoring.batch_tokens)
        predictions[name] = {task: version.predict(task, tables[task]) for task in rows}
        if name == names[0]:
            continue
        first = predictions[names[0]]
        compared = [
            compare_task(rows[task], predictions[name][task], first[task], config.seed) for task in rows
        ]
        value = float(np.mean([task.difference["pr_auc"].value for task in compared]))
        macro = interval(value, np.mean([task.difference_D for task in compared], axis=0))
        lines.append(f"{name} minus {names[0]}: {macro.value:+.3f} [{macro.low:+.3f}, {macro.high:+.3f}]")
    return lines


def main() -> None:
    """Measure all recipes, or those of --only."""
    parser = argparse.ArgumentParser(description="Quality of training recipes")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--only", choices=RECIPES, action="append")
    parser.add_argument("--epochs", type=float, default=1.0)
    arguments = parser.parse_args()
    if not SHARED_DATA.is_dir():
        sys.exit(f"real pairs missing: {SHARED_DATA}; recipes are compared on them")
    work_dir = arguments.work_dir.absolute()
    work_dir.mkdir(parents=True, exist_ok=True)
    print("| recipe | macro PR-AUC | 95 % interval | by task | training |\n|---|---|---|---|---|")
    for name in arguments.only or RECIPES:
        result = measure(name, work_dir, arguments.epochs)
        macro = result["macro_pr_auc"]["model"]
        by_task = ", ".join(
            f"{task} {metrics['model']['pr_auc']['value']:.3f}" for task, metrics in result["tasks"].items()
        )
        print(
            (
                f"| {name} | {macro['value']:.3f} | {macro['low']:.3f} to {macro['high']:.3f} | {by_task} | "
                f"{result['seconds']:.0f} s |"
            ),
            flush=True,
        )
    for mix in ("agreeing", "conflicting"):
        names = [name for name in arguments.only or RECIPES if RECIPES[name][0] == mix]
        print("\n".join(differences(names, work_dir, arguments.epochs)) if len(names) > 1 else "", flush=True)


if __name__ == "__main__":
    main()
