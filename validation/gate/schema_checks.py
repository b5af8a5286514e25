"""Checks of the columns of files that break the contract, for their pages in Data Docs.

`schema_differences` refuses such a file before a row is read. Great Expectations sees a frame with one row:
the Arrow type of each column. Other orders, types that convert and absent nullable columns pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.schema import COLUMNS, ROW_SCHEMA
from validation.gate.expectations import Check, build_check_suite
from validation.gate.file_checks import ColumnType

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd


def build_schema_suite(name: str, found: Sequence[ColumnType]) -> gx.ExpectationSuite:
    """Build the suite of a frame of `build_schema_frame`.

    Args:
        name: Name of the suite.
        found: Columns of the file.
    """
    names = [column.name for column in found]
    known = [column for column in dict.fromkeys(names) if column in ROW_SCHEMA.names]
    missing = [c.name for c in COLUMNS if not c.nullable and c.name not in known]
    columns = Check(
        "columns",
        "",
        f"hold the columns of the contract, each once, and no other: {', '.join(ROW_SCHEMA.names)}",
        "ExpectTableColumnsToMatchOrderedList",
        {"column_list": [*known, *missing]},
    )
    accepted = {column.name: column.type for column in found if column.is_accepted}
    types = [
        Check(
            f"{c.name}_type",
            c.name,
            f"be of type {c.type}, or convert to it",
            "ExpectColumnValuesToBeInSet",
            {"value_set": sorted({str(c.type), accepted.get(c.name, str(c.type))})},
        )
        for c in COLUMNS
        if names.count(c.name) == 1
    ]
    return build_check_suite(name, (columns, *types))


def build_schema_frame(found: Sequence[ColumnType]) -> pd.DataFrame:
    """Build a frame with one row: the Arrow type of each column of a file."""
    import pandas as pd

    return pd.DataFrame([[column.type for column in found]], columns=[column.name for column in found])
