"""The row contract: the only definition of a query-ad pair, labeled or not.

Data checks and readers are generated from it.
"""

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = "2"  # version 2 has official_split and subset


@dataclass(frozen=True)
class Column:
    """One column of a row: its Arrow type, nullability, bounds and meaning."""

    name: str
    type: pa.DataType
    nullable: bool
    doc: str
    max_chars: int | None = None  # strings: the longest accepted text
    minimum: float | None = None  # numbers: the smallest accepted value
    maximum: float | None = None  # numbers: the largest accepted value


MAX_LABELS = 16  # longest accepted label scale

COLUMNS: tuple[Column, ...] = (
    Column("row_id", pa.string(), False, "unique over all tasks and partitions", max_chars=256),
    Column("query", pa.string(), False, "text of the search", max_chars=4_096),
    Column("ad_title", pa.string(), False, "headline of the ad or product", max_chars=16_384),
    Column("ad_description", pa.string(), True, "body text", max_chars=1_048_576),
    Column("ad_keyword", pa.string(), True, "keyword the advertiser bid on", max_chars=4_096),
    Column(
        "landing_page", pa.string(), True, "text or address of the page behind the ad", max_chars=1_048_576
    ),
    Column("market", pa.string(), False, "country or region, such as us", max_chars=63),
    Column(
        "label",
        pa.int32(),
        True,
        "index into the task's label names, worst first; null means to be scored",
        minimum=0,
        maximum=MAX_LABELS - 1,
    ),
    Column(
        "weight",
        pa.float32(),
        True,
        "weight of the row in the loss; null means 1",
        minimum=0.0,
        maximum=1_000.0,
    ),
    Column(
        "official_split",
        pa.string(),
        True,
        "the source's own split such as train, for comparison; this project splits by query",
        max_chars=63,
    ),
    Column("subset", pa.string(), True, "part of the source such as small or large", max_chars=63),
)

ROW_SCHEMA = pa.schema([pa.field(c.name, c.type, c.nullable) for c in COLUMNS])

TEXT_COLUMNS: tuple[str, ...] = ("query", "ad_title", "ad_description", "ad_keyword", "landing_page")
AD_COLUMNS: tuple[str, ...] = TEXT_COLUMNS[1:]


TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)

_NUMBER_TYPES = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


def schema_differences(schema: pa.Schema) -> list[str]:
    """Return one sentence for each difference between `schema` and the contract that no conversion removes.

    Order, nullability and absent nullable columns are no differences: parquet writers rarely keep the first
    two, and an absent column is null. pipeline/data/row_conversion.py converts the types.
    """
    differences = [
        f"column {c.name} is missing" for c in COLUMNS if c.name not in schema.names and not c.nullable
    ]
    known = {c.name: c for c in COLUMNS}
    for name in dict.fromkeys(schema.names):
        if name not in known:
            differences.append(f"column {name} is not in the contract; remove it")
        elif schema.names.count(name) > 1:
            differences.append(f"column {name} occurs {schema.names.count(name)} times; keep one")
        elif not is_convertible(schema.field(name).type, known[name]):
            kind = _value_type(schema.field(name).type)
            differences.append(
                f"column {name} is {kind}, the contract says {known[name].type}; cast it in the writer"
            )
    return differences


def is_convertible(kind: pa.DataType, column: Column) -> bool:
    """Return True if values of an Arrow type can be values of a column; a single value may still not fit.

    - Texts of every layout, and whole numbers, are text.
    - Numbers with an integral value, and booleans, are labels.
    - Numbers are weights, rounded to float32.
    - A column of type null is null everywhere.
    """
    kind = _value_type(kind)
    if pa.types.is_null(kind) or kind == column.type:
        return True
    if column.type == pa.string():
        is_whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
        return is_whole or any(test(kind) for test in TEXT_TYPES)
    is_flag = pa.types.is_boolean(kind) and pa.types.is_integer(column.type)
    return is_flag or any(test(kind) for test in _NUMBER_TYPES)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
