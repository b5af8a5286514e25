"""Labels of a unit whose rows are scored in parts, so that long texts are not all in memory at once."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.config.tasks import Task


class ScoredParts:
    """Labels and errors of the parts scored so far, in the order of the unit's rows.

    Attributes:
        markets: Market of each valid row.
        num_predicted: Number of valid rows that the model read; the others had cached scores.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.markets: list[str] = []
        self.num_predicted = 0
        self._scored: list[pa.Table] = []
        self._errors: list[pa.Table] = []

    @property
    def num_rows(self) -> int:
        """Number of valid rows."""
        return len(self.markets)

    def add(self, valid_rows: pa.Table, scored: pa.Table, errors: pa.Table) -> None:
        """Add a part: its valid rows, their labels task by task, and the errors."""
        assert scored.num_rows == len(self.tasks) * valid_rows.num_rows, "each valid row has a label per task"
        self.markets += valid_rows.column("market").to_pylist()
        self._scored.append(scored)
        self._errors.append(errors)

    @property
    def scored(self) -> pa.Table:
        """Labels of all rows for the first task, then for the second, and so on."""
        sizes = [part.num_rows // len(self.tasks) for part in self._scored]
        by_task = [
            part.slice(number * size, size)
            for number in range(len(self.tasks))
            for part, size in zip(self._scored, sizes, strict=True)
        ]
        return pa.concat_tables(by_task)

    @property
    def errors(self) -> pa.Table:
        """Errors of all rows without labels."""
        return pa.concat_tables(self._errors)
