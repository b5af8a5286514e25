"""Ratio of two models' speeds."""

import pyarrow as pa
import pytest

from pipeline.inference.speed_trial import SPEED_SCHEMA, TIMED_ROWS, join_timed_rows, speed_ratio
from pipeline.schema import ROW_SCHEMA
from tests.support.planted import planted_rows


def test_ratio_is_of_the_medians() -> None:
    table = pa.table({"model_s": [9.0, 2.0, 2.0], "other_s": [3.0, 0.1, 3.0]}, schema=SPEED_SCHEMA)
    assert speed_ratio(table) == pytest.approx(1.5)


def test_each_task_has_its_share_of_the_timed_rows() -> None:
    tables = {
        name: pa.Table.from_pylist(planted_rows(name, num_rows, 1), ROW_SCHEMA)
        for name, num_rows in (("two", TIMED_ROWS), ("three", 5))
    }
    rows = join_timed_rows(tables)
    counts = rows.column("task").value_counts().to_pylist()
    assert {one["values"]: one["counts"] for one in counts} == {"two": TIMED_ROWS // 2, "three": 5}
