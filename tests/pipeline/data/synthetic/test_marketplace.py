"""What the made-up marketplace promises: same seed same rows, grades that follow from the pair, noise and
ceiling as stated.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.splits import SplitConfig
from pipeline.data.catalog import read_catalogue
from pipeline.data.splits import split_rows
from pipeline.data.synthetic.marketplace import (
    NOISE_RATE,
    TASKS,
    Marketplace,
    SampleTask,
    build_marketplace,
    ceiling,
    relevance,
    task_grade,
    write_marketplace,
)
from pipeline.data.synthetic.products import DECOYS, Product, product_types, siblings
from pipeline.evaluation.lexical_baseline import LexicalBaseline
from pipeline.schema import ROW_SCHEMA
from tests.support.places import ROOT

NUM_ROWS = 2_000
SEED = 17
KEYWORD, TITLE, PAGE, PRODUCT = TASKS
IRRELEVANT, COMPLEMENT, SUBSTITUTE, EXACT = range(4)


@pytest.fixture(scope="module")
def marketplace() -> Marketplace:
    return build_marketplace(NUM_ROWS, 101, SEED)


@pytest.fixture(scope="module")
def truth(marketplace: Marketplace) -> dict[str, int]:
    return dict(
        zip(marketplace.truth["row_id"].to_pylist(), marketplace.truth["label"].to_pylist(), strict=True)
    )


def all_tables(marketplace: Marketplace) -> list[pa.Table]:
    return [*marketplace.rows.values(), *marketplace.unlabelled.values()]


def is_relevant(marketplace: Marketplace, task: SampleTask) -> np.ndarray:
    return np.asarray(marketplace.rows[task.name]["label"]) >= task.relevant_from


def type_named(name: str) -> Product:
    return Product(next(known for known in product_types() if name in known.us), {})


def test_a_seed_gives_the_same_rows_in_every_process() -> None:
    script = (
        "from pipeline.data.synthetic.marketplace import *; print([t.to_pydict() for t in "
        "build_marketplace(60, 9, 3).rows.values()])"
    )
    printed = {
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(printed) == 1
    assert build_marketplace(60, 9, 3).rows != build_marketplace(60, 9, 4).rows


def test_asking_for_more_rows_keeps_the_first_ones() -> None:
    fewer, more = build_marketplace(50, 5, SEED), build_marketplace(80, 9, SEED)
    assert all(more.rows[name].slice(0, 50) == table for name, table in fewer.rows.items())
    assert all(more.unlabelled[name].slice(0, 5) == table for name, table in fewer.unlabelled.items())


def test_every_table_follows_the_row_contract(marketplace: Marketplace) -> None:
    for table in all_tables(marketplace):
        assert table.schema == ROW_SCHEMA
        assert all(table[field.name].null_count == 0 for field in ROW_SCHEMA if not field.nullable)


def test_labels_lie_on_the_scale_of_their_task_and_every_level_occurs(marketplace: Marketplace) -> None:
    for task in TASKS:
        assert set(marketplace.rows[task.name]["label"].to_pylist()) == set(range(len(task.labels)))


def test_unlabelled_rows_have_a_truth_and_no_label(marketplace: Marketplace, truth: dict[str, int]) -> None:
    for table in marketplace.unlabelled.values():
        assert table["label"].null_count == table["weight"].null_count == table.num_rows == 101
        assert set(table["row_id"].to_pylist()) <= set(truth)


def test_row_ids_are_unique_over_all_tables_and_are_those_of_the_truth(marketplace: Marketplace) -> None:
    row_ids = [row_id for table in all_tables(marketplace) for row_id in table["row_id"].to_pylist()]
    assert len(row_ids) == len(set(row_ids)) == marketplace.truth.num_rows
    assert set(row_ids) == set(marketplace.truth["row_id"].to_pylist())


def test_no_pair_is_judged_twice(marketplace: Marketplace) -> None:
    for task in TASKS:
        pairs = marketplace.rows[task.name].select(["query", *task.ad_columns]).to_pylist()
        assert len({tuple(pair.values()) for pair in pairs}) == NUM_ROWS


def test_each_task_has_its_ad_columns_and_its_market(marketplace: Marketplace) -> None:
    for task in TASKS:
        table = marketplace.rows[task.name]
        assert set(table["market"].to_pylist()) == {task.market}
        assert all(table[column].null_count < table.num_rows for column in task.ad_columns)
    assert "£" in marketplace.rows[PRODUCT.name]["ad_description"][0].as_py()


def test_texts_are_short(marketplace: Marketplace) -> None:
    limits = {"query": 7, "ad_title": 10, "ad_keyword": 10, "ad_description": 12, "landing_page": 16}
    for table in all_tables(marketplace):
        for column, limit in limits.items():
            assert (
                max((len(text.split()) for text in table[column].to_pylist() if text), default=0) <= limit
            ), column


def test_queries_are_many_and_some_are_asked_in_several_tasks(marketplace: Marketplace) -> None:
    queries = {task.name: set(marketplace.rows[task.name]["query"].to_pylist()) for task in TASKS}
    assert all(len(distinct) > NUM_ROWS / 6 for distinct in queries.values())
    assert len(queries[TITLE.name] & queries[KEYWORD.name] & queries[PAGE.name]) > NUM_ROWS / 50


def test_noise_moves_the_stated_share_of_labels(marketplace: Marketplace, truth: dict[str, int]) -> None:
    moved = [
        truth[row["row_id"]] != row["label"]
        for table in marketplace.rows.values()
        for row in table.to_pylist()
    ]
    assert np.mean(moved) == pytest.approx(NOISE_RATE, abs=0.01)


def test_a_third_to_a_half_of_the_pairs_are_relevant(marketplace: Marketplace) -> None:
    for task in TASKS:
        assert 0.35 <= is_relevant(marketplace, task).mean() <= 0.55, task.name


def test_synonyms_are_exact_and_types_of_a_group_are_substitutes() -> None:
    assert type_named("sofa") == type_named("couch")
    assert relevance(type_named("sofa"), type_named("couch")) == EXACT
    assert relevance(type_named("sofa"), type_named("armchair")) == SUBSTITUTE
    assert relevance(type_named("sofa"), type_named("torch")) == IRRELEVANT


def test_each_difference_lowers_the_grade_and_silence_does_not() -> None:
    boots, boots_sibling = type_named("hiking boots").type, siblings(type_named("hiking boots").type)[0]
    want = Product(boots, {"colour": "red", "brand": "Velmo"})
    assert relevance(want, Product(boots, {"colour": "red"})) == EXACT
    assert relevance(want, Product(boots, {"colour": "red", "brand": "Nobrin"})) == SUBSTITUTE
    assert relevance(want, Product(boots, {"colour": "blue", "brand": "Nobrin"})) == IRRELEVANT
    assert relevance(want, Product(boots_sibling, {"colour": "blue"})) == IRRELEVANT
    assert relevance(Product(boots, {"audience": "men"}), Product(boots, {"audience": "women"})) == IRRELEVANT


def test_an_accessory_or_a_decoy_is_never_the_product() -> None:
    for product_type in product_types():
        want = Product(product_type, {})
        part, other_part = product_type.accessories[:2]
        assert relevance(want, Product(product_type, {}, accessory=part)) == COMPLEMENT
        assert relevance(want, Product(product_type, {}, decoy=DECOYS[0])) == IRRELEVANT
        assert relevance(Product(product_type, {}, accessory=part), want) == COMPLEMENT
        assert (
            relevance(Product(product_type, {}, accessory=part), Product(product_type, {}, accessory=part))
            == EXACT
        )
        assert (
            relevance(
                Product(product_type, {}, accessory=part), Product(product_type, {}, accessory=other_part)
            )
            == IRRELEVANT
        )


def test_a_page_is_no_better_than_what_it_shows() -> None:
    assert [
        task_grade(PAGE, EXACT, kind) for kind in ("product", "listing", "sold_out", "article", "error")
    ] == [2, 1, 0, 0, 0]
    assert [task_grade(PAGE, grade, "product") for grade in range(4)] == [0, 0, 1, 2]
    assert [task_grade(KEYWORD, grade) for grade in range(4)] == [0, 0, 0, 1]


def test_rows_that_say_poster_or_sold_out_are_graded_worst(
    marketplace: Marketplace, truth: dict[str, int]
) -> None:
    for task, column, word in (
        (TITLE, "ad_title", "poster"),
        (KEYWORD, "ad_keyword", "repair service"),
        (PAGE, "landing_page", "sold out"),
    ):
        grades = [
            truth[row["row_id"]] for row in marketplace.rows[task.name].to_pylist() if word in row[column]
        ]
        assert grades and set(grades) == {0}


def test_shared_words_alone_stay_well_below_the_ceiling(marketplace: Marketplace) -> None:
    from sklearn.metrics import average_precision_score

    margins = []
    for task in TASKS:
        table = marketplace.rows[task.name]
        test = split_rows(table["query"].to_pylist(), SplitConfig(valid_share=0.1, test_share=0.3)) == "test"
        query = np.asarray(table["query"].to_pylist())
        ads = {
            column: np.asarray([text or "" for text in table[column].to_pylist()])
            for column in task.ad_columns
        }
        relevant = is_relevant(marketplace, task)
        floor = LexicalBaseline.fit(
            query[~test], {name: texts[~test] for name, texts in ads.items()}, relevant[~test]
        )
        probability = floor.probability(query[test], {name: texts[test] for name, texts in ads.items()})
        best = ceiling(table.filter(pa.array(test)), marketplace.truth, task.relevant_from)
        margins.append(best - average_precision_score(relevant[test], probability))
    assert min(margins) > 0.08 and np.mean(margins) > 0.12, margins


def test_without_noise_the_ceiling_would_be_one(marketplace: Marketplace, truth: dict[str, int]) -> None:
    table = marketplace.rows[TITLE.name]
    clean = table.set_column(
        table.column_names.index("label"),
        "label",
        pa.array([truth[i] for i in table["row_id"].to_pylist()], pa.int32()),
    )
    assert ceiling(clean, marketplace.truth, TITLE.relevant_from) == 1.0
    assert ceiling(table, marketplace.truth, TITLE.relevant_from) < 1.0


def test_the_ceiling_is_that_of_the_rows_named_and_refuses_rows_without_a_judgement(
    marketplace: Marketplace,
) -> None:
    table = marketplace.rows[TITLE.name]
    first = table["row_id"].to_pylist()[:500]
    assert ceiling(table, marketplace.truth, 2, first) == ceiling(table.slice(0, 500), marketplace.truth, 2)
    with pytest.raises(ValueError, match="query-title-u0000000"):
        ceiling(marketplace.unlabelled[TITLE.name], marketplace.truth, 2)
    with pytest.raises(ValueError, match="no row is left"):
        ceiling(table, marketplace.truth, 2, [])


def test_what_is_written_is_what_was_built(marketplace: Marketplace, tmp_path: Path) -> None:
    write_marketplace(marketplace, tmp_path)
    for task in TASKS:
        parts = [tmp_path / "unlabelled" / f"task={task.name}" / f"part-{part}.parquet" for part in (0, 1)]
        assert (
            pq.ParquetFile(tmp_path / "judged" / f"task={task.name}" / "part-0.parquet").read()
            == marketplace.rows[task.name]
        )
        assert (
            pa.concat_tables([pq.ParquetFile(part).read() for part in parts])
            == marketplace.unlabelled[task.name]
        )
    assert pq.read_table(tmp_path / "truth.parquet") == marketplace.truth
    assert len([path for path in tmp_path.rglob("*.parquet")]) == 4 + 8 + 1
    assert sum(partition.rows for partition in read_catalogue(tmp_path / "judged")) == 4 * NUM_ROWS
    assert len(read_catalogue(tmp_path / "unlabelled")) == 8
