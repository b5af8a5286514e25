"""Result of scoring one work unit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class UnitResult:
    """Counts and costs of one work unit, or the reason why it failed."""

    unit_id: str
    path: str
    labels: int = 0
    errors: int = 0
    reused: int = 0  # rows whose texts earlier runs scored
    error: str = ""  # empty: the unit is published
    retry: bool = False  # True: the same command may succeed later
    is_config_error: bool = False  # True: no unit can be scored until a setting or the backbone changes
    is_damaged: bool = False  # True: the bundle or the backbone is damaged, or another one than recorded
    tokens_in: int = 0
    tokens_computed: int = 0
    model_s: float = 0.0
    at_peak_s: float = 0.0  # time for the computed tokens at the measured peak of matrix products
    tasks: tuple[str, ...] = ()  # tasks that each row got a label of

    @property
    def rows(self) -> int:
        """Number of rows that got labels."""
        return self.labels // max(1, len(self.tasks))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "UnitResult":
        """Parse the JSON form, which has lists for tuples."""
        return cls(**{**fields, "tasks": tuple(fields["tasks"])})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, in which results leave an actor."""
        return asdict(self)
