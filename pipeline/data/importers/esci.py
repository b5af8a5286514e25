"""Amazon Shopping Queries (ESCI), original two-file layout, as tasks esci_us, esci_es and esci_jp."""

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
from pipeline.data.importers.records import Line, check_file, read_parquet
from pipeline.data.importers.rejects import BadLineError
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.writer import OnRows, StagedRows


class EsciSource(PathSource):
    """A folder in the two-file layout of the Amazon Shopping Queries data."""

    kind: Literal["esci"]


ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"

ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"

ESCI_LOCALES = ("us", "es", "jp")

ESCI_LABELS = ("I", "C", "S", "E")  # irrelevant, complement, substitute, exact: from worst to best

_EXAMPLE_COLUMNS = ("example_id", "query", "product_id", "product_locale", "esci_label")

_OPTIONAL_COLUMNS = ("split", "small_version", "large_version")  # samples of the data leave them out

_PRODUCT_COLUMNS = (
    "product_id",
    "product_locale",
    "product_title",
    "product_description",
    "product_bullet_point",
    "product_brand",
    "product_color",
)


def import_esci(source_dir: Path, out_dir: Path, on_rows: OnRows | None = None) -> ImportCounts:
    """The judgements of all locales as rows; labels I, C, S, E are 0 to 3, `official_split` and `subset` are
    kept where the source has them.

    All tasks are published or none. Products wait in a file beside `out_dir` that is as large as their texts.
    ConfigError: folder or file absent. DamagedInputError: a file is not whole parquet. DataRefusedError: a
    column is missing, or as `import_lines`.
    """
    examples, products = (check_file(source_dir / name) for name in (ESCI_EXAMPLES, ESCI_PRODUCTS))
    with StagedRows(out_dir, on_rows=on_rows) as staged, Lookup(staged.dir / "products") as lookup:
        read_side_file(
            products,
            "esci-products",
            read_parquet(products, _PRODUCT_COLUMNS),
            _build_product,
            lookup,
            staged,
        )

        def build_row(line: Line) -> tuple[str, Row]:
            return _build_row(line, lookup)

        source = Source(
            "esci",
            examples,
            lambda: read_parquet(examples, _EXAMPLE_COLUMNS, _OPTIONAL_COLUMNS),
            build_row,
            ("esci-products",),
        )
        return import_lines(source, staged)


def _build_product(line: Line) -> tuple[str, str | None, str | None]:
    """Key, title and description of a product."""
    product_id, locale, title, description, bullets, brand, colour = (
        line.fields[name] for name in _PRODUCT_COLUMNS
    )
    return (
        f"{required(locale, 'unknown_market')} {required(product_id, 'empty_id')}",
        build_title(title),
        build_description((brand, colour), (description, bullets)),
    )


def _build_row(line: Line, products: Lookup) -> tuple[str, Row]:
    fields = line.fields
    locale = fields["product_locale"]
    if locale not in ESCI_LOCALES:
        raise BadLineError("unknown_market")
    row: Row = {
        "label": label_index(fields["esci_label"], ESCI_LABELS),
        "row_id": f"esci-{locale}-{required(fields['example_id'], 'empty_id')}",
        "query": required(clean_line(fields["query"]), "empty_query"),
        "market": locale,
        "official_split": clean_line(fields.get("split")),
        "subset": _subset(fields.get("small_version"), fields.get("large_version")),
    }
    product = products.get(f"{locale} {fields['product_id']}") if fields["product_id"] else None
    if product is None:
        raise BadLineError("unknown_product")
    return f"esci_{locale}", row | {
        "ad_title": required(product[0], "empty_title"),
        "ad_description": product[1],
    }


def _subset(small: str | None, large: str | None) -> str | None:
    """The smallest version that holds a judgement: all of the small one are in the large one too."""
    return "small" if small == "1" else "large" if large == "1" else None


IMPORTERS.register(
    "esci",
    Importer(EsciSource, lambda source, target: import_esci(source.path, target.judged_dir, target.on_rows)),
)
