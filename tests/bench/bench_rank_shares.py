"""What dealing a batch's rows to ranks by their tasks saves: `python -m tests.bench.bench_rank_shares`.

Packed rows with the lengths of judged pairs (the real ones of ../shared/data where there are any, else
made-up ones), shared out to four tasks at random, like ones in a batch, behind instructions of the shipped
template's length and of 80 tokens. Counts the tokens of the rank that has most, which the others wait for,
times the ranks, over those of one rank that takes the whole batch: dealt by length alone, and as training
deals. The last line is one JSON object.
"""

import json
import time

import numpy as np

from models.backbone import resolve_folder
from models.config import BackboneConfig
from pipeline.training.rank_balancing import deal_by_length, deal_by_task, tokens_of_ranks
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
    """(tokens dealt by length, tokens dealt as training does, ms a batch that the dealing took)."""
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
                tokens_of_ranks(length_B - instruction, task_B, beginning_T, shares)
            )
    return tokens[1] / tokens[0], tokens[2] / tokens[0], 1e3 * seconds / (step + 1)


def main() -> None:
    """All cases."""
    lengths, which = pair_lengths(resolve_folder(BackboneConfig()))
    found = {case: over_one_rank(*case, lengths) for case in CASES}
    rows = [
        [f"{ranks} ranks, {rows} rows, {words} tokens alike", f"{a:.3f}", f"{b:.3f}", f"{ms:.1f}"]
        for (ranks, rows, words), (a, b, ms) in found.items()
    ]
    print_table(
        f"tokens of the rank with most, times ranks, over those of one rank; {which}",
        ["batch", "by length", "by task", "ms"],
        rows,
    )
    print(
        json.dumps(
            {
                f"ranks_{ranks}_rows_{rows}_alike_{words}": round(b, 4)
                for (ranks, rows, words), (_, b, _) in found.items()
            }
        )
    )


if __name__ == "__main__":
    main()
