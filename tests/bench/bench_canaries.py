"""How far canary probabilities of one model differ between ways to compute them on one machine.

    python -m tests.bench.bench_canaries

SmolLM2-135M with random MTL-LoRA adapters and head, in float32 and in bfloat16; eight synthetic rows of each
task, as in a bundle's reference. The reference is what an evaluation records: the eight rows by themselves,
two threads. The last line is one JSON object: the largest difference of a relevance probability.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.places import ROOT


def differences(dtype: str, work_dir: Path) -> dict[str, float]:
    """Return the largest difference from the recorded probabilities by way of computing."""
    import pyarrow as pa
    import torch

    from pipeline.config.loading import read_config
    from pipeline.evaluation.score_reference import CANARY_ROWS
    from pipeline.inference.multitask_predictor import MultitaskPredictor
    from pipeline.inference.probabilities import predict_multitask_probabilities
    from tests.bench.bench_score import random_predictor
    from tests.bench.support.made_up_rows import made_up_rows

    overrides = (f"work_dir={work_dir}", f"backbone.dtype={dtype}")
    config = read_config(ROOT / "jobs" / "configs" / "esci.yaml", overrides)
    torch.set_num_threads(2)
    predictor = random_predictor(config)
    rows, others = (
        made_up_rows("esci_us", first, num_rows, np.random.default_rng(first))
        for first, num_rows in ((0, CANARY_ROWS), (CANARY_ROWS, 16))
    )
    batch_tokens = config.scoring.batch_tokens
    spread_logits(predictor, rows, batch_tokens)
    reference = probabilities(predictor, rows, batch_tokens)

    def largest(found: np.ndarray) -> float:
        return float(np.abs(found - reference).max())

    multitask = MultitaskPredictor(predictor)
    result = {
        "each row alone": largest(
            np.concatenate(
                [probabilities(predictor, rows.slice(n, 1), batch_tokens) for n in range(len(rows))], 1
            )
        ),
        "among 24 rows": largest(
            probabilities(predictor, pa.concat_tables([rows, others]), batch_tokens)[:, : len(rows)]
        ),
        "all tasks": largest(
            relevance(
                predictor,
                lambda task: predict_multitask_probabilities(multitask, rows, batch_tokens)[task.name],
            )
        ),
    }
    torch.set_num_threads(1)
    result["one thread"] = largest(probabilities(predictor, rows, batch_tokens))
    return result


def spread_logits(predictor: Any, rows: Any, batch_tokens: int) -> None:
    """Scale the head so that logits deviate by 1: probabilities of 0 and 1 would hide differences."""
    import torch

    from pipeline.inference.probabilities import plan_row_logits

    logits = [plan_row_logits(predictor, rows, task, batch_tokens).run() for task in predictor.tasks]
    with torch.no_grad():
        predictor.model.heads.weight_KD.div_(float(np.std(np.concatenate(logits))))
    predictor.task_predictors.clear()  # they hold the head as it was


def probabilities(predictor: Any, rows: Any, batch_tokens: int) -> np.ndarray:
    """Return the relevance probability (tasks, rows)."""
    from pipeline.inference.probabilities import predict_probabilities

    return relevance(predictor, lambda task: predict_probabilities(predictor, rows, task, batch_tokens))


def relevance(predictor: Any, predict: Any) -> np.ndarray:
    """Return the relevance probability (tasks, rows) of label probabilities."""
    from pipeline.inference.calibration import relevance_probability

    return np.stack([relevance_probability(predict(task), task) for task in predictor.tasks])


def main() -> None:
    """Measure both precisions, and print them."""
    with tempfile.TemporaryDirectory() as folder:
        found = {dtype: differences(dtype, Path(folder)) for dtype in ("float32", "bfloat16")}
    for dtype, by_way in found.items():
        for way, value in by_way.items():
            print(f"{dtype:10} {way:22} {value:.6f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
