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


def schema_differences(schema: pa.Schema) -> list[str]:
    """Return one sentence for each difference between `schema` and the contract.

    Nullability is not compared: parquet writers rarely keep it, and the not-null checks look at the values.
    """
    differences = [f"column {c.name} is missing" for c in COLUMNS if c.name not in schema.names]
    known = {c.name: c for c in COLUMNS}
    for field in schema:
        if field.name not in known:
            differences.append(f"column {field.name} is not in the contract")
        elif field.type != known[field.name].type:
            differences.append(
                f"column {field.name} is {field.type}, the contract says {known[field.name].type}"
            )
    if not differences and schema.names != ROW_SCHEMA.names:
        differences.append(f"columns are in the order {schema.names}, the contract says {ROW_SCHEMA.names}")
    return differences
