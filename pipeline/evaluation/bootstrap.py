"""Cluster bootstrap of metrics: queries are drawn with replacement, so that rows of one query stay together.

Shape legend: N rows, Q queries, D draws, d draws of a block.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from pipeline.evaluation.results import Interval

NUM_DRAWS = 1_000  # of an interval

# Weights in memory at a time. The metrics of a block need about ten times their memory.
BLOCK_WEIGHTS = 2_000_000

MetricDraws = Mapping[str, np.ndarray]  # by metric, one value per draw (D,)


class ClusterBootstrap:
    """Draws of the queries of N rows.

    Equal rows and seeds give equal draws, so that two systems can be compared draw by draw.
    """

    def __init__(self, query_N: np.ndarray, seed: int, num_draws: int = NUM_DRAWS) -> None:
        _, self.query_index_N = np.unique(query_N, return_inverse=True)
        self.num_queries = int(self.query_index_N.max()) + 1 if len(query_N) else 0
        self.seed, self.num_draws = seed, num_draws

    def weight_blocks(self) -> Iterator[np.ndarray]:
        """Yield row weights (d, N), a block of draws at a time: how often a row's query was drawn."""
        random = np.random.default_rng(self.seed)
        block_size = max(1, BLOCK_WEIGHTS // max(1, len(self.query_index_N)))
        for start in range(0, self.num_draws, block_size):
            count = min(block_size, self.num_draws - start)
            drawn = random.integers(0, self.num_queries, (count, self.num_queries))
            drawn += self.num_queries * np.arange(count)[:, None]
            count_X = np.bincount(drawn.ravel(), minlength=count * self.num_queries)
            count_DQ = count_X.reshape(count, self.num_queries)
            yield count_DQ[:, self.query_index_N].astype(np.float64)

    def draws(self, metrics: Callable[[np.ndarray], MetricDraws]) -> dict[str, np.ndarray]:
        """Return the metrics of every draw (D,) by name; `metrics` takes weights (d, N)."""
        blocks = [metrics(weight_DN) for weight_DN in self.weight_blocks()]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def interval(value: float, draw_D: np.ndarray) -> Interval:
    """Return a metric with the 95 % percentile interval of its draws; NaN draws are left out."""
    low, high = (
        np.nanquantile(draw_D, [0.025, 0.975]) if np.isfinite(draw_D).any() else (float("nan"), float("nan"))
    )
    return Interval(float(value), float(low), float(high))
