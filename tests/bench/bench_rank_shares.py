"""Balance of packed rows over ranks.

    python -m tests.bench.bench_rank_shares

Compares distribution by length alone with distribution by task, as in training. Counts the tokens of the
fullest rank, for which the others wait, times the number of ranks, over the tokens of one rank with the
whole batch. Rows have the lengths of labeled pairs (the real ones of ../shared/data if they are on disk),
random tasks out of four, similar lengths in a batch, and instructions of the shipped template's length or
of 80 tokens. The last line is one JSON object.
"""

import json
import time

import numpy as np

from models.backbone import resolve_folder
from models.config import BackboneConfig
from pipeline.training.rank_balancing import count_tokens_per_rank, deal_by_length, deal_by_task
from pipeline.training.sampler import Sampler, SamplerSettings
from tests.bench.support.timing import SEED, pair_lengths, print_table

TASKS, SHIPPED, BATCHES = 4, 10, 50
CASES = [
    (2, 8, SHIPPED),
    (2, 32, SHIPPED),
    (4, 128, SHIPPED),
    (8, 512, SHIPPED),
    (32, 1024, SHIPPED),
    (2, 8, 80),
    (4, 128, 80),
]


def over_one_rank(
    world_size: int, batch_rows: int, instruction: int, lengths: list[int]
) -> tuple[float, float, float]:
    """Return the token ratios by length and by task, and the milliseconds to distribute a batch."""
    draw = np.random.default_rng(SEED)
    task_N = draw.integers(TASKS, size=20_000)
    length_N = np.maximum(draw.choice(lengths, 20_000), SHIPPED + 1) - SHIPPED + instruction
    beginning_T = np.full(TASKS, instruction)
    sampler = Sampler(length_N, task_N, [1.0] * TASKS, SamplerSettings(batch_rows, 1.0, SEED))
    tokens, seconds = np.zeros(3), 0.0
    for step in range(min(BATCHES, sampler.batches_per_epoch)):
        rows = sampler.global_rows(step)
        length_B, task_B = length_N[rows], task_N[rows]
        started_s = time.perf_counter()
        by_task = deal_by_task(length_B, task_B, beginning_T, world_size)
        seconds += time.perf_counter() - started_s
        for number, shares in enumerate(
            ([np.arange(len(rows))], deal_by_length(len(rows), world_size), by_task)
        ):
            tokens[number] += len(shares) * max(
                count_tokens_per_rank(length_B - instruction, task_B, beginning_T, shares)
            )
    return tokens[1] / tokens[0], tokens[2] / tokens[0], 1e3 * seconds / (step + 1)


def main() -> None:
    """Print all cases."""
    lengths, pairs = pair_lengths(resolve_folder(BackboneConfig()))
    found = {case: over_one_rank(*case, lengths) for case in CASES}
    rows = [
        [
            f"{ranks} ranks, {rows} rows, {shared} common tokens",
            f"{by_length:.3f}",
            f"{by_task:.3f}",
            f"{ms:.1f}",
        ]
        for (ranks, rows, shared), (by_length, by_task, ms) in found.items()
    ]
    print_table(
        f"tokens of the fullest rank, times ranks, over those of one rank; {pairs}",
        ["batch", "by length", "by task", "ms"],
        rows,
    )
    print(
        json.dumps(
            {
                f"ranks_{ranks}_rows_{rows}_alike_{shared}": round(by_task, 4)
                for (ranks, rows, shared), (_, by_task, _) in found.items()
            }
        )
    )


if __name__ == "__main__":
    main()
