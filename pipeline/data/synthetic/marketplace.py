"""A made-up ads marketplace with judged query-ad pairs for four tasks: real words, known truth, no download.

A query wants a product type and some values; an ad offers a type, or something sold for it, or something that
only carries its name. The grade of a pair follows from what the two share, never from the words that say it,
so shared words alone cannot earn it: names have synonyms, accessories repeat the query, a wrong brand differs
in one word. Judgements carry noise at a known rate, so the best possible score is known too.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.catalog import enter_partitions
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

NOISE_RATE = 0.08  # share of judgements that moved to another level, each other level as likely

ADS_PER_QUERY = 5

UNLABELLED_PARTITIONS = 2

_UNLABELLED_FROM = 10**9  # queries of unlabelled rows are numbered from here, so they are drawn anew

_TRUTH_SCHEMA = pa.schema(
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
    """One way of judging pairs: labels from worst to best, the first that counts as relevant, the ad's
    columns a judge sees.
    """

    name: str
    labels: tuple[str, ...]
    relevant_from: int
    ad_columns: tuple[str, ...]
    market: str = "us"


# A keyword is worth a bid only if it means what was asked. A title or product that could stand in for it
# still serves the user, and so does a page that shows such a product or a list of them.
TASKS: tuple[SampleTask, ...] = (
    SampleTask("query-keyword", ("irrelevant", "relevant"), 1, ("ad_keyword",)),
    SampleTask("query-title", _ESCI, 2, ("ad_title",)),
    SampleTask(
        "query-landing-page", ("bad", "partial", "good"), 1, ("ad_title", "ad_description", "landing_page")
    ),
    SampleTask("query-product", _ESCI, 2, ("ad_title", "ad_description"), market="gb"),
)

# How many ads of a hundred are of each kind. A kind only proposes; `relevance` judges what came out.
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

# How often an ad takes over the query's own name of the type, and its word for a value, where there are
# synonyms. Relevant ads do it less often than the others, so that shared words say little about the grade.
_COPY_NAME = {"same": 0.4, "wrong_value": 0.5}

_COPY_WORD = {"same": 0.6, "wrong_value": 0.7}

_COPY_ELSE = 0.9

_PAGE_KINDS = {"product": 46, "listing": 26, "sold_out": 10, "article": 10, "error": 8}


@dataclass(frozen=True)
class Marketplace:
    """Tables by task name in the row contract, and the grade of every row before noise, unlabelled rows
    included.
    """

    rows: dict[str, pa.Table]
    unlabelled: dict[str, pa.Table]
    truth: pa.Table  # row_id, task, label int32


def relevance(want: Product, ad: Product) -> int:
    """The noise-free grade on the scale irrelevant, complement, substitute, exact.

    One difference, a value or a sibling type, makes a substitute; two, or the wrong audience, make the ad
    irrelevant. A value left open fits.
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
    """`grade` of `relevance` on the task's own scale. A page is no better than what it shows: a product good,
    a list partial, all else bad.
    """
    if task.labels == _ESCI:
        return grade
    if page_kind is None:
        return int(grade == _EXACT)
    return min(max(grade - 1, 0), {"product": 2, "listing": 1}.get(page_kind, 0))


def _build_ad(kind: str, want: Product, rng: Random) -> Product:
    """An ad of the kind; of another product where the kind does not fit the wish."""
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
    """A product that cannot stand in for the wanted one, with most of the wanted values it can have."""
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
    """The texts of a pair, by column."""
    copy_name, copy_word = _COPY_NAME.get(kind, _COPY_ELSE), _COPY_WORD.get(kind, _COPY_ELSE)
    wording = build_wording(ad, task.market, rng, query.wording, copy_name, copy_word)
    details = [build_price(ad, task.market, rng)]
    if task.name == "query-product":  # half of the values stand in the description only
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


def _judged_ads(task: SampleTask, seed: int, first: int) -> Iterator[tuple[dict[str, str | None], int]]:
    """Texts and noise-free grade of one pair after the other, without end and without repetition, for the
    queries numbered from `first`.
    """
    seen = set()
    for number in itertools.count(first):
        # a quarter of the queries are common to the tasks of a market
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
                yield texts, task_grade(task, relevance(query.want, ad), page_kind)


def _noisy(grade: int, num_labels: int, rng: Random) -> int:
    if rng.random() >= NOISE_RATE:
        return grade
    return rng.choice([level for level in range(num_labels) if level != grade])


