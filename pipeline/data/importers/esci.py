"""Import Amazon Shopping Queries (ESCI) in their two-file layout as tasks esci_us, esci_es and esci_jp."""

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
from pipeline.data.importers.records import SourceRecord, check_file, read_parquet
from pipeline.data.importers.rejects import BadRecordError
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.writer import StagedRows
from pipeline.runtime.progress import ProgressBar


class EsciSource(PathSource):
    """Folder of the Amazon Shopping Queries data in their two-file layout."""

    kind: Literal["esci"]


ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"

ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"

ESCI_LOCALES = ("us", "es", "jp")

ESCI_LABELS = ("I", "C", "S", "E")  # irrelevant, complement, substitute, exact: worst first

_EXAMPLE_COLUMNS = ("example_id", "query", "product_id", "product_locale", "esci_label")

_OPTIONAL_COLUMNS = ("split", "small_version", "large_version")  # samples of the data do not have them

_PRODUCT_COLUMNS = (
    "product_id",
    "product_locale",
    "product_title",
    "product_description",
    "product_bullet_point",
    "product_brand",
    "product_color",
)


def import_esci(source_dir: Path, out_dir: Path | str, bar: ProgressBar | None = None) -> ImportCounts:
    """Publish the examples of all locales as rows; labels I, C, S, E are 0 to 3.

    `official_split` and `subset` are set if the source has them. All tasks are published or none. A temporary
    file beside `out_dir` holds the texts of all products.

    Raises:
        ConfigError: The folder or a file does not exist.
        DamagedInputError: A file is not whole parquet.
        DataRefusedError: A column is missing, or see `import_records`.
    """
    examples, products = (check_file(source_dir / name) for name in (ESCI_EXAMPLES, ESCI_PRODUCTS))
    with StagedRows(out_dir, bar=bar) as staged, Lookup(staged.dir / "products") as lookup:
        fill_lookup(
            products,
            "esci-products",
            read_parquet(products, _PRODUCT_COLUMNS),
            _build_product,
            lookup,
            staged,
        )

        def build_row(record: SourceRecord) -> tuple[str, Row]:
            return _build_row(record, lookup)

        source = RecordSource(
            "esci",
            examples,
            lambda: read_parquet(examples, _EXAMPLE_COLUMNS, _OPTIONAL_COLUMNS),
            build_row,
            ("esci-products",),
            [f"esci_{locale}" for locale in ESCI_LOCALES],
        )
        return import_records(source, staged)


def _build_product(record: SourceRecord) -> tuple[str, str | None, str | None]:
    """Return key, title and description of a product."""
    product_id, locale, title, description, bullets, brand, colour = (
        record.fields[name] for name in _PRODUCT_COLUMNS
    )
    return (
        f"{require_text(locale, 'unknown_market')} {require_text(product_id, 'empty_id')}",
        build_title(title),
        build_description((brand, colour), (description, bullets)),
    )


def _build_row(record: SourceRecord, products: Lookup) -> tuple[str, Row]:
    fields = record.fields
    locale = fields["product_locale"]
    if locale not in ESCI_LOCALES:
        raise BadRecordError("unknown_market")
    row: Row = {
        "label": label_index(fields["esci_label"], ESCI_LABELS),
        "row_id": f"esci-{locale}-{require_text(fields['example_id'], 'empty_id')}",
        "query": require_text(clean_line(fields["query"]), "empty_query"),
        "market": locale,
        "official_split": clean_line(fields.get("split")),
        "subset": _subset(fields.get("small_version"), fields.get("large_version")),
    }
    product = products.get(f"{locale} {fields['product_id']}") if fields["product_id"] else None
    if product is None:
        raise BadRecordError("unknown_product")
    return f"esci_{locale}", row | {
        "ad_title": require_text(product[0], "empty_title"),
        "ad_description": product[1],
    }


def _subset(small: str | None, large: str | None) -> str | None:
    """Return the smallest version that holds an example: the large version includes the small one."""
    if small == "1":
        return "small"
    return "large" if large == "1" else None


IMPORTERS.register(
    "esci",
    Importer(EsciSource, lambda source, context: import_esci(source.path, context.judged_dir, context.bar)),
)
