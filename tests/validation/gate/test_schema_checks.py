"""Pages about files that break the contract show its differences and nothing else."""

import pyarrow as pa
import pytest

from pipeline.schema import COLUMNS, schema_differences
from validation.gate.data_docs import DataDocs
from validation.gate.file_checks import column_types
from validation.gate.schema_checks import build_schema_frame, build_schema_suite

REQUIRED = [pa.field(c.name, c.type) for c in COLUMNS if not c.nullable]
EXTRA = pa.field("score", pa.float64())
POLARS = [pa.field(f.name, pa.large_string() if f.type == pa.string() else pa.int64()) for f in REQUIRED]
NESTED = pa.list_(pa.int8())


@pytest.mark.parametrize(
    ("fields", "failing"),
    [
        (POLARS[::-1], set()),
        ([*POLARS[::-1], EXTRA], {"columns"}),
        (REQUIRED[1:], {"columns"}),
        ([*REQUIRED, REQUIRED[0]], {"columns"}),
        (
            [*REQUIRED[1:], pa.field("row_id", NESTED), pa.field("label", pa.string())],
            {"row_id_type", "label_type"},
        ),
    ],
    ids=["accepted", "extra", "missing", "twice", "types"],
)
def test_only_differences_from_the_contract_fail(great_expectations, tmp_path, fields, failing):
    schema = pa.schema(fields)
    found = column_types(schema)
    frame = build_schema_frame(found)
    passed = DataDocs(tmp_path).run_suite(build_schema_suite("schema", found), frame, "schema")
    assert {name for name, is_passed in passed.items() if not is_passed} == failing
    assert bool(failing) == bool(schema_differences(schema))
    assert frame.iloc[0].tolist() == [str(field.type) for field in fields], (
        "types are shown as Arrow names them"
    )
