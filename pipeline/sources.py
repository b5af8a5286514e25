"""Importers: public judged data sets as contract rows, one file task=<name>/part-0.parquet a task, sorted by query, then row_id.

A judgement that cannot become a row is counted in `ImportCounts.skipped` under one reason: rows and skipped add up to the source.
Judgements of a query and product judged before are kept, and so are texts longer than the contract allows: the validation gate
judges these. What becomes of the texts stands in pipeline/cleaning.py.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cleaning import build_description, build_title, clean_line, decode_text
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.writer import publish_tasks

ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"
ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"
ESCI_LOCALES = ("us", "es", "jp")
ESCI_LABELS = ("I", "C", "S", "E")  # irrelevant, complement, substitute, exact: from worst to best
CHORUS_TASK = "electronics"
CHORUS_LABELS = ("0", "1", "2", "3")
CHORUS_MARKET = "en"  # the source names no country; queries and products are English

_EXAMPLE_COLUMNS = ("example_id", "query", "product_id", "product_locale", "esci_label")
_PRODUCT_COLUMNS = (
    "product_id", "product_locale",
    "product_title", "product_description", "product_bullet_point", "product_brand", "product_color",
)  # fmt: skip
_CHORUS_COLUMNS = ("query", "docid", "final_rating", "title", "short_description", "supplier")
_TEXT = pa.large_string()  # a pass may hold more than the 2 GiB of text that pa.string can address
_JUDGEMENTS = pa.schema([("row_id", _TEXT), ("query", _TEXT), ("product", _TEXT), ("market", _TEXT), ("label", pa.int32())])
_PRODUCTS = pa.schema([("product_id", _TEXT), ("ad_title", _TEXT), ("ad_description", _TEXT)])

_READ_ROWS = 16_384  # rows decoded at once: about 25 MB of product text
_PASS_ROWS = 131_072  # judgements joined in one pass over the products; the 2.6 M of the original take 22 passes of a few seconds

_SKIP_REASONS = {  # column that is null when the reason holds, first hit counts
    "market": "locale is unknown",
    "label": "label is unknown",
    "row_id": "id is missing",
    "query": "query is empty",
    "product": "product is absent",
    "ad_title": "title is empty",
}


@dataclass(frozen=True)
class ImportCounts:
    """What an import did with every judgement of its source."""

    rows: Mapping[str, int]  # rows published, by task
    skipped: Mapping[str, int]  # judgements left out, by reason; reasons that held for none are absent


def import_esci(source_dir: Path, out_dir: Path) -> ImportCounts:
    """Amazon Shopping Queries, original two-file layout, as tasks esci_us, esci_es and esci_jp; labels I, C, S, E are 0 to 3.

    Memory holds the queries and ids of the source and the text of one pass: 1.6 GB at the size of the original (2.6 M judgements,
    1.8 M products, about 5 minutes on one core). All tasks are published or none.
    ConfigError: folder or file absent. DamagedInputError: a file is not whole parquet. DataRefusedError: a column is missing,
    an example_id or a product repeats, or no judgement can be used.
    """
    examples_path, products_path = (_check_file(source_dir / name) for name in (ESCI_EXAMPLES, ESCI_PRODUCTS))
    skipped: Counter[str] = Counter()
    judgements = _read_judgements(examples_path, skipped)
    tables = {f"esci_{locale}": _join_products(judgements, locale, products_path, skipped) for locale in ESCI_LOCALES}
    return _check_counts(source_dir, publish_tasks(tables, out_dir), skipped)


def import_chorus(file: Path, out_dir: Path) -> ImportCounts:
    """The Chorus electronics ratings (query_product_ratings.tsv) as task electronics; final_rating 0 to 3 is the label.

    ConfigError: file absent. DamagedInputError: cut off, not UTF-8, or lines of unequal length. DataRefusedError: a column is
    missing, or no judgement can be used.
    """
    skipped: Counter[str] = Counter()
    table = _chorus_table(_read_tsv(_check_file(file), _CHORUS_COLUMNS))
    rows = _sorted(_skip_unusable(table, skipped).drop_columns("product"))
    return _check_counts(file, publish_tasks({CHORUS_TASK: (rows,)}, out_dir), skipped)


# --- ESCI


def _read_judgements(path: Path, skipped: Counter[str]) -> pa.Table:
    """The usable judgements of all locales: row_id, query, product, market, label. DataRefusedError if an example_id repeats."""
    parts = [_JUDGEMENTS.empty_table()]
    for batch in _read_batches(path, _EXAMPLE_COLUMNS):
        locale, prefix, separator = batch["product_locale"], pa.scalar("esci", _TEXT), pa.scalar("-", _TEXT)
        row_id = pc.binary_join_element_wise(prefix, locale, batch["example_id"], separator)
        query = pa.chunked_array([[clean_line(text) for text in _decode_column(batch, "query", path)]], _TEXT)
        market = pc.if_else(pc.is_in(locale, pa.array(ESCI_LOCALES, _TEXT)), locale, pa.scalar(None, _TEXT))
        label = pc.index_in(batch["esci_label"], pa.array(ESCI_LABELS, _TEXT))
        table = pa.table([row_id, query, batch["product_id"], market, label], schema=_JUDGEMENTS)
        parts.append(_skip_unusable(table, skipped))
    judgements = pa.concat_tables(parts)
    _check_unique(judgements["row_id"], f"example of {path}")
    return judgements


def _join_products(judgements: pa.Table, locale: str, products_path: Path, skipped: Counter[str]) -> Iterator[pa.Table]:
    """The sorted rows of one locale, pass by pass: each pass scans the products and keeps those it needs."""
    chosen = _sorted(judgements.filter(pc.equal(judgements["market"], locale)))
    for start in range(0, chosen.num_rows, _PASS_ROWS):
        part = chosen.slice(start, _PASS_ROWS)
        products = _read_products(products_path, locale, pc.unique(part["product"]))
        found = pc.index_in(part["product"], products["product_id"], skip_nulls=True)
        part = part.set_column(part.column_names.index("product"), "product", found)
        for name in ("ad_title", "ad_description"):
            part = part.append_column(name, products[name].take(found))
        yield _skip_unusable(part, skipped).drop_columns("product")


def _read_products(path: Path, locale: str, product_ids: pa.Array) -> pa.Table:
    """product_id, ad_title and ad_description of the products asked for. DataRefusedError if one is listed twice."""
    parts = [_PRODUCTS.empty_table()]
    for batch in _read_batches(path, _PRODUCT_COLUMNS):
        wanted = pc.is_in(batch["product_id"], product_ids, skip_nulls=True)
        batch = batch.filter(pc.and_(wanted, pc.equal(batch["product_locale"], locale)))
        title, description, bullets, brand, colour = (_decode_column(batch, name, path) for name in _PRODUCT_COLUMNS[2:])
        titles = [build_title(text) for text in title]
        facts, bodies = zip(brand, colour, strict=True), zip(description, bullets, strict=True)
        parts.append(pa.table([batch["product_id"], titles, list(map(build_description, facts, bodies))], schema=_PRODUCTS))
    products = pa.concat_tables(parts).combine_chunks()  # taking from one chunk is ten times faster than from many
    _check_unique(products["product_id"], f"{locale} product of {path}")
    return products


def _read_batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """The named columns of a parquet file as text, a bounded number of rows at a time."""
    try:
        # Buffered and not read ahead: the original keeps up to a million rows in one row group.
        with pq.ParquetFile(path, page_checksum_verification=True, buffer_size=2**20, pre_buffer=False) as file:
            _check_columns(file.schema_arrow.names, columns, path)
            for batch in file.iter_batches(_READ_ROWS, columns=list(columns)):
                yield pa.table(batch).select(columns).cast(pa.schema([(name, _TEXT) for name in columns]))
    except pa.ArrowNotImplementedError as error:
        raise DataRefusedError(f"{path} has columns that are no text ({error}); import it in its original layout") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path} is not whole parquet ({error}); download it again") from error


def _decode_column(table: pa.Table, name: str, path: Path) -> list[str | None]:
    """The texts of a column. DamagedInputError if one is not UTF-8."""
    where = f"column {name} of {path}"
    return [None if raw is None else decode_text(raw, where) for raw in table[name].cast(pa.large_binary()).to_pylist()]


# --- Chorus


def _chorus_table(lines: Iterable[dict[str, str]]) -> pa.Table:
    """One row a judgement; what makes it unusable is null. A (query, docid) judged again gets the next number in its row_id."""
    num_seen: Counter[str] = Counter()
    rows = []
    for line in lines:
        product, query_hash = clean_line(line["docid"]), hashlib.blake2b(line["query"].encode(), digest_size=6).hexdigest()
        row_id = f"{CHORUS_TASK}-{product}-{query_hash}"
        num_seen[row_id] += 1
        rows.append({
            "row_id": row_id if num_seen[row_id] == 1 else f"{row_id}-{num_seen[row_id]}",
            "query": clean_line(line["query"]),
            "product": product,
            "market": CHORUS_MARKET,
            "label": CHORUS_LABELS.index(line["final_rating"]) if line["final_rating"] in CHORUS_LABELS else None,
            "ad_title": build_title(line["title"]),
            "ad_description": build_description((line["supplier"],), (line["short_description"],)),
        })  # fmt: skip
    schema = pa.unify_schemas([_JUDGEMENTS, _PRODUCTS.remove(0)])
    return pa.Table.from_pylist(rows, schema=schema)


def _read_tsv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The lines of a tab-separated file with a header, quoted as by csv writers."""
    text = decode_text(path.read_bytes(), str(path)).removeprefix("\ufeff")
    if not text.endswith("\n"):  # the last column is long and unused: only this tells a cut in it
        raise DamagedInputError(f"{path} ends in the middle of a line; download it again, or end its last line if it is whole")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    try:
        header = next(lines)
        _check_columns(header, columns, path)
        for line in lines:
            if line and len(line) != len(header):
                where = f"{path} line {lines.line_num}"
                raise DamagedInputError(f"{where} has {len(line)} fields, its header {len(header)}; download it again")
            if line:
                yield dict(zip(header, line, strict=True))
    except csv.Error as error:
        raise DamagedInputError(f"{path} line {lines.line_num} is not tab-separated text ({error}); download it again") from error


