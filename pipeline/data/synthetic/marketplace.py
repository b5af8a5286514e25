"""Synthetic ads marketplace: labeled query-ad pairs for four tasks, with known true grades and no download.

A query asks for a product type with some attribute values. An ad offers a product, an accessory, or a thing
that only has the product's name in its own. The grade follows from the products and not from the words, so
shared words alone do not decide it: names have synonyms, accessories repeat the query, a wrong brand differs
in one word. Labels are the true grades with noise at a known rate, so the best possible metric is known too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.staging import StagingFolder
from pipeline.data.synthetic.products import (
    DECOYS,
    QUERY_FILLERS,
    Product,
    Query,
    Wording,
    attribute_values,
    build_page,
    build_phrase,
    build_price,
    build_query,
    build_wording,
    pad_text,
    product_types,
    siblings,
)
from pipeline.data.writer import write_partition
from pipeline.schema import ROW_SCHEMA, TEXT_COLUMNS
from pipeline.storage.filesystem import write_bytes

NOISE_RATE = 0.08  # share of labels that differ from the true grade, by any other level

ADS_PER_QUERY = 5

UNLABELLED_PARTITIONS = 2

_UNLABELLED_FROM = 10**9  # first number of the queries of unlabelled rows: other numbers, other queries

_TRUE_GRADES_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), False),
        pa.field("task", pa.string(), False),
        pa.field("label", pa.int32(), False),
    ]
)

_ESCI = ("irrelevant", "complement", "substitute", "exact")

_IRRELEVANT, _COMPLEMENT, _SUBSTITUTE, _EXACT = range(4)


@dataclass(frozen=True)
class SampleTask:
    """Task of the marketplace."""

    name: str
    labels: tuple[str, ...]  # worst first
    relevant_from: int  # index of the first relevant label
    ad_columns: tuple[str, ...]  # columns of the ad that decide the grade
    market: str = "us"


# A keyword is relevant only if it means the same as the query. A title or product is relevant also if it is a
# substitute, and so is a page with such a product or a list of them.
TASKS: tuple[SampleTask, ...] = (
    SampleTask("query-keyword", ("irrelevant", "relevant"), 1, ("ad_keyword",)),
    SampleTask("query-title", _ESCI, 2, ("ad_title",)),
    SampleTask(
        "query-landing-page", ("bad", "partial", "good"), 1, ("ad_title", "ad_description", "landing_page")
    ),
    SampleTask("query-product", _ESCI, 2, ("ad_title", "ad_description"), market="gb"),
)

# Percent of ads of each kind. The kind only shapes the ad; `true_grade` decides the grade.
_KINDS: dict[str, dict[str, int]] = {
    "query-keyword": {"same": 48, "wrong_value": 9, "sibling": 5, "accessory": 18, "decoy": 13, "other": 7},
    "query-title": {"same": 24, "wrong_value": 12, "sibling": 12, "accessory": 24, "decoy": 16, "other": 12},
    "query-landing-page": {
        "same": 44,
        "wrong_value": 13,
        "sibling": 11,
        "accessory": 13,
        "decoy": 9,
        "other": 10,
    },
    "query-product": {
        "same": 24,
        "wrong_value": 12,
        "sibling": 12,
        "accessory": 24,
        "decoy": 16,
        "other": 12,
    },
}

# Probability that an ad uses the same synonym as the query, for the name of the type and for a value. It is
# lower for relevant ads, so that shared words say little about the grade.
_COPY_NAME = {"same": 0.4, "wrong_value": 0.5}

_COPY_WORD = {"same": 0.6, "wrong_value": 0.7}

_COPY_ELSE = 0.9

_PAGE_KINDS = {"product": 46, "listing": 26, "sold_out": 10, "article": 10, "error": 8}


@dataclass(frozen=True)
class Marketplace:
    """Rows by task name in the row contract, and the true grades of all rows, with or without labels."""

    rows: dict[str, pa.Table]
    unlabelled: dict[str, pa.Table]
    true_grades: pa.Table  # row_id, task, label int32


def true_grade(want: Product, ad: Product) -> int:
    """Return the grade without noise: the index in irrelevant, complement, substitute, exact.

    One difference (a value or a sibling type) makes a substitute. Two differences or another audience make
    the ad irrelevant. A value that is not given fits.
    """
    if ad.decoy or want.type.group != ad.type.group:
        return _IRRELEVANT
    same_type = want.type == ad.type
    if want.accessory != ad.accessory:
        return _COMPLEMENT if same_type and not (want.accessory and ad.accessory) else _IRRELEVANT
    conflicts = [name for name, value in want.values.items() if ad.values.get(name, value) != value]
    num_differences = len(conflicts) + (not same_type)
    if "audience" in conflicts or num_differences > 1 or (want.accessory and not same_type):
        return _IRRELEVANT
    return _SUBSTITUTE if num_differences else _EXACT


def task_grade(task: SampleTask, grade: int, page_kind: str | None = None) -> int:
    """Return a grade of `true_grade` on the scale of a task.

    The kind of a page limits its grade: a product page can be good, a listing partial, all others are bad.
    """
    if task.labels == _ESCI:
        return grade
    if page_kind is None:
        return int(grade == _EXACT)
    page_limit = {"product": 2, "listing": 1}.get(page_kind, 0)
    return min(max(grade - 1, 0), page_limit)


def _build_ad(kind: str, want: Product, rng: Random) -> Product:
    """Draw an ad of a kind; of another product if the kind does not fit the wanted one."""
    if kind == "other" or (kind == "wrong_value" and not want.values):
        return _build_other(want, rng)
    values = {name: value for name, value in want.values.items() if kind != "same" or rng.random() < 0.85}
    if kind == "wrong_value":
        changed = rng.choice(sorted(values))
        values[changed] = rng.choice(
            [value for value in attribute_values(changed) if value != values[changed]]
        )
    for extra in ("brand", *want.type.attributes):
        if extra not in want.values and rng.random() < (0.4 if extra == "brand" else 0.12):
            values[extra] = rng.choice(attribute_values(extra))
    if kind == "sibling":
        return Product(rng.choice(siblings(want.type)), values, want.accessory)
    if kind == "accessory":
        return Product(want.type, values, None if want.accessory else rng.choice(want.type.accessories))
    return Product(want.type, values, want.accessory, rng.choice(DECOYS) if kind == "decoy" else None)


def _build_other(want: Product, rng: Random) -> Product:
    """Draw a product of another group, with most of the wanted values that it can have."""
    product_type = rng.choice([other for other in product_types() if other.group != want.type.group])
    values = {
        name: value
        for name, value in want.values.items()
        if name in ("brand", *product_type.attributes) and rng.random() < 0.8
    }
    if rng.random() < 0.4:
        values.setdefault("brand", rng.choice(attribute_values("brand")))
    return Product(product_type, values)


def _build_texts(
    task: SampleTask, kind: str, page_kind: str | None, ad: Product, query: Query, rng: Random
) -> dict[str, str | None]:
    """Draw the texts of a pair, by column."""
    copy_name, copy_word = _COPY_NAME.get(kind, _COPY_ELSE), _COPY_WORD.get(kind, _COPY_ELSE)
    wording = build_wording(ad, task.market, rng, query.wording, copy_name, copy_word)
    details = [build_price(ad, task.market, rng)]
    if task.name == "query-product":  # half of the values are in the description only
        moved = [name for name in wording.words if name != "brand" and rng.random() < 0.5]
        details = [*(wording.words[name] for name in moved), *details]
        wording = Wording(
            wording.name, {name: word for name, word in wording.words.items() if name not in moved}
        )
    phrase = build_phrase(ad, wording, rng)
    texts: dict[str, str | None] = {"query": query.text, "ad_title": pad_text(phrase, rng.randint(4, 5), rng)}
    if "ad_keyword" in task.ad_columns:
        texts["ad_keyword"] = (
            rng.choice(QUERY_FILLERS) if len(phrase.split()) < rng.randint(2, 6) else "{}"
        ).format(phrase.lower())
    if "ad_description" in task.ad_columns and (page_kind is None or rng.random() < 0.5):
        texts["ad_description"] = pad_text(", ".join(details), rng.randint(2, 4), rng)
    if page_kind:
        texts["landing_page"] = build_page(page_kind, ad, phrase, wording, rng)
    return texts


def _generate_pairs(task: SampleTask, seed: int, first: int) -> Iterator[tuple[dict[str, str | None], int]]:
    """Yield texts and true grade of distinct pairs without end, for the queries numbered from `first`."""
    seen = set()
    for number in itertools.count(first):
        # the tasks of a market share a quarter of the queries
        scope = task.market if number % 4 == 0 else task.name
        query = build_query(task.market, Random(f"{seed}/{scope}/{number}"))
        rng = Random(f"{seed}/{task.name}/{number}/ads")
        for kind in rng.choices(list(_KINDS[task.name]), list(_KINDS[task.name].values()), k=ADS_PER_QUERY):
            ad = _build_ad(kind, query.want, rng)
            page_kind = (
                rng.choices(list(_PAGE_KINDS), list(_PAGE_KINDS.values()))[0]
                if "landing_page" in task.ad_columns
                else None
            )
            texts = _build_texts(task, kind, page_kind, ad, query, rng)
            identity = (query.text, *(texts.get(column) for column in task.ad_columns))
            if identity not in seen:
                seen.add(identity)
                yield texts, task_grade(task, true_grade(query.want, ad), page_kind)


def _add_noise(grade: int, num_labels: int, rng: Random) -> int:
    """Return the grade, or with probability NOISE_RATE another one."""
    if rng.random() >= NOISE_RATE:
        return grade
    return rng.choice([level for level in range(num_labels) if level != grade])


def _build_table(task: SampleTask, num_rows: int, seed: int, has_labels: bool) -> tuple[pa.Table, pa.Table]:
    """Return rows in the contract, and their true grades."""
    noise = Random(f"{seed}/{task.name}/noise")
    first, prefix = (0, "") if has_labels else (_UNLABELLED_FROM, "u")
    pairs = list(itertools.islice(_generate_pairs(task, seed, first), num_rows))
    grades = [grade for _, grade in pairs]
    columns: dict[str, list[Any]] = {name: [texts.get(name) for texts, _ in pairs] for name in TEXT_COLUMNS}
    columns["row_id"] = [f"{task.name}-{prefix}{index:07d}" for index in range(num_rows)]
    columns["market"] = [task.market] * num_rows
    if has_labels:
        columns["label"] = [_add_noise(grade, len(task.labels), noise) for grade in grades]
        columns["weight"] = [1.0] * num_rows
    true_grades = {"row_id": columns["row_id"], "task": [task.name] * num_rows, "label": grades}
    rows = pa.table(
        {name: columns.get(name, [None] * num_rows) for name in ROW_SCHEMA.names}, schema=ROW_SCHEMA
    )
    return rows, pa.table(true_grades, schema=_TRUE_GRADES_SCHEMA)


def build_marketplace(num_rows_per_task: int, num_unlabelled_per_task: int, seed: int) -> Marketplace:
    """Build the marketplace of a seed.

    The same arguments give the same rows on every machine. Larger numbers only add rows.
    """
    rows, unlabelled, true_grades = {}, {}, []
    for task in TASKS:
        rows[task.name], grades = _build_table(task, num_rows_per_task, seed, has_labels=True)
        true_grades.append(grades)
    for task in TASKS:
        unlabelled[task.name], grades = _build_table(task, num_unlabelled_per_task, seed, has_labels=False)
        true_grades.append(grades)
    return Marketplace(rows, unlabelled, pa.concat_tables(true_grades))


def write_marketplace(marketplace: Marketplace, out_dir: Path, judged_dir: Path | str | None = None) -> None:
    """Publish the rows, and last truth.parquet.

    Folders are judged/ and unlabelled/, with one and UNLABELLED_PARTITIONS files per task.

    Args:
        judged_dir: Folder of the labeled rows; default: judged/ in `out_dir`.
    """
    _publish_tables(judged_dir or out_dir / "judged", marketplace.rows, 1)
    _publish_tables(out_dir / "unlabelled", marketplace.unlabelled, UNLABELLED_PARTITIONS)
    true_grades = pa.BufferOutputStream()
    pq.write_table(marketplace.true_grades, true_grades)
    write_bytes(out_dir / "truth.parquet", true_grades.getvalue().to_pybytes())


def _publish_tables(folder: Path | str, tables: Mapping[str, pa.Table], num_parts: int) -> None:
    """Publish each table in `num_parts` files, with its rows in their order."""
    with StagingFolder(folder) as staging:
        for name, table in tables.items():
            for part in range(num_parts):
                start, end = (table.num_rows * cut // num_parts for cut in (part, part + 1))
                path = staging.dir / f"task={name}" / f"part-{part}.parquet"
                write_partition(table.slice(start, end - start), path)
        staging.publish()


def average_precision_ceiling(labeled_rows: pa.Table, true_grades: pa.Table, relevant_from: int) -> float:
    """Return the average precision of the true grades on the noisy labels: no model is better except by luck.

    Raises:
        ValueError: There is no row, or a row has no label or no true grade.
    """
    from sklearn.metrics import average_precision_score

    grades = dict(zip(true_grades["row_id"].to_pylist(), true_grades["label"].to_pylist(), strict=True))
    row_ids, labels = labeled_rows["row_id"].to_pylist(), labeled_rows["label"].to_pylist()
    unfit = [
        row_id for row_id, label in zip(row_ids, labels, strict=True) if label is None or row_id not in grades
    ]
    if unfit:
        raise ValueError(f"rows without label or true grade: {', '.join(unfit[:3])}; leave them out")
    if not labels:
        raise ValueError("no row given; the ceiling needs rows with labels and true grades")
    relevant = [label >= relevant_from for label in labels]
    return float(average_precision_score(relevant, [grades[row_id] for row_id in row_ids]))
