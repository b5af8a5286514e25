"""Synthetic marketplace: reproducible rows, grades that follow from the products, known noise and ceiling."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.splits import SplitConfig
from pipeline.data.catalog import read_catalogue
from pipeline.data.splits import assign_splits
from pipeline.data.synthetic.marketplace import (
    NOISE_RATE,
    TASKS,
    Marketplace,
    SampleTask,
    average_precision_ceiling,
    build_marketplace,
    task_grade,
    true_grade,
    write_marketplace,
)
from pipeline.data.synthetic.products import DECOYS, Product, product_types, siblings
from pipeline.evaluation.lexical_baseline import LexicalBaseline
from pipeline.schema import ROW_SCHEMA
from tests.support.imported import imported
from tests.support.places import ROOT

NUM_ROWS = 2_000
SEED = 17
KEYWORD, TITLE, PAGE, PRODUCT = TASKS
IRRELEVANT, COMPLEMENT, SUBSTITUTE, EXACT = range(4)


@pytest.fixture(scope="module")
def marketplace() -> Marketplace:
    return build_marketplace(NUM_ROWS, 101, SEED)


@pytest.fixture(scope="module")
def true_grades(marketplace: Marketplace) -> dict[str, int]:
    return dict(
        zip(
            marketplace.true_grades["row_id"].to_pylist(),
            marketplace.true_grades["label"].to_pylist(),
            strict=True,
        )
    )


def all_tables(marketplace: Marketplace) -> list[pa.Table]:
    return [*marketplace.rows.values(), *marketplace.unlabelled.values()]


def is_relevant(marketplace: Marketplace, task: SampleTask) -> np.ndarray:
    return np.asarray(marketplace.rows[task.name]["label"]) >= task.relevant_from


def type_named(name: str) -> Product:
    return Product(next(known for known in product_types() if name in known.us), {})


def test_seed_gives_the_same_rows_in_every_process() -> None:
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


def test_more_rows_keep_the_first_ones() -> None:
    fewer, more = build_marketplace(50, 5, SEED), build_marketplace(80, 9, SEED)
    assert all(more.rows[name].slice(0, 50) == table for name, table in fewer.rows.items())
    assert all(more.unlabelled[name].slice(0, 5) == table for name, table in fewer.unlabelled.items())


def test_every_table_follows_the_row_contract(marketplace: Marketplace) -> None:
    for table in all_tables(marketplace):
        assert table.schema == ROW_SCHEMA
        assert all(table[field.name].null_count == 0 for field in ROW_SCHEMA if not field.nullable)


def test_labels_cover_the_scale_of_their_task(marketplace: Marketplace) -> None:
    for task in TASKS:
        assert set(marketplace.rows[task.name]["label"].to_pylist()) == set(range(len(task.labels)))


def test_unlabelled_rows_have_true_grades_and_no_label(
    marketplace: Marketplace, true_grades: dict[str, int]
) -> None:
    for table in marketplace.unlabelled.values():
        assert table["label"].null_count == table["weight"].null_count == table.num_rows == 101
        assert set(table["row_id"].to_pylist()) <= set(true_grades)


def test_row_ids_are_unique_and_match_the_true_grades(marketplace: Marketplace) -> None:
    row_ids = [row_id for table in all_tables(marketplace) for row_id in table["row_id"].to_pylist()]
    assert len(row_ids) == len(set(row_ids)) == marketplace.true_grades.num_rows
    assert set(row_ids) == set(marketplace.true_grades["row_id"].to_pylist())


def test_pairs_are_distinct(marketplace: Marketplace) -> None:
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


def test_queries_are_many_and_some_tasks_share_them(marketplace: Marketplace) -> None:
    queries = {task.name: set(marketplace.rows[task.name]["query"].to_pylist()) for task in TASKS}
    assert all(len(distinct) > NUM_ROWS / 6 for distinct in queries.values())
    assert len(queries[TITLE.name] & queries[KEYWORD.name] & queries[PAGE.name]) > NUM_ROWS / 50


def test_noise_changes_the_stated_share_of_labels(
    marketplace: Marketplace, true_grades: dict[str, int]
) -> None:
    moved = [
        true_grades[row["row_id"]] != row["label"]
        for table in marketplace.rows.values()
        for row in table.to_pylist()
    ]
    assert np.mean(moved) == pytest.approx(NOISE_RATE, abs=0.01)


def test_a_third_to_a_half_of_the_pairs_are_relevant(marketplace: Marketplace) -> None:
    for task in TASKS:
        assert 0.35 <= is_relevant(marketplace, task).mean() <= 0.55, task.name


def test_synonyms_are_exact_and_types_of_a_group_are_substitutes() -> None:
    assert type_named("sofa") == type_named("couch")
    assert true_grade(type_named("sofa"), type_named("couch")) == EXACT
    assert true_grade(type_named("sofa"), type_named("armchair")) == SUBSTITUTE
    assert true_grade(type_named("sofa"), type_named("torch")) == IRRELEVANT


def test_differences_lower_the_grade_and_missing_values_do_not() -> None:
    boots, boots_sibling = type_named("hiking boots").type, siblings(type_named("hiking boots").type)[0]
    want = Product(boots, {"colour": "red", "brand": "Velmo"})
    assert true_grade(want, Product(boots, {"colour": "red"})) == EXACT
    assert true_grade(want, Product(boots, {"colour": "red", "brand": "Nobrin"})) == SUBSTITUTE
    assert true_grade(want, Product(boots, {"colour": "blue", "brand": "Nobrin"})) == IRRELEVANT
    assert true_grade(want, Product(boots_sibling, {"colour": "blue"})) == IRRELEVANT
    assert (
        true_grade(Product(boots, {"audience": "men"}), Product(boots, {"audience": "women"})) == IRRELEVANT
    )


def test_an_accessory_or_a_decoy_is_never_the_product() -> None:
    for product_type in product_types():
        want = Product(product_type, {})
        part, other_part = product_type.accessories[:2]
        assert true_grade(want, Product(product_type, {}, accessory=part)) == COMPLEMENT
        assert true_grade(want, Product(product_type, {}, decoy=DECOYS[0])) == IRRELEVANT
        assert true_grade(Product(product_type, {}, accessory=part), want) == COMPLEMENT
        assert (
            true_grade(Product(product_type, {}, accessory=part), Product(product_type, {}, accessory=part))
            == EXACT
        )
        assert (
            true_grade(
                Product(product_type, {}, accessory=part), Product(product_type, {}, accessory=other_part)
            )
            == IRRELEVANT
        )


def test_page_kind_limits_the_grade() -> None:
    assert [
        task_grade(PAGE, EXACT, kind) for kind in ("product", "listing", "sold_out", "article", "error")
    ] == [2, 1, 0, 0, 0]
    assert [task_grade(PAGE, grade, "product") for grade in range(4)] == [0, 0, 1, 2]
    assert [task_grade(KEYWORD, grade) for grade in range(4)] == [0, 0, 0, 1]


def test_posters_and_sold_out_pages_have_the_worst_grade(
    marketplace: Marketplace, true_grades: dict[str, int]
) -> None:
    for task, column, word in (
        (TITLE, "ad_title", "poster"),
        (KEYWORD, "ad_keyword", "repair service"),
        (PAGE, "landing_page", "sold out"),
    ):
        grades = [
            true_grades[row["row_id"]]
            for row in marketplace.rows[task.name].to_pylist()
            if word in row[column]
        ]
        assert grades and set(grades) == {0}


def test_shared_words_alone_stay_well_below_the_ceiling(marketplace: Marketplace) -> None:
    from sklearn.metrics import average_precision_score

    margins = []
    for task in TASKS:
        table = marketplace.rows[task.name]
        test = (
            assign_splits(table["query"].to_pylist(), SplitConfig(valid_share=0.1, test_share=0.3)) == "test"
        )
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
        best = average_precision_ceiling(
            table.filter(pa.array(test)), marketplace.true_grades, task.relevant_from
        )
        margins.append(best - average_precision_score(relevant[test], probability))
    assert min(margins) > 0.08 and np.mean(margins) > 0.12, margins


def test_ceiling_without_noise_is_one(marketplace: Marketplace, true_grades: dict[str, int]) -> None:
    table = marketplace.rows[TITLE.name]
    clean = table.set_column(
        table.column_names.index("label"),
        "label",
        pa.array([true_grades[i] for i in table["row_id"].to_pylist()], pa.int32()),
    )
    assert average_precision_ceiling(clean, marketplace.true_grades, TITLE.relevant_from) == 1.0
    assert average_precision_ceiling(table, marketplace.true_grades, TITLE.relevant_from) < 1.0


def test_ceiling_refuses_rows_without_labels(
    marketplace: Marketplace,
) -> None:
    with pytest.raises(ValueError, match="without label or true grade: query-title-u0000000"):
        average_precision_ceiling(marketplace.unlabelled[TITLE.name], marketplace.true_grades, 2)
    with pytest.raises(ValueError, match="no row given"):
        average_precision_ceiling(marketplace.rows[TITLE.name].slice(0, 0), marketplace.true_grades, 2)


def test_written_marketplace_equals_the_built_one(marketplace: Marketplace, tmp_path: Path) -> None:
    write_marketplace(marketplace, tmp_path)
    for task in TASKS:
        parts = [
            imported(tmp_path / "unlabelled", f"task={task.name}/part-{part}.parquet") for part in (0, 1)
        ]
        assert (
            pq.ParquetFile(imported(tmp_path / "judged", f"task={task.name}/part-0.parquet")).read()
            == marketplace.rows[task.name]
        )
        assert (
            pa.concat_tables([pq.ParquetFile(part).read() for part in parts])
            == marketplace.unlabelled[task.name]
        )
    assert pq.read_table(tmp_path / "truth.parquet") == marketplace.true_grades
    assert len([path for path in tmp_path.rglob("*.parquet")]) == 4 + 8 + 1
    judged = read_catalogue(tmp_path / "judged") or {}
    assert sum(partition.rows for partition in judged.values()) == 4 * NUM_ROWS
    assert len(read_catalogue(tmp_path / "unlabelled") or {}) == 8
