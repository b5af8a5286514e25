"""Texts in another writing system than their task's: a few are brands and slips, a file of them is another
market's data in the wrong folder.

Told by file, and by the file as a whole: no row is bad for it. Great Expectations sees a frame with one line
a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from validation.gate.expectations import Check, build_check_suite
from validation.gate.file_checks import PartitionVerdict
from validation.text.scripts import MIXED_COLUMNS

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd

MIN_FOREIGN = 10  # texts; fewer tell nothing of a file


def foreign_share(verdict: PartitionVerdict, column: str) -> float:
    """The share of a file's texts in other scripts than its task's; 0 where there are too few to tell."""
    foreign = verdict.foreign.get(column, 0)
    return foreign / verdict.rows if foreign >= MIN_FOREIGN else 0.0


def build_mix_checks(scripts: Sequence[str], max_share: float) -> tuple[Check, ...]:
    """What the files of a task must keep together."""
    promise = f"be at most {max_share:g}, in scripts other than {', '.join(scripts)}"
    between = {"min_value": 0.0, "max_value": max_share}
    return tuple(
        Check(f"{name}_scripts", f"{name}_foreign_share", promise, "ExpectColumnValuesToBeBetween", between)
        for name in MIXED_COLUMNS
    )


def build_mix_suite(task_name: str, scripts: Sequence[str], max_share: float) -> gx.ExpectationSuite:
    """The suite for a frame of `build_mix_frame`. No task can be called this: + is outside the name rule."""
    return build_check_suite(f"{task_name}+scripts", build_mix_checks(scripts, max_share))


def build_mix_frame(verdicts: Sequence[PartitionVerdict]) -> pd.DataFrame:
    """One line a file: its name as row_id, its rows, the share of its texts in other scripts."""
    import pandas as pd

    shares = {
        f"{name}_foreign_share": [foreign_share(verdict, name) for verdict in verdicts]
        for name in MIXED_COLUMNS
    }
    return pd.DataFrame(
        {"row_id": [v.relative for v in verdicts], "rows": [v.rows for v in verdicts], **shares}
    )


def mix_sentences(
    verdicts: Sequence[PartitionVerdict], scripts: Sequence[str], max_share: float
) -> Iterator[str]:
    """Why files are refused for their scripts."""
    for verdict in verdicts:
        for name in MIXED_COLUMNS:
            if foreign_share(verdict, name) > max_share:
                counted = (
                    f"{verdict.foreign[name]:,} of {verdict.rows:,} texts of {name} are in other scripts "
                    f"than {', '.join(scripts)}"
                )
                advice = "move the file to its own task, or add the script to gate.scripts"
                yield (
                    f"{verdict.relative}: {counted}, more than gate.max_foreign_share, {max_share:.2%}; "
                    f"{advice}"
                )
