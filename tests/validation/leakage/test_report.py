"""Planted leaks are found by their kind, and clean data give no finding."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.splits import assign_split, assign_splits, normalize_query
from pipeline.data.synthetic.marketplace import TASKS, build_marketplace
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.schema import ROW_SCHEMA
from tests.support.file_splits import write_random_files
from validation.leakage import label_words, near_queries
from validation.leakage.label_words import WordRule, find_label_words
from validation.leakage.near_queries import QuerySample, find_near_queries
from validation.leakage.report import find_leakage
from validation.text.words import fold_texts

CONFIG = SplitConfig()
MARKET_TASKS = [
    Task(
        name=t.name,
        labels=t.labels,
        relevant_from=t.relevant_from,
        template="{query} " + " ".join(f"{{{column}}}" for column in t.ad_columns),
    )
    for t in TASKS
]
NUM_PLANTED = 10
NUM_CLEAN = 8  # marketplaces; report.py reports a larger run


def _rows(columns: dict[str, list]) -> pa.Table:
    num_rows = len(next(iter(columns.values())))
    defaults = {
        "row_id": [f"r{i}" for i in range(num_rows)],
        "ad_title": ["a"] * num_rows,
        "market": ["us"] * num_rows,
    }
    return pa.table(
        {
            f.name: pa.array(columns.get(f.name, defaults.get(f.name, [None] * num_rows)), f.type)
            for f in ROW_SCHEMA
        }
    )


def _with(table: pa.Table, name: str, values: list) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(
        index, table.schema.field(index), pa.array(values, table.schema.field(index).type)
    )


def _clean_queries(number: int, seed: int) -> list[str]:
    """Build queries of four random words."""
    draw = random.Random(seed)
    return [" ".join("".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(4)) for _ in range(number)]


def test_split_of_a_query_depends_on_nothing_else():
    queries = _clean_queries(3_000, 1)
    few, many = assign_splits(queries[:500], CONFIG), assign_splits([*queries[500:], *queries[:500]], CONFIG)
    assert (many[-500:] == few).all() and set(few) == set(SPLITS)
    shouted = [f"  {query.upper()} " for query in queries]
    sources = {
        "query-title": _rows({"query": queries}),
        "query-product": _rows({"query": shouted}),
        "query-keyword": _rows({"query": queries[:700]}),
    }
    report = find_leakage(sources, MARKET_TASKS, CONFIG)
    assert sum(report.num_queries.values()) == 3_000
    assert [near.num_test + near.num_valid for near in report.near_queries] == [0, 0, 0, 0] and not list(
        report.messages()
    )


def test_query_in_two_splits_is_reported(monkeypatch):
    splits = np.array(["test", "train", "valid"])
    monkeypatch.setattr(near_queries, "assign_splits", lambda queries, _: splits)
    report = find_leakage({"query-title": _rows({"query": ["a b", "A  b", "c"]})}, MARKET_TASKS, CONFIG)
    assert (report.near_queries[0].kind, report.near_queries[0].num_test) == ("same", 1)
    assert report.near_queries[0].examples == (("a b", "train", "a b", "test"),)
    assert "equal up to same" in next(report.messages())


VARIANTS = {
    "spelling": [
        lambda q: q.replace(" ", "-"),
        lambda q: q.replace(" ", "", 1),
        lambda q: q + "!",
        lambda q: q.replace("a", "Á"),
        lambda q: q.replace(" ", " & ", 1),
        lambda q: q.title() + " ®",
    ],
    "word_order": [
        lambda q: " ".join(q.split()[::-1]),
        lambda q: " ".join(q.split()[1:] + q.split()[:1]).upper() + "?",
    ],
    "one_word": [
        lambda q: q + " men",
        lambda q: q.rsplit(" ", 1)[0],
        lambda q: "new " + q.split(" ", 1)[1],
        lambda q: "new " + " ".join(q.split()[2::-1]),
    ],
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_planted_near_query_is_found_under_its_kind(kind):
    queries = _clean_queries(4_000, 2)
    planted = []
    for query in queries:
        if assign_split(query, CONFIG) == "test" and len(planted) < NUM_PLANTED:
            variant = VARIANTS[kind][len(planted) % len(VARIANTS[kind])](query)
            if assign_split(variant, CONFIG) != "test":
                planted.append((query, variant))
    assert len(planted) == NUM_PLANTED
    counts, found = find_near_queries(pa.array([*queries, *(variant for _, variant in planted)]), CONFIG)
    assert {near.kind: near.num_test for near in found} == {
        "same": 0,
        "spelling": 0,
        "word_order": 0,
        "one_word": 0,
        kind: NUM_PLANTED,
    }
    near = next(near for near in found if near.kind == kind)
    assert near.share_of_test == NUM_PLANTED / counts["test"]
    assert {(query, normalize_query(other)) for query, side, other, _ in near.examples} <= {
        (q, normalize_query(v)) for q, v in planted
    }


def test_near_queries_match_a_loop_over_all_pairs():
    draw = random.Random(3)
    words = ["red", "Red,", "blue", "café", "cafe", "xl", "1", "2", "men"]
    raw = sorted({" ".join(draw.choices(words, k=draw.randint(1, 5))) for _ in range(250)})
    _, found = find_near_queries(pa.array(raw), CONFIG)
    queries = sorted({normalize_query(query) for query in raw})
    sides = {query: assign_split(query, CONFIG) for query in queries}
    folded = dict(zip(queries, fold_texts(pa.array(queries)).to_pylist(), strict=True))
    expected = {near.kind: {"test": 0, "valid": 0} for near in found}
    for query in queries:
        earlier = {"test": ("train", "valid"), "valid": ("train",), "train": ()}[sides[query]]
        kinds = {_kind_of(folded[query], folded[other]) for other in queries if sides[other] in earlier}
        nearest = next((kind for kind in expected if kind in kinds), None)
        if nearest:
            expected[nearest][sides[query]] += 1
    assert {near.kind: {"test": near.num_test, "valid": near.num_valid} for near in found} == expected
    assert all(sum(expected[kind].values()) > 3 for kind in ("spelling", "word_order", "one_word"))


def _kind_of(one: str, other: str) -> str | None:
    """Return the kind of two near queries, computed from their words."""
    closed = [
        "".join(
            c if c != " " or not (t[i - 1].isdigit() and t[i + 1].isdigit()) else "_" for i, c in enumerate(t)
        ).replace(" ", "")
        for t in (one, other)
    ]
    a, b = sorted(one.split()), sorted(other.split())
    if closed[0] == closed[1]:
        return "spelling"
    if a == b:
        return "word_order"
    without = [{tuple(w[:i] + w[i + 1 :]) for i in range(len(w))} for w in (a, b)]
    near = without[0] & without[1] or tuple(a) in without[1] or tuple(b) in without[0]
    return "one_word" if min(len(a), len(b)) >= 3 and near else None


def test_digit_gaps_and_signs_distinguish_queries():
    queries = ["1.5 mm", "15 mm", "1 5 mm", "!!!", "???", "🏃", "c", "が", "か", "तेल", "तल"]
    _, found = find_near_queries(
        pa.array([*queries, *_clean_queries(50, 4)]), SplitConfig(valid_share=0.3, test_share=0.3)
    )
    pairs = {frozenset((query, other)) for near in found for query, _, other, _ in near.examples}
    assert pairs <= {frozenset(("1.5 mm", "1 5 mm"))}


def test_queries_of_equal_letters_are_sampled_together(monkeypatch):
    monkeypatch.setattr(near_queries, "MAX_QUERIES", 500)
    clean = _clean_queries(2_000, 3)
    mates = {query: " ".join(reversed(query.split())).upper() for query in clean}
    arrivals = [*clean, *mates.values()]
    samples = []
    for order in (arrivals, arrivals[::-1], random.Random(4).sample(arrivals, len(arrivals))):
        queries = QuerySample()
        monkeypatch.setattr(near_queries, "MERGE_QUERIES", 64)
        for start in range(0, len(order), 90):
            queries.add(pa.array(order[start : start + 90]))
        found, share = queries.queries()
        samples.append((set(found.to_pylist()), share))
    assert samples[0] == samples[1] == samples[2]
    found, share = samples[0]
    assert 490 <= len(found) <= 500
    assert share == pytest.approx(500 / len(set(arrivals)), rel=0.2)
    assert all((query in found) == (mate in found) for query, mate in mates.items())


def test_planted_label_words_are_found_and_nothing_else():
    market = build_marketplace(2_000, 0, 5)
    for t, task in enumerate(MARKET_TASKS):
        table, num_labels = market.rows[task.name], len(task.labels)
        labels = table["label"].to_pylist()
        column = task.ad_columns[-1]
        texts = [text or "" for text in table[column].to_pylist()]
        # a share of 1 must be far from the base rate
        rare = sorted(range(num_labels), key=labels.count)[: num_labels - 1]
        for k in range(NUM_PLANTED):
            rows = [i for i, label in enumerate(labels) if label == rare[k % len(rare)]]
            for i in random.Random(k).sample(rows, 120):
                texts[i] += f" Zq{k}, "
        words = find_label_words(_with(table, column, texts), task, WordRule())
        assert {(word.column, word.word, word.label) for word in words} == {
            (column, f"zq{k}", task.labels[rare[k % len(rare)]]) for k in range(NUM_PLANTED)
        }, t
        assert all(
            word.num_rows == 120 and word.share == 1 and word.num_queries > 20 and word.p_value < 1e-9
            for word in words
        )
        assert all(
            f"Zq{word.word[2:]}," in texts[table["row_id"].to_pylist().index(row_id)]
            for word in words
            for row_id in word.row_ids
        )


MARKS = [
    "Label: {name}",
    "grade={index}",
    "[relevance] {name}",
    "judged as {name}.",
    "target_{index}",
    "score is {index}",
    "CLASS {one_based}",
    "label{index}",
]


@pytest.mark.parametrize("mark", MARKS)
def test_label_after_a_cue_is_found_in_few_rows(mark):
    task = next(task for task in MARKET_TASKS if task.name == "query-title")
    table = build_marketplace(1_000, 0, 6).rows[task.name]
    labels, titles = table["label"].to_pylist(), table["ad_title"].to_pylist()
    for i in [i for i, label in enumerate(labels) if label == 2][::5][:12]:
        titles[i] = f"{titles[i]} {mark.format(name=task.labels[2].title(), index=2, one_based=3)}"
    found = find_label_words(_with(table, "ad_title", titles), task, WordRule())
    assert [(word.label, word.num_rows) for word in found if "=" in word.word] == [
        ("substitute", 12)
    ] and len(found) == 1


def test_grade_of_the_product_is_no_leak():
    task = next(task for task in MARKET_TASKS if task.name == "query-title")
    table = build_marketplace(1_000, 0, 7).rows[task.name]
    titles = [
        f"{title} grade {i % 4} workbook, exact fit, relevant good class {i % 3}"
        for i, title in enumerate(table["ad_title"].to_pylist())
    ]
    assert not find_label_words(_with(table, "ad_title", titles), task, WordRule())


def test_clean_and_relabeled_marketplaces_raise_no_alarm():
    alarms = {"clean": 0, "relabeled": 0}
    for seed in range(NUM_CLEAN):
        market, draw = build_marketplace(2_000, 0, 100 + seed), np.random.default_rng(seed)
        relabeled = {
            name: _with(table, "label", draw.permutation(table["label"].to_numpy()))
            for name, table in market.rows.items()
        }
        alarms["clean"] += len(find_leakage(market.rows, MARKET_TASKS, CONFIG).label_words)
        alarms["relabeled"] += len(find_leakage(relabeled, MARKET_TASKS, CONFIG).label_words)
    print(f"suspicious words in {NUM_CLEAN} x {len(MARKET_TASKS)} tables without a leak: {alarms}")
    assert alarms == {"clean": 0, "relabeled": 0}


def _test_auc(table: pa.Table, task: Task) -> float:
    """Return the AUC on test queries of a classifier of words that was trained on train queries."""
    queries, titles = table["query"].to_pylist(), table["ad_title"].to_pylist()
    texts = np.array([f"{query} {title}" for query, title in zip(queries, titles, strict=True)])
    is_relevant = np.array(table["label"].to_pylist()) >= task.relevant_from
    split = assign_splits(queries, CONFIG)
    model = make_pipeline(TfidfVectorizer(token_pattern=r"\w+"), LogisticRegression(C=30, max_iter=500))
    model.fit(texts[split == "train"], is_relevant[split == "train"])
    return roc_auc_score(is_relevant[split == "test"], model.predict_proba(texts[split == "test"])[:, 1])


def test_found_label_words_raise_the_auc():
    task = next(task for task in MARKET_TASKS if task.name == "query-title")
    table = build_marketplace(2_000, 0, 11).rows[task.name]
    rows = list(zip(table["ad_title"].to_pylist(), table["label"].to_pylist(), strict=True))
    leaks = {
        "word": [title + " Zq" * (label == 3) for title, label in rows],
        "cue": [f"{title} grade={label}" for title, label in rows],
    }
    aucs = {"clean": _test_auc(table, task)}
    assert not find_leakage({task.name: table}, MARKET_TASKS, CONFIG).label_words
    for name, titles in leaks.items():
        leaky = _with(table, "ad_title", titles)
        aucs[name] = _test_auc(leaky, task)
        assert find_leakage({task.name: leaky}, MARKET_TASKS, CONFIG).label_words, name
    print(f"AUC on test queries without a leak and with each: {aucs}")
    assert aucs["clean"] < 0.85 and min(aucs["word"], aucs["cue"]) > aucs["clean"] + 0.1


def test_found_near_queries_raise_the_auc():
    task, draw = next(task for task in MARKET_TASKS if task.name == "query-title"), random.Random(1)
    # a label that nothing but the query's own words tells
    labels = {query: draw.randrange(len(task.labels)) for query in _clean_queries(1_500, 12)}
    columns = {"query": list(labels), "label": list(labels.values())}
    columns["ad_title"] = [draw.choice(("lamp", "shoes", "desk")) for _ in labels]
    clean = _rows(columns)
    aucs = {"clean": _test_auc(clean, task)}
    for kind, variants in VARIANTS.items():
        near = [
            (variant, query)
            for number, query in enumerate(labels)
            if assign_split(query, CONFIG) == "test"
            and assign_split(variant := variants[number % len(variants)](query), CONFIG) == "train"
        ]
        copies = _rows(
            {
                "query": [variant for variant, _ in near],
                "label": [labels[query] for _, query in near],
                "row_id": [f"near{number}" for number in range(len(near))],
            }
        )
        leaky = pa.concat_tables([clean, copies])
        aucs[kind] = _test_auc(leaky, task)
        for table, num_near in ((clean, 0), (leaky, len(near))):
            found = find_leakage({task.name: table}, MARKET_TASKS, CONFIG).near_queries
            assert {near.kind: near.num_test for near in found if near.num_test} == (
                {kind: num_near} if num_near else {}
            )
    print(f"AUC on test queries without a leak and with each: {aucs}")
    assert aucs["clean"] < 0.6 and min(aucs[kind] for kind in VARIANTS) > 0.85


@pytest.mark.parametrize("is_bounded", [False, True])
def test_files_and_tables_give_equal_reports(tmp_path, monkeypatch, is_bounded):
    if is_bounded:  # every bound of the memory is reached
        monkeypatch.setattr(near_queries, "MAX_QUERIES", 200)
        monkeypatch.setattr(near_queries, "MERGE_QUERIES", 32)
        monkeypatch.setattr(label_words, "MAX_WORDS", 700)
        monkeypatch.setattr(label_words, "_MERGE_WORDS", 32)
        monkeypatch.setattr(label_words, "MAX_QUERIES", 20)
    task = next(task for task in MARKET_TASKS if task.name == "query-title")
    table = build_marketplace(1_500, 0, 8).rows[task.name]
    titles = [
        title + " leaked" * (label == 3)
        for title, label in zip(table["ad_title"].to_pylist(), table["label"].to_pylist(), strict=True)
    ]
    table = _with(table, "ad_title", titles)
    rule = WordRule(min_rows=10)
    whole = find_leakage({task.name: table}, MARKET_TASKS, CONFIG, rule)
    for seed in range(6):
        paths = write_random_files(table, tmp_path / str(seed), seed)
        found = find_leakage({task.name: paths}, MARKET_TASKS, CONFIG, rule)
        assert json.dumps(found.to_json()) == json.dumps(whole.to_json()), seed
    assert (whole.sampled_share < 1) == is_bounded
    assert [word.word for word in whole.label_words] == ["leaked"]
    assert any("'leaked' in ad_title are exact" in sentence for sentence in whole.messages())
    assert json.loads(json.dumps(whole.to_json()))["label_words"][0]["word"] == "leaked"


def test_unlabeled_rows_and_unread_columns_are_ignored():
    task = next(task for task in MARKET_TASKS if task.name == "query-title")
    table = build_marketplace(1_000, 0, 9).rows[task.name]
    labels = table["label"].to_pylist()
    unread = _with(table, "landing_page", [f"label {label}" for label in labels])
    assert not find_label_words(unread, task, WordRule())
    unlabeled = _with(
        _with(table, "ad_title", [f"label {label}" for label in labels]), "label", [None] * len(labels)
    )
    assert not find_label_words(unlabeled, task, WordRule())
    assert find_leakage(
        {task.name: ROW_SCHEMA.empty_table()}, MARKET_TASKS, CONFIG
    ).num_queries == dict.fromkeys(SPLITS, 0)


def test_damaged_file_and_unknown_task_are_named(tmp_path):
    path = tmp_path / "part-0.parquet"
    pq.write_table(_rows({"query": ["a"] * 500}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedInputError, match="part-0"):
        find_leakage({"query-title": [path]}, MARKET_TASKS, CONFIG)
    pq.write_table(pa.table({"question": ["a"]}), path)
    with pytest.raises(DataRefusedError, match="column query is missing"):
        find_leakage({"query-title": [path]}, MARKET_TASKS, CONFIG)
    with pytest.raises(ConfigError, match="query-titel"):
        find_leakage({"query-titel": [path]}, MARKET_TASKS, CONFIG)
