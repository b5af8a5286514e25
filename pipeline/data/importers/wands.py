"""WANDS, Wayfair's annotated product searches, as task wands: query.csv, product.csv and label.csv,
tab-separated as published.
"""

from pathlib import Path
from typing import Literal

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
from pipeline.data.importers.importer import (
    ImportCounts,
    Row,
    Source,
    import_lines,
    label_index,
    read_side_file,
    required,
)
from pipeline.data.importers.lookup_table import Lookup
from pipeline.data.importers.records import Line, check_file
from pipeline.data.importers.rejects import BadLineError
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.importers.text_files import read_separated
from pipeline.data.writer import OnRows, StagedRows


class WandsSource(PathSource):
    """The folder of WANDS with query.csv, product.csv and label.csv."""

    kind: Literal["wands"]


WANDS_TASK = "wands"

WANDS_LABELS = ("Irrelevant", "Partial", "Exact")  # from worst to best

WANDS_MARKET = "en"  # the source names no country; queries and products are English

_QUERY_COLUMNS = ("query_id", "query")

_PRODUCT_COLUMNS = ("product_id", "product_name", "product_class", "product_description", "product_features")

_LABEL_COLUMNS = ("id", "query_id", "product_id", "label")


def import_wands(source_dir: Path, out_dir: Path, on_rows: OnRows | None = None) -> ImportCounts:
    """The judgements as rows; labels Irrelevant, Partial, Exact are 0 to 2. A description opens with the
    product's class.

    Queries and products wait in a file beside `out_dir` that is as large as their texts. ConfigError: folder
    or file absent. DamagedInputError: a file is empty or its header is no text. DataRefusedError: a column is
    missing, or as `import_lines`.
    """
    queries, products, labels = (
        check_file(source_dir / f"{name}.csv") for name in ("query", "product", "label")
    )
    with StagedRows(out_dir, on_rows=on_rows) as staged, Lookup(staged.dir / "texts") as lookup:
        read_side_file(
            queries,
            "wands-query",
            read_separated(queries, _QUERY_COLUMNS, "\t"),
            _build_query,
            lookup,
            staged,
        )
        read_side_file(
            products,
            "wands-product",
            read_separated(products, _PRODUCT_COLUMNS, "\t"),
            _build_product,
            lookup,
            staged,
        )

        def build_row(line: Line) -> tuple[str, Row]:
            return _build_row(line, lookup)

        source = Source(
            "wands",
            labels,
            lambda: read_separated(labels, _LABEL_COLUMNS, "\t"),
            build_row,
            ("wands-query", "wands-product"),
        )
        return import_lines(source, staged)


def _build_query(line: Line) -> tuple[str, str | None, str | None]:
    return (
        f"query {required(clean_line(line.fields['query_id']), 'empty_id')}",
        clean_line(line.fields["query"]),
        None,
    )


def _build_product(line: Line) -> tuple[str, str | None, str | None]:
    product_id, name, product_class, description, features = (
        line.fields[column] for column in _PRODUCT_COLUMNS
    )
    key = f"product {required(clean_line(product_id), 'empty_id')}"
    return key, build_title(name), build_description((product_class,), (description, features))


def _build_row(line: Line, texts: Lookup) -> tuple[str, Row]:
    label_id, query_id, product_id, label = (clean_line(line.fields[column]) for column in _LABEL_COLUMNS)
    row: Row = {
        "row_id": f"wands-{required(label_id, 'empty_id')}",
        "market": WANDS_MARKET,
        "label": label_index(label, WANDS_LABELS),
    }
    query, product = texts.get(f"query {query_id}"), texts.get(f"product {product_id}")
    if query is None:
        raise BadLineError("unknown_query")
    if product is None:
        raise BadLineError("unknown_product")
    found = {
        "query": required(query[0], "empty_query"),
        "ad_title": required(product[0], "empty_title"),
        "ad_description": product[1],
    }
    return WANDS_TASK, row | found


IMPORTERS.register(
    "wands",
    Importer(
        WandsSource, lambda source, target: import_wands(source.path, target.judged_dir, target.on_rows)
    ),
)
