"""How sure a figure is: queries are drawn again with replacement, so that the rows of one query rise and fall
together.

Shape legend: N rows, Q queries, D draws.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 1_000  # behind an interval

# weights in memory at a time: the figures of a block need some ten times their room
BLOCK_WEIGHTS = 2_000_000

Figures = Mapping[str, np.ndarray]  # by name, one value a draw (D,)


@dataclass(frozen=True)
class Interval:
    """A figure and the middle 95 % of its bootstrap draws."""

    value: float
    low: float
    high: float


class QueryDraws:
    """Draws of the queries of N rows. The same rows and seed give the same draws, so that two systems can be
    compared draw by draw.
    """

    def __init__(self, query_N: np.ndarray, seed: int, num_draws: int = NUM_DRAWS) -> None:
        _, self.query_index_N = np.unique(query_N, return_inverse=True)
        self.num_queries = int(self.query_index_N.max()) + 1 if len(query_N) else 0
        self.seed, self.num_draws = seed, num_draws

    def blocks(self) -> Iterator[np.ndarray]:
        """Weights of the rows (d, N), some draws at a time: how often a row's query was drawn."""
        random = np.random.default_rng(self.seed)
        size = max(1, BLOCK_WEIGHTS // max(1, len(self.query_index_N)))
        for start in range(0, self.num_draws, size):
            count = min(size, self.num_draws - start)
            drawn = random.integers(0, self.num_queries, (count, self.num_queries))
            drawn += self.num_queries * np.arange(count)[:, None]
            counts_DQ = np.bincount(drawn.ravel(), minlength=count * self.num_queries).reshape(
                count, self.num_queries
            )
            yield counts_DQ[:, self.query_index_N].astype(np.float64)

    def of(self, figures: Callable[[np.ndarray], Figures]) -> dict[str, np.ndarray]:
        """What `figures` makes of the weights of every draw: by name (D,)."""
        parts = [figures(weight_DN) for weight_DN in self.blocks()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(value: float, draw_D: np.ndarray) -> Interval:
    """The middle 95 % of the draws; draws that have no value are left out."""
    low, high = (
        np.nanquantile(draw_D, [0.025, 0.975]) if np.isfinite(draw_D).any() else (float("nan"), float("nan"))
    )
    return Interval(float(value), float(low), float(high))
