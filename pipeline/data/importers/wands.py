"""Import WANDS, annotated product searches of Wayfair, as task wands.

The published files query.csv, product.csv and label.csv are tab-separated.
"""

from pathlib import Path
from typing import Literal

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
from pipeline.data.importers.importer import (
    ImportCounts,
    RecordSource,
    Row,
    fill_lookup,
    import_records,
    label_index,
    require_text,
)
from pipeline.data.importers.lookup_table import Lookup
from pipeline.data.importers.records import SourceRecord, check_file
from pipeline.data.importers.rejects import BadRecordError
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.importers.text_files import TSV, read_delimited
from pipeline.data.writer import StagedRows
from pipeline.runtime.progress import ProgressBar


class WandsSource(PathSource):
    """Folder of WANDS with query.csv, product.csv and label.csv."""

    kind: Literal["wands"]


WANDS_TASK = "wands"

WANDS_LABELS = ("Irrelevant", "Partial", "Exact")  # worst first

WANDS_MARKET = "en"  # the source has no country; its texts are English

_QUERY_COLUMNS = ("query_id", "query")

_PRODUCT_COLUMNS = ("product_id", "product_name", "product_class", "product_description", "product_features")

_LABEL_COLUMNS = ("id", "query_id", "product_id", "label")


def import_wands(source_dir: Path, out_dir: Path | str, bar: ProgressBar | None = None) -> ImportCounts:
    """Publish the labels as rows; Irrelevant, Partial, Exact are 0 to 2.

    A description begins with the class of the product. A temporary file beside `out_dir` holds the texts of
    all queries and products.

    Raises:
        ConfigError: The folder or a file does not exist.
        DamagedInputError: A file is empty, or its header is not text.
        DataRefusedError: A column is missing, or see `import_records`.
    """
    queries, products, labels = (
        check_file(source_dir / f"{name}.csv") for name in ("query", "product", "label")
    )
    with StagedRows(out_dir, bar=bar) as staged, Lookup(staged.dir / "texts") as lookup:
        fill_lookup(
            queries,
            "wands-query",
            read_delimited(queries, _QUERY_COLUMNS, TSV),
            _build_query,
            lookup,
            staged,
        )
        fill_lookup(
            products,
            "wands-product",
            read_delimited(products, _PRODUCT_COLUMNS, TSV),
            _build_product,
            lookup,
            staged,
        )

        def build_row(record: SourceRecord) -> tuple[str, Row]:
            return _build_row(record, lookup)

        source = RecordSource(
            "wands",
            labels,
            lambda: read_delimited(labels, _LABEL_COLUMNS, TSV),
            build_row,
            ("wands-query", "wands-product"),
        )
        return import_records(source, staged)


def _build_query(record: SourceRecord) -> tuple[str, str | None, None]:
    """Return key and text of a query."""
    query_id = require_text(clean_line(record.fields["query_id"]), "empty_id")
    return f"query {query_id}", clean_line(record.fields["query"]), None


def _build_product(record: SourceRecord) -> tuple[str, str | None, str | None]:
    """Return key, title and description of a product."""
    product_id, name, product_class, description, features = (
        record.fields[column] for column in _PRODUCT_COLUMNS
    )
    key = f"product {require_text(clean_line(product_id), 'empty_id')}"
    return key, build_title(name), build_description((product_class,), (description, features))


def _build_row(record: SourceRecord, texts: Lookup) -> tuple[str, Row]:
    label_id, query_id, product_id, label = (clean_line(record.fields[column]) for column in _LABEL_COLUMNS)
    row: Row = {
        "row_id": f"wands-{require_text(label_id, 'empty_id')}",
        "market": WANDS_MARKET,
        "label": label_index(label, WANDS_LABELS),
    }
    query, product = texts.get(f"query {query_id}"), texts.get(f"product {product_id}")
    if query is None:
        raise BadRecordError("unknown_query")
    if product is None:
        raise BadRecordError("unknown_product")
    return WANDS_TASK, row | {
        "query": require_text(query[0], "empty_query"),
        "ad_title": require_text(product[0], "empty_title"),
        "ad_description": product[1],
    }


IMPORTERS.register(
    "wands",
    Importer(WandsSource, lambda source, context: import_wands(source.path, context.judged_dir, context.bar)),
)
