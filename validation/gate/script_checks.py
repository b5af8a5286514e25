"""Checks of the writing systems of whole files.

A few texts in another script are brands and typing errors. A file full of them is another market's data in
the wrong folder. So the check is on files, and no row fails it. Great Expectations sees a frame with one row
per file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from validation.gate.expectations import Check, build_check_suite
from validation.gate.file_checks import FileVerdict
from validation.text.scripts import SCRIPT_COLUMNS

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd

MIN_FOREIGN_TEXTS = 10  # fewer say nothing about a file


def foreign_share(verdict: FileVerdict, column: str) -> float:
    """Return the share of a file's texts in scripts that its task does not name.

    It is 0 below MIN_FOREIGN_TEXTS.
    """
    foreign = verdict.foreign.get(column, 0)
    return foreign / verdict.rows if foreign >= MIN_FOREIGN_TEXTS else 0.0


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


def build_script_frame(verdicts: Sequence[FileVerdict]) -> pd.DataFrame:
    """Build a frame with one row per file: its name as row_id, its rows, and its shares of foreign texts."""
    import pandas as pd

    shares = {
        f"{name}_foreign_share": [foreign_share(verdict, name) for verdict in verdicts]
        for name in SCRIPT_COLUMNS
    }
    return pd.DataFrame(
        {"row_id": [v.relative for v in verdicts], "rows": [v.rows for v in verdicts], **shares}
    )


def script_failures(
    verdicts: Sequence[FileVerdict], scripts: Sequence[str], max_share: float
) -> Iterator[str]:
    """Yield one message for each file and column with too many foreign texts."""
    for verdict in verdicts:
        for name in SCRIPT_COLUMNS:
            if foreign_share(verdict, name) > max_share:
                yield (
                    f"{verdict.relative}: {verdict.foreign[name]:,} of {verdict.rows:,} texts of {name} are "
                    f"in other scripts than {', '.join(scripts)}, more than gate.max_foreign_share, "
                    f"{max_share:.2%}; move the file to its own task, or add the script to gate.scripts"
                )
