"""Checks of the writing systems of whole files.

A few texts in another script are brands and typing errors. A file full of them is another market's data in
the wrong folder. So the check is on files, and no row fails it. Files that are too small to be judged alone
are judged together. Great Expectations sees a frame with one row for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from validation.gate.expectations import Check, build_check_suite
from validation.gate.file_checks import FileVerdict
from validation.text.scripts import SCRIPT_COLUMNS

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd

MIN_FOREIGN_TEXTS = 10  # fewer say nothing about a file


@dataclass(frozen=True)
class ForeignCount:
    """Texts in scripts that the task does not name: of one file, or of the small files of a task together."""

    name: str
    rows: int
    foreign: Mapping[str, int]  # by column

    def share(self, column: str) -> float:
        """Return the share of foreign texts; 0 below MIN_FOREIGN_TEXTS."""
        foreign = self.foreign.get(column, 0)
        return foreign / self.rows if foreign >= MIN_FOREIGN_TEXTS else 0.0


def foreign_counts(verdicts: Sequence[FileVerdict], max_share: float) -> list[ForeignCount]:
    """Count the foreign texts of each file that was read, and of the small files of each task together.

    A small file can exceed `max_share` with fewer than MIN_FOREIGN_TEXTS: alone it is never refused for them.
    """
    counts, small = [], dict[str, list[ForeignCount]]()
    for verdict in verdicts:
        if not verdict.refused:
            count = ForeignCount(verdict.relative, verdict.rows, verdict.foreign)
            counts.append(count)
            is_small = max_share * verdict.rows < MIN_FOREIGN_TEXTS
            if is_small and not any(map(count.share, SCRIPT_COLUMNS)):
                small.setdefault(verdict.task, []).append(count)
    for task, files in small.items():
        foreign = Counter[str]()
        for file in files:
            foreign.update(file.foreign)
        if len(files) > 1:
            name = f"{len(files):,} small files of task={task}, such as {files[0].name}"
            counts.append(ForeignCount(name, sum(file.rows for file in files), foreign))
    return counts


def build_script_checks(scripts: Sequence[str], max_share: float) -> tuple[Check, ...]:
    """Build the checks that limit the share of foreign texts in each column."""
    requirement = f"be at most {max_share:g}, in scripts other than {', '.join(scripts)}"
    between = {"min_value": 0.0, "max_value": max_share}
    return tuple(
        Check(
            f"{name}_scripts", f"{name}_foreign_share", requirement, "ExpectColumnValuesToBeBetween", between
        )
        for name in SCRIPT_COLUMNS
    )


def build_script_suite(name: str, scripts: Sequence[str], max_share: float) -> gx.ExpectationSuite:
    """Build the suite for a frame of `build_script_frame`."""
    return build_check_suite(name, build_script_checks(scripts, max_share))


def build_script_frame(counts: Sequence[ForeignCount]) -> pd.DataFrame:
    """Build a frame with one row per count: its name as row_id, its rows, and its shares of foreign texts."""
    import pandas as pd

    shares = {f"{name}_foreign_share": [count.share(name) for count in counts] for name in SCRIPT_COLUMNS}
    return pd.DataFrame({"row_id": [c.name for c in counts], "rows": [c.rows for c in counts], **shares})


def script_failures(
    verdicts: Sequence[FileVerdict], scripts: Sequence[str], max_share: float
) -> Iterator[str]:
    """Yield one message for each count and column with too many foreign texts."""
    for count in foreign_counts(verdicts, max_share):
        for name in SCRIPT_COLUMNS:
            if count.share(name) > max_share:
                yield (
                    f"{count.name}: {count.foreign[name]:,} of {count.rows:,} texts of {name} are in other "
                    f"scripts than {', '.join(scripts)}, more than gate.max_foreign_share, {max_share:.2%}; "
                    "move such rows to their own task, or add the script to gate.scripts"
                )