# --- Checks


def _skip_unusable(table: pa.Table, skipped: Counter[str]) -> pa.Table:
    """The rows without a reason to skip them; the others are counted."""
    for name, reason in _SKIP_REASONS.items():
        if name in table.column_names and (num_null := table[name].null_count):
            skipped[reason] += num_null
            table = table.filter(pc.is_valid(table[name]))
    return table


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([("query", "ascending"), ("row_id", "ascending")])


def _check_file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; point the import at the data set in its original layout")
    return path


def _check_columns(found: list[str], wanted: tuple[str, ...], path: Path) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        columns = f"has no column {', '.join(missing)}, only {', '.join(found)}"
        raise DataRefusedError(f"{path} {columns}; import it in its original layout")


def _check_unique(ids: pa.ChunkedArray, what: str) -> None:
    """DataRefusedError naming the first id that repeats."""
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        times = f"is listed {repeated['counts']} times"
        raise DataRefusedError(f"{what} {repeated['values']} {times}; keep one of them and import again")


def _check_counts(source: Path, rows: Mapping[str, int], skipped: Counter[str]) -> ImportCounts:
    """The counts of an import. DataRefusedError if it gave no row."""
    reasons = dict(sorted(skipped.items()))
    if not any(rows.values()):
        raise DataRefusedError(f"{source} gave no row; judgements skipped, by reason: {reasons or 'it holds none'}")
    return ImportCounts(rows, reasons)
