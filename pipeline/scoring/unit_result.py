"""What became of the units of a scoring run."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of one unit."""

    partition: str
    path: str
    labels: int = 0
    errors: int = 0
    reused: int = 0  # rows of texts that runs before had judged
    error: str = ""  # empty: it is published
    retry: bool = False  # whether the same command may succeed later
    tokens_in: int = 0
    tokens_computed: int = 0
    model_s: float = 0.0
    # that the tokens computed would take if the machine did nothing but large matrix products
    at_peak_s: float = 0.0
    tasks: tuple[str, ...] = ()  # that each row got a label of, where any did

    @property
    def rows(self) -> int:
        """That got their labels."""
        return self.labels // max(1, len(self.tasks))


def read_outcome(fields: dict[str, Any]) -> Outcome:
    """An outcome out of json, which knows no tuples."""
    return Outcome(**{**fields, "tasks": tuple(fields["tasks"])})
