"""Counts over all failure tests, printed as one JSON object at their end."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

COUNTS = pytest.StashKey["Counts"]()


class Counts:
    """Counts of kills and of their outcomes."""

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
        """Increase a count."""
        self.numbers[name] += number

    def compare(self, found: Iterable[float], expected: Iterable[float]) -> None:
        """Compare the losses of an interrupted training with those of an uninterrupted one."""
        differences = [abs(one - other) for one, other in zip(found, expected, strict=True)]
        self.numbers["max_loss_difference"] = max([self.numbers["max_loss_difference"], *differences])


@pytest.fixture(scope="session")
def counts(request: pytest.FixtureRequest) -> Counts:
    """Return the counts of this run of the tests."""
    return request.config.stash.setdefault(COUNTS, Counts())


def pytest_unconfigure(config: Any) -> None:
    """Print the counts after the output of pytest."""
    if COUNTS in config.stash:
        print(json.dumps(config.stash[COUNTS].numbers))
