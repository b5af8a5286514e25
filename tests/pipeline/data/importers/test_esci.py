"""Importer of ESCI: made-up files in the published layout, and the real sample if it exists."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.catalog import find_files
from pipeline.data.content_digest import content_digest
from pipeline.data.importers import records
from pipeline.data.importers.esci import ESCI_EXAMPLES, ESCI_PRODUCTS, import_esci
from pipeline.data.importers.importer import ImportCounts
from pipeline.data.reader import read_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from tests.support.imported import file_names, imported
from tests.support.places import SHARED_DATA

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is not there: the real data does not ship"
)


def _example(example_id: int | None, **changes: Any) -> dict[str, Any]:
    values = {"query": "shoe", "query_id": 1, "product_id": "B1", "product_locale": "us", "esci_label": "E"}
    return (
        {"example_id": example_id}
        | values
        | {"small_version": 0, "large_version": 1, "split": "train"}
        | changes
    )


def _product(product_id: str | None, **changes: Any) -> dict[str, Any]:
    texts = {
        "title": f"Title {product_id}",
        "description": None,
        "bullet_point": None,
        "brand": None,
        "color": None,
    }
    return {"product_id": product_id} | {
        f"product_{k}": v for k, v in (texts | {"locale": "us"} | changes).items()
    }


EXAMPLES = [
    _example(0),
    _example(1, product_locale="jp", esci_label="S"),
    _example(2, product_locale="es", esci_label="C"),
]
PRODUCTS = [
    _product("B1"),
    _product("B1", locale="jp", title="靴"),
    _product("B1", locale="es", title="zapato"),
]


def _write_esci(folder: Path, examples: list[dict] = EXAMPLES, products: list[dict] = PRODUCTS) -> Path:
    folder.mkdir(exist_ok=True)
    texts = pa.schema([(name, pa.string()) for name in (products[0] if products else ())])
    pq.write_table(pa.Table.from_pylist(examples), folder / ESCI_EXAMPLES)
    pq.write_table(pa.Table.from_pylist(products, texts), folder / ESCI_PRODUCTS)
    return folder


def _read_task(out_dir: Path, task: str) -> list[dict[str, Any]]:
    return read_partition(imported(out_dir, f"task={task}/part-0.parquet")).to_pylist()


def _all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_locale_becomes_a_task_with_its_own_products(tmp_path: Path) -> None:
    counts = import_esci(_write_esci(tmp_path / "in"), tmp_path / "out")
    assert counts == ImportCounts({"esci_us": 1, "esci_es": 1, "esci_jp": 1}, {})
    others = {
        "ad_description": None,
        "ad_keyword": None,
        "landing_page": None,
        "weight": None,
        "official_split": "train",
        "subset": "large",
    }
    assert _read_task(tmp_path / "out", "esci_jp") == [
        {"row_id": "esci-jp-1", "query": "shoe", "ad_title": "靴", "market": "jp", "label": 2} | others
    ]
    assert _read_task(tmp_path / "out", "esci_es")[0]["ad_title"] == "zapato"


def test_labels_are_ordered_from_irrelevant_to_exact(tmp_path: Path) -> None:
    examples = [_example(i, esci_label=label) for i, label in enumerate("ICSE")]
    import_esci(_write_esci(tmp_path / "in", examples), tmp_path / "out")
    assert [row["label"] for row in _read_task(tmp_path / "out", "esci_us")] == [0, 1, 2, 3]


def test_official_split_and_smallest_version_are_kept(tmp_path: Path) -> None:
    flags = [(1, 1, "test"), (0, 1, "train"), (0, 0, None)]
    examples = [
        _example(i, small_version=small, large_version=large, split=split)
        for i, (small, large, split) in enumerate(flags)
    ]
    import_esci(_write_esci(tmp_path / "in", examples), tmp_path / "out")
    values = [(row["subset"], row["official_split"]) for row in _read_task(tmp_path / "out", "esci_us")]
    assert values == [("small", "test"), ("large", "train"), (None, None)]


def test_sample_without_splits_and_versions_is_imported(tmp_path: Path) -> None:
    examples = [
        {k: v for k, v in _example(0).items() if k not in ("split", "small_version", "large_version")}
    ]
    import_esci(_write_esci(tmp_path / "in", examples), tmp_path / "out")
    assert (row := _read_task(tmp_path / "out", "esci_us")[0])["subset"] is None and row[
        "official_split"
    ] is None


def test_description_has_brand_and_colour_then_text_or_bullet_points(tmp_path: Path) -> None:
    products = [
        _product("B1", description="<p>soft</p>", bullet_point="one\ntwo", brand="Nike", color="Red"),
        _product("B2", bullet_point="one\ntwo", color="Red"),
    ]
    import_esci(
        _write_esci(tmp_path / "in", [_example(0), _example(1, product_id="B2")], products), tmp_path / "out"
    )
    assert [row["ad_description"] for row in _read_task(tmp_path / "out", "esci_us")] == [
        "Nike, Red\nsoft",
        "Red\none\ntwo",
    ]


def test_every_reject_has_one_reason(tmp_path: Path) -> None:
    bad = [
        _example(1, product_id="B404"),
        _example(2, product_id=None),
        _example(3, product_id="B2"),
        _example(4, esci_label="X"),
        _example(5, esci_label=None),
        _example(6, product_locale="fr", esci_label="X"),
        _example(7, product_locale=None),
        _example(8, query=" \x00"),
        _example(9, product_id="B3"),
        _example(None),
        _example(0),
    ]
    good = [_example(100 + i) for i in range(50)]
    products = [
        _product("B1"),
        _product("B2", title=" "),
        _product("B3", locale="es"),
        *(_product(f"C{i}") for i in range(9)),
    ]
    counts = import_esci(
        _write_esci(tmp_path / "in", [_example(0), *bad, *good], [*products, _product(None), _product("B1")]),
        tmp_path / "out",
    )
    assert counts.rows == {"esci_us": 51}
    assert counts.rejected == {
        "empty_id": 1,
        "empty_query": 1,
        "empty_title": 1,
        "repeated_id": 1,
        "unknown_label": 2,
        "unknown_market": 2,
        "unknown_product": 3,
    }
    kept = pq.read_table(tmp_path / "out" / "quarantine" / "esci.parquet").to_pylist()
    assert [line["line"] for line in kept] == list(range(2, 13))
    assert kept[3]["reason"] == "unknown_label" and '"esci_label":"X"' in kept[3]["text"]
    products_kept = pq.read_table(tmp_path / "out" / "quarantine" / "esci-products.parquet").to_pylist()
    assert [(line["line"], line["reason"]) for line in products_kept] == [
        (13, "empty_id"),
        (14, "repeated_id"),
    ]


def test_order_of_a_small_source_does_not_change_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [_example(i, query=f"q{i * 7 % 5}", product_id=f"B{i % 3}") for i in range(40)]
    products = [_product(f"B{i}") for i in range(3)]
    import_esci(_write_esci(tmp_path / "in", examples, products), tmp_path / "out")
    rows = _read_task(tmp_path / "out", "esci_us")
    assert [(r["query"], r["row_id"]) for r in rows] == sorted(
        (e["query"], f"esci-us-{e['example_id']}") for e in examples
    )
    assert all(r["ad_title"] == f"Title B{int(r['row_id'].split('-')[-1]) % 3}" for r in rows)
    monkeypatch.setattr(records, "READ_ROWS", 7)
    import_esci(_write_esci(tmp_path / "turned", examples[::-1], products[::-1]), tmp_path / "again")
    assert _all_bytes(tmp_path / "again") == _all_bytes(tmp_path / "out")


def test_repeated_pair_keeps_both_labels(tmp_path: Path) -> None:
    import_esci(_write_esci(tmp_path / "in", [_example(0), _example(1)]), tmp_path / "out")
    assert [r["row_id"] for r in _read_task(tmp_path / "out", "esci_us")] == ["esci-us-0", "esci-us-1"]


@pytest.mark.parametrize(
    ("examples", "products", "message"),
    [
        (
            [_example(0), _example(0, query="boot")],
            PRODUCTS,
            "1 of 2 lines of .* are bad .1 repeated_id., more than 20%.*line 2 has an id",
        ),
        ([_example(0)], [_product("B1"), _product("B1")], "1 of 2 lines of .*products.parquet are bad"),
        (
            [{k: v for k, v in _example(0).items() if k != "esci_label"}],
            PRODUCTS,
            "has no column esci_label, only example_id",
        ),
        (
            [_example(0)],
            [{"product_id": "B1", "product_locale": "us"}],
            "has no column product_title, product_description",
        ),
        (
            [_example(0, query=["shoe"])],
            PRODUCTS,
            "has columns that are neither text nor number: query .list",
        ),
        ([_example(0, product_id="B404")], PRODUCTS, "1 of 1 lines of .* are bad .1 unknown_product."),
        ([_example(0)], [], "has no column product_id"),
    ],
)
def test_unfit_source_publishes_nothing(tmp_path: Path, examples: list, products: list, message: str) -> None:
    with pytest.raises(DataRefusedError, match=message):
        import_esci(_write_esci(tmp_path / "in", examples, products), tmp_path / "out")
    assert not file_names(tmp_path / "out")


def test_no_row_stays_of_a_locale_that_left_the_source(tmp_path: Path) -> None:
    for examples in (EXAMPLES, EXAMPLES[1:]):
        import_esci(_write_esci(tmp_path / "in", examples), tmp_path / "out")
    assert sorted(find_files(tmp_path / "out").by_task) == ["esci_es", "esci_jp"]


@pytest.mark.parametrize("name", [ESCI_EXAMPLES, ESCI_PRODUCTS])
@pytest.mark.parametrize("size_share", [0.0, 0.5, 0.99])
def test_truncated_parquet_leaves_the_earlier_import(tmp_path: Path, name: str, size_share: float) -> None:
    import_esci(_write_esci(tmp_path / "in"), tmp_path / "out")
    before = _all_bytes(tmp_path / "out")
    content = (tmp_path / "in" / name).read_bytes()
    (tmp_path / "in" / name).write_bytes(content[: int(len(content) * size_share)])
    with pytest.raises(DamagedInputError, match=f"{name} is not whole parquet.*write it again"):
        import_esci(tmp_path / "in", tmp_path / "out")
    assert _all_bytes(tmp_path / "out") == before


def test_wrong_folder_is_a_config_error(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=f"{ESCI_EXAMPLES} is not a file; point the import at"):
            import_esci(wrong, tmp_path / "out")


def test_surrogates_are_repaired_and_other_bytes_rejected(
    tmp_path: Path,
) -> None:
    folder = _write_esci(tmp_path / "in", [_example(i) for i in range(9)], [_product("B1")])
    texts = ["red \ud83d shoe\x00".encode("utf-8", "surrogatepass")] * 8 + [b"caf\xe9"]
    for name, column in (
        (ESCI_EXAMPLES, "query"),
        (ESCI_PRODUCTS, "product_title"),
        (ESCI_PRODUCTS, "product_brand"),
    ):
        table = pq.read_table(folder / name)
        broken = pa.array(texts[: table.num_rows], pa.binary()).view(pa.string())
        pq.write_table(table.set_column(table.column_names.index(column), column, broken), folder / name)
    counts = import_esci(folder, tmp_path / "out")
    row = _read_task(tmp_path / "out", "esci_us")[0]
    assert row["query"] == row["ad_title"] == row["ad_description"] == "red \ufffd shoe"
    assert counts == ImportCounts({"esci_us": 8}, {"bad_encoding": 1})
    assert "caf\\\\xe9" in pq.read_table(tmp_path / "out" / "quarantine" / "esci.parquet")["text"][0].as_py()


@needs_shared_data
def test_shared_esci_sample_has_the_counts_of_its_readme(tmp_path: Path) -> None:
    counts = import_esci(SHARED_DATA / "esci_sample", tmp_path)
    assert counts == ImportCounts({"esci_us": 1_895, "esci_es": 412, "esci_jp": 511}, {})
    rows = [row for task in counts.rows for row in _read_task(tmp_path, task)]
    assert Counter(row["label"] for row in rows) == {3: 1_655, 2: 725, 0: 339, 1: 99}
    assert len({row["row_id"] for row in rows}) == 2_818
    assert not any("<br>" in (row["ad_description"] or "") for row in rows)
    again = tmp_path / "again"
    import_esci(SHARED_DATA / "esci_sample", again)
    assert content_digest(again) == content_digest(tmp_path)
