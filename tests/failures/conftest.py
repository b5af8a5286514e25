"""What the failure tests saw, counted over all of them and printed as one JSON object when they are
through.
"""

import json
from collections.abc import Iterable
from typing import Any

import pytest

COUNTS = pytest.StashKey["Counts"]()


class Counts:
    """Kills and what became of them."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = dict.fromkeys(
            (
                "kills",
                "resumed",
                "max_loss_difference",
                "rows_duplicated",
                "rows_missing",
                "damaged",
                "detected",
                "score_kills",
                "score_rows_duplicated",
                "score_rows_missing",
                "score_partial_views",
            ),
            0,
        )

    def add(self, name: str, number: int = 1) -> None:
        """So many more."""
        self.numbers[name] += number

    def compare(self, found: Iterable[float], expected: Iterable[float]) -> None:
        """Losses of a training that was interrupted and of one that was not."""
        differences = [abs(one - other) for one, other in zip(found, expected, strict=True)]
        self.numbers["max_loss_difference"] = max([self.numbers["max_loss_difference"], *differences])


@pytest.fixture(scope="session")
def counts(request: pytest.FixtureRequest) -> Counts:
    """The one count of this run of the tests."""
    return request.config.stash.setdefault(COUNTS, Counts())


def pytest_unconfigure(config: Any) -> None:
    """After the last word of pytest."""
    if COUNTS in config.stash:
        print(json.dumps(config.stash[COUNTS].numbers))
