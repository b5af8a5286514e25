"""Promises of pipeline/sources.py, on made-up data in the original layouts and on the real data where it lies beside us."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import SHARED_DATA

from pipeline import sources
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.reader import read_partition
from pipeline.sources import ESCI_EXAMPLES, ESCI_PRODUCTS, import_chorus, import_esci

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is not there: the real data does not ship")

TSV_HEADER = ("query", "docid", "name", "final_rating", "title", "short_description", "supplier", "attributes")
HEADER_LINE = "\t".join(TSV_HEADER).encode() + b"\n"


def _example(example_id: int, **changes: Any) -> dict[str, Any]:
    values = {"query": "shoe", "query_id": 1, "product_id": "B1", "product_locale": "us", "esci_label": "E"}
    return {"example_id": example_id} | values | {"small_version": 0, "large_version": 1, "split": "train"} | changes


def _product(product_id: str, **changes: Any) -> dict[str, Any]:
    texts = {"title": f"Title {product_id}", "description": None, "bullet_point": None, "brand": None, "color": None}
    return {"product_id": product_id} | {f"product_{k}": v for k, v in (texts | {"locale": "us"} | changes).items()}


EXAMPLES = [_example(0), _example(1, product_locale="jp", esci_label="S"), _example(2, product_locale="es", esci_label="C")]
PRODUCTS = [_product("B1"), _product("B1", locale="jp", title="靴"), _product("B1", locale="es", title="zapato")]


def _write_esci(folder: Path, examples: list[dict] = EXAMPLES, products: list[dict] = PRODUCTS) -> Path:
    folder.mkdir(exist_ok=True)
    texts = pa.schema([(name, pa.string()) for name in (products[0] if products else ())])
    pq.write_table(pa.Table.from_pylist(examples), folder / ESCI_EXAMPLES)
    pq.write_table(pa.Table.from_pylist(products, texts), folder / ESCI_PRODUCTS)
    return folder


def _write_tsv(path: Path, *lines: tuple[str, ...]) -> Path:
    path.write_bytes("".join("\t".join(line) + "\n" for line in (TSV_HEADER, *lines)).encode("utf-8", "surrogatepass"))
    return path


def _rated(docid: str = "7", query: str = "tv", rating: str = "3", title: str = "Sony TV", text: str = "4K") -> tuple[str, ...]:
    return (query, docid, "name", rating, title, text, "Sony", "size: 1 | colour: red")


def _read_task(out_dir: Path, task: str) -> list[dict[str, Any]]:
    return read_partition(out_dir / f"task={task}" / "part-0.parquet").to_pylist()


def _all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_locale_becomes_a_task_with_its_own_products(tmp_path: Path) -> None:
    counts = import_esci(_write_esci(tmp_path / "in"), tmp_path / "out")
    assert counts == sources.ImportCounts({"esci_us": 1, "esci_es": 1, "esci_jp": 1}, {})
    empty = {"ad_description": None, "ad_keyword": None, "landing_page": None, "weight": None}
    assert _read_task(tmp_path / "out", "esci_jp") == [
        {"row_id": "esci-jp-1", "query": "shoe", "ad_title": "靴", "market": "jp", "label": 2} | empty
    ]
    assert _read_task(tmp_path / "out", "esci_es")[0]["ad_title"] == "zapato"


def test_labels_run_from_irrelevant_to_exact(tmp_path: Path) -> None:
    examples = [_example(i, esci_label=label) for i, label in enumerate("ICSE")]
    import_esci(_write_esci(tmp_path / "in", examples), tmp_path / "out")
    assert [row["label"] for row in _read_task(tmp_path / "out", "esci_us")] == [0, 1, 2, 3]


def test_a_description_opens_with_brand_and_colour_and_falls_back_on_bullet_points(tmp_path: Path) -> None:
    products = [
        _product("B1", description="<p>soft</p>", bullet_point="one\ntwo", brand="Nike", color="Red"),
        _product("B2", bullet_point="one\ntwo", color="Red"),
    ]
    import_esci(_write_esci(tmp_path / "in", [_example(0), _example(1, product_id="B2")], products), tmp_path / "out")
    assert [row["ad_description"] for row in _read_task(tmp_path / "out", "esci_us")] == ["Nike, Red\nsoft", "Red\none\ntwo"]


def test_every_judgement_that_is_left_out_is_counted_under_one_reason(tmp_path: Path) -> None:
    examples = [
        _example(0),
        _example(1, product_id="B404"),
        _example(2, product_id=None),
        _example(3, product_id="B2"),
        _example(4, esci_label="X"),
        _example(5, esci_label=None),
        _example(6, product_locale="fr", esci_label="X"),
        _example(7, product_locale=None),
        _example(8, query=" \x00"),
        _example(9, product_id="B3"),
        _example(None),  # type: ignore[arg-type]
    ]
    products = [_product("B1"), _product("B2", title=" "), _product("B3", locale="es"), _product(None)]  # type: ignore[arg-type]
    counts = import_esci(_write_esci(tmp_path / "in", examples, products), tmp_path / "out")
    assert counts.rows == {"esci_us": 1, "esci_es": 0, "esci_jp": 0}
    assert counts.skipped == {
        "id is missing": 1, "label is unknown": 2, "locale is unknown": 2,
        "product is absent": 3, "query is empty": 1, "title is empty": 1,
    }  # fmt: skip
    assert not (tmp_path / "out" / "task=esci_es").exists()


def test_rows_are_sorted_by_query_then_row_id_whatever_the_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [_example(i, query=f"q{i * 7 % 5}", product_id=f"B{i % 3}") for i in range(40)]
    products = [_product(f"B{i}") for i in range(3)]
    import_esci(_write_esci(tmp_path / "in", examples, products), tmp_path / "out")
    rows = _read_task(tmp_path / "out", "esci_us")
    assert [(r["query"], r["row_id"]) for r in rows] == sorted((e["query"], f"esci-us-{e['example_id']}") for e in examples)
    assert all(r["ad_title"] == f"Title B{int(r['row_id'].split('-')[-1]) % 3}" for r in rows)
    import_esci(_write_esci(tmp_path / "turned", examples[::-1], products[::-1]), tmp_path / "again")
    assert _all_bytes(tmp_path / "again") == _all_bytes(tmp_path / "out")
    monkeypatch.setattr(sources, "_PASS_ROWS", 7)
    monkeypatch.setattr(sources, "_READ_ROWS", 2)
    import_esci(tmp_path / "in", tmp_path / "passes")
    assert _read_task(tmp_path / "passes", "esci_us") == rows


def test_importing_again_gives_the_same_bytes_and_leaves_other_tasks_alone(tmp_path: Path) -> None:
    out_dir, tsv = tmp_path / "out", _write_tsv(tmp_path / "ratings.tsv", _rated())
    import_esci(_write_esci(tmp_path / "in"), out_dir)
    import_chorus(tsv, out_dir)
    before = _all_bytes(out_dir)
    assert len(before) == 4
    import_esci(tmp_path / "in", out_dir)
    import_chorus(tsv, out_dir)
    assert _all_bytes(out_dir) == before


def test_a_pair_judged_twice_stays_twice_with_two_row_ids(tmp_path: Path) -> None:
    import_esci(_write_esci(tmp_path / "in", [_example(0), _example(1)]), tmp_path / "out")
    import_chorus(_write_tsv(tmp_path / "r.tsv", _rated(), _rated(rating="2"), _rated(query="tv set")), tmp_path / "out")
    assert [r["row_id"] for r in _read_task(tmp_path / "out", "esci_us")] == ["esci-us-0", "esci-us-1"]
    row_ids = [r["row_id"] for r in _read_task(tmp_path / "out", "electronics")]
    assert len(set(row_ids)) == 3
    assert row_ids[1] == f"{row_ids[0]}-2"


@pytest.mark.parametrize(
    ("examples", "products", "message"),
    [
        ([_example(0), _example(0, query="boot")], PRODUCTS, "example of .* esci-us-0 is listed 2 times"),
        ([_example(0)], [*PRODUCTS, _product("B1")], "us product of .* B1 is listed 2 times"),
        ([{k: v for k, v in _example(0).items() if k != "esci_label"}], PRODUCTS, "has no column esci_label, only example_id"),
        ([_example(0)], [{"product_id": "B1", "product_locale": "us"}], "has no column product_title, product_description"),
        ([_example(0, query=["shoe"])], PRODUCTS, "has columns that are no text"),
        ([_example(0, product_id="B404")], PRODUCTS, "gave no row.*'product is absent': 1"),
        ([_example(0)], [], "has no column product_id"),
    ],
)
def test_an_unfit_source_is_refused_and_publishes_nothing(tmp_path: Path, examples: list, products: list, message: str) -> None:
    with pytest.raises(DataRefusedError, match=message):
        import_esci(_write_esci(tmp_path / "in", examples, products), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not _all_bytes(tmp_path / "out")


@pytest.mark.parametrize("name", [ESCI_EXAMPLES, ESCI_PRODUCTS])
@pytest.mark.parametrize("size_share", [0.0, 0.5, 0.99])
def test_a_truncated_parquet_file_is_damage_and_the_earlier_import_stays(tmp_path: Path, name: str, size_share: float) -> None:
    import_esci(_write_esci(tmp_path / "in"), tmp_path / "out")
    before = _all_bytes(tmp_path / "out")
    content = (tmp_path / "in" / name).read_bytes()
    (tmp_path / "in" / name).write_bytes(content[: int(len(content) * size_share)])
    with pytest.raises(DamagedInputError, match=f"{name} is not whole parquet.*download it again"):
        import_esci(tmp_path / "in", tmp_path / "out")
    assert _all_bytes(tmp_path / "out") == before


def test_a_wrong_folder_or_file_is_a_config_error(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=f"{ESCI_EXAMPLES} is not a file; point the import at"):
            import_esci(wrong, tmp_path / "out")
        with pytest.raises(ConfigError, match="is not a file; point the import at"):
            import_chorus(wrong, tmp_path / "out")


def test_nul_and_surrogates_in_any_text_become_clean_utf_8(tmp_path: Path) -> None:
    surrogate = pa.array(["red \ud83d shoe\x00".encode("utf-8", "surrogatepass")], pa.binary()).view(pa.string())
    folder = _write_esci(tmp_path / "in", [_example(0)], [_product("B1")])
    for name, column in ((ESCI_EXAMPLES, "query"), (ESCI_PRODUCTS, "product_title"), (ESCI_PRODUCTS, "product_brand")):
        table = pq.read_table(folder / name)
        pq.write_table(table.set_column(table.column_names.index(column), column, surrogate), folder / name)
    import_esci(folder, tmp_path / "out")
    row = _read_task(tmp_path / "out", "esci_us")[0]
    assert row["query"] == row["ad_title"] == row["ad_description"] == "red \ufffd shoe"
    import_chorus(_write_tsv(tmp_path / "r.tsv", _rated(query="t\ud83dv\x00", title="a\x00b")), tmp_path / "out")
    row = _read_task(tmp_path / "out", "electronics")[0]
    assert (row["query"], row["ad_title"]) == ("t\ufffdv", "a b")


def test_a_rating_becomes_a_row_of_electronics(tmp_path: Path) -> None:
    lines = (_rated(title='"15"" TV"'), _rated("8", rating="0", text=""))
    counts = import_chorus(_write_tsv(tmp_path / "r.tsv", *lines), tmp_path / "out")
    assert counts == sources.ImportCounts({"electronics": 2}, {})
    rows = {row["ad_title"]: row for row in _read_task(tmp_path / "out", "electronics")}
    assert (rows['15" TV']["label"], rows['15" TV']["ad_description"], rows['15" TV']["market"]) == (3, "Sony\n4K", "en")
    assert (rows["Sony TV"]["label"], rows["Sony TV"]["ad_description"]) == (0, "Sony")


def test_ratings_that_are_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    unusable = (_rated("8", rating="4"), _rated("9", rating=""), _rated(""), _rated("10", title=" "), _rated("11", query=" "))
    counts = import_chorus(_write_tsv(tmp_path / "r.tsv", _rated(), *unusable), tmp_path / "out")
    assert counts.rows == {"electronics": 1}
    assert counts.skipped == {"label is unknown": 2, "product is absent": 1, "query is empty": 1, "title is empty": 1}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DamagedInputError, "ends in the middle of a line"),
        (HEADER_LINE + "\t".join(_rated()).encode()[:-3], DamagedInputError, "ends in the middle of a line"),
        (HEADER_LINE + b"tv\t7\n", DamagedInputError, "line 2 has 2 fields, its header 8"),
        (HEADER_LINE + b'tv\t"7\n', DamagedInputError, "line 2 is not tab-separated text"),
        (b"PAR1\xff\xfe\n", DamagedInputError, "is not UTF-8"),
        (b"query,docid\ntv,7\n", DataRefusedError, "has no column query, docid, final_rating"),
        (HEADER_LINE, DataRefusedError, "gave no row"),
    ],
)
def test_an_unfit_tsv_is_refused(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "r.tsv").write_bytes(content)
    with pytest.raises(error, match=message):
        import_chorus(tmp_path / "r.tsv", tmp_path / "out")


@needs_shared_data
def test_the_shared_esci_sample_gives_the_counts_of_its_readme(tmp_path: Path) -> None:
    counts = import_esci(SHARED_DATA / "esci_sample", tmp_path)
    assert counts == sources.ImportCounts({"esci_us": 1_895, "esci_es": 412, "esci_jp": 511}, {})
    rows = [row for task in counts.rows for row in _read_task(tmp_path, task)]
    assert Counter(row["label"] for row in rows) == {3: 1_655, 2: 725, 0: 339, 1: 99}
    assert len({row["row_id"] for row in rows}) == 2_818
    assert not any("<br>" in (row["ad_description"] or "") for row in rows)


@needs_shared_data
def test_the_shared_chorus_ratings_give_the_counts_of_their_readme(tmp_path: Path) -> None:
    counts = import_chorus(SHARED_DATA / "chorus_electronics" / "query_product_ratings.tsv", tmp_path)
    assert counts == sources.ImportCounts({"electronics": 3_188}, {})
    rows = _read_task(tmp_path, "electronics")
    assert Counter(row["label"] for row in rows) == {0: 1_471, 1: 198, 2: 93, 3: 1_426}
    assert len({row["row_id"] for row in rows}) == 3_188
    assert len({row["query"] for row in rows}) == 135