def _build_table(task: SampleTask, num_rows: int, seed: int, judged: bool) -> tuple[pa.Table, pa.Table]:
    """Rows in the contract, and their truth."""
    noise = Random(f"{seed}/{task.name}/noise")
    ads = list(itertools.islice(_judged_ads(task, seed, 0 if judged else _UNLABELLED_FROM), num_rows))
    grades = [grade for _, grade in ads]
    columns: dict[str, list[Any]] = {name: [texts.get(name) for texts, _ in ads] for name in TEXT_COLUMNS}
    columns["row_id"] = [f"{task.name}-{'' if judged else 'u'}{index:07d}" for index in range(num_rows)]
    columns["market"] = [task.market] * num_rows
    columns["label"] = [_noisy(grade, len(task.labels), noise) if judged else None for grade in grades]
    columns["weight"] = [1.0 if judged else None] * num_rows
    truth = {"row_id": columns["row_id"], "task": [task.name] * num_rows, "label": grades}
    rows = pa.table(
        {name: columns.get(name, [None] * num_rows) for name in ROW_SCHEMA.names}, schema=ROW_SCHEMA
    )
    return rows, pa.table(truth, schema=_TRUTH_SCHEMA)


def build_marketplace(num_rows_per_task: int, num_unlabelled_per_task: int, seed: int) -> Marketplace:
    """The marketplace of a seed: the same arguments give the same rows on every machine, and asking for more
    only adds rows.
    """
    judged = {task.name: _build_table(task, num_rows_per_task, seed, judged=True) for task in TASKS}
    unlabelled = {
        task.name: _build_table(task, num_unlabelled_per_task, seed, judged=False) for task in TASKS
    }
    truth = pa.concat_tables([truth for tables in (judged, unlabelled) for _, truth in tables.values()])
    rows, to_score = ({name: table for name, (table, _) in tables.items()} for tables in (judged, unlabelled))
    return Marketplace(rows, to_score, truth)


def write_marketplace(marketplace: Marketplace, out_dir: Path, judged_dir: Path | None = None) -> None:
    """Write judged/task=<name>/part-0.parquet, unlabelled/task=<name>/part-0.parquet and part-1.parquet,
    their catalogues, and last truth.parquet. `judged_dir`: where judged rows go if not into judged/.
    """
    judged_dir = judged_dir or out_dir / "judged"
    for name, table in marketplace.rows.items():
        write_partition(table, judged_dir / f"task={name}" / "part-0.parquet")
    for name, table in marketplace.unlabelled.items():
        for part in range(UNLABELLED_PARTITIONS):
            start, end = (table.num_rows * cut // UNLABELLED_PARTITIONS for cut in (part, part + 1))
            write_partition(
                table.slice(start, end - start),
                out_dir / "unlabelled" / f"task={name}" / f"part-{part}.parquet",
            )
    for folder in (judged_dir, out_dir / "unlabelled"):
        enter_partitions(
            folder,
            [
                path
                for name in marketplace.rows
                for path in sorted(folder.glob(f"task={name}/part-*.parquet"))
            ],
        )
    truth = pa.BufferOutputStream()
    pq.write_table(marketplace.truth, truth)
    write_bytes(out_dir / "truth.parquet", truth.getvalue().to_pybytes())


def ceiling(
    judged: pa.Table, truth: pa.Table, relevant_from: int, row_ids: Collection[str] | None = None
) -> float:
    """Average precision of the noise-free grade as a score for the noisy judgements: what no model beats but
    by luck.

    Over all rows of `judged`, or those in `row_ids`. ValueError if none is left, or one has no judgement or
    no truth.
    """
    from sklearn.metrics import average_precision_score

    grades = dict(zip(truth["row_id"].to_pylist(), truth["label"].to_pylist(), strict=True))
    wanted = None if row_ids is None else set(row_ids)
    labels = {
        i: label
        for i, label in zip(judged["row_id"].to_pylist(), judged["label"].to_pylist(), strict=True)
        if wanted is None or i in wanted
    }
    unfit = [row_id for row_id, label in labels.items() if label is None or row_id not in grades]
    if unfit or not labels:
        raise ValueError(
            "the ceiling needs rows with a judgement and a known grade; without: "
            f"{', '.join(unfit[:3]) or 'no row is left'}"
        )
    return float(
        average_precision_score(
            [label >= relevant_from for label in labels.values()], [grades[row_id] for row_id in labels]
        )
    )
