"""Importer of WANDS, on made-up files in the published layout."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers.importer import ImportCounts
from pipeline.data.importers.wands import import_wands
from pipeline.data.reader import read_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from tests.support.imported import imported

QUERIES = "query_id\tquery\tquery_class\n0\tsalon chair\tMassage Chairs\n1\tblue  rug\tArea Rugs\n"
PRODUCT_HEADER = (
    "product_id\tproduct_name\tproduct_class\tcategory "
    "hierarchy\tproduct_description\tproduct_features\trating_count\taverage_rating\treview_count\n"
)
PRODUCTS = PRODUCT_HEADER + (
    '10\t"27"" salon <b>chair</b>"\tChairs\tFurniture / Chairs\t"two\nlines"\tcolor : red\t15.0\t4.5\t15.0\n'
    "11\trug\tRugs\tRugs\t\tmaterial : wool|color : blue\t\t\t\n"
)
LABELS = "id\tquery_id\tproduct_id\tlabel\n0\t0\t10\tExact\n1\t0\t11\tIrrelevant\n2\t1\t11\tPartial\n"


def _write(folder: Path, queries: str = QUERIES, products: str = PRODUCTS, labels: str = LABELS) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in (("query", queries), ("product", products), ("label", labels)):
        (folder / f"{name}.csv").write_text(text, newline="")
    return folder


def _rows(out_dir: Path) -> list[dict[str, Any]]:
    return read_partition(imported(out_dir, "task=wands/part-0.parquet")).to_pylist()


def test_label_becomes_a_row_with_its_query_and_product(tmp_path: Path) -> None:
    assert import_wands(_write(tmp_path / "in"), tmp_path / "out") == ImportCounts({"wands": 3}, {})
    rows = {row["row_id"]: row for row in _rows(tmp_path / "out")}
    assert {row_id: (row["query"], row["label"]) for row_id, row in rows.items()} == {
        "wands-0": ("salon chair", 2),
        "wands-1": ("salon chair", 0),
        "wands-2": ("blue rug", 1),
    }
    assert (rows["wands-0"]["ad_title"], rows["wands-0"]["ad_description"]) == (
        '27" salon chair',
        "Chairs\ntwo\nlines",
    )
    assert rows["wands-2"]["ad_description"] == "Rugs\nmaterial : wool|color : blue"
    assert rows["wands-2"]["market"] == "en" and rows["wands-2"]["official_split"] is None


def test_labels_without_query_or_product_are_rejected(tmp_path: Path) -> None:
    good = "".join(f"{n}\t0\t10\tExact\n" for n in range(10, 40))
    bad = "3\t7\t10\tExact\n4\t0\t99\tExact\n5\t0\t10\texact\n\t0\t10\tExact\n10\t1\t10\tExact\n6\t0\n"
    counts = import_wands(_write(tmp_path / "in", labels=LABELS + good + bad), tmp_path / "out")
    assert counts.rows == {"wands": 33}
    assert counts.rejected == {
        "empty_id": 1,
        "repeated_id": 1,
        "unknown_label": 1,
        "unknown_product": 1,
        "unknown_query": 1,
        "wrong_field_count": 1,
    }
    lines = pq.read_table(tmp_path / "out" / "quarantine" / "wands.parquet")["line"].to_pylist()
    assert lines == list(range(35, 41))


def test_broken_product_line_costs_only_its_own_labels(tmp_path: Path) -> None:
    more = "".join(f"{n}\tchair\tChairs\t\t\t\t\t\t\n" for n in range(20, 30))
    counts = import_wands(
        _write(
            tmp_path / "in", products=PRODUCTS + "12\tbroken\n" + more, labels=LABELS + "9\t0\t25\tPartial\n"
        ),
        tmp_path / "out",
    )
    assert counts == ImportCounts({"wands": 4}, {})
    kept = pq.read_table(tmp_path / "out" / "quarantine" / "wands-product.parquet").to_pylist()
    assert kept == [{"line": 5, "reason": "wrong_field_count", "text": "12\\tbroken"}]
    import_wands(_write(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out" / "quarantine" / "wands-product.parquet").exists()


def test_unfit_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="query.csv is not a file"):
        import_wands(tmp_path, tmp_path / "out")
    with pytest.raises(DamagedInputError, match="product.csv is empty"):
        import_wands(_write(tmp_path / "in", products=""), tmp_path / "out")
    with pytest.raises(DataRefusedError, match="label.csv has no column id, query_id, product_id, label"):
        import_wands(_write(tmp_path / "in", labels=LABELS.replace("\t", ",")), tmp_path / "out")
    with pytest.raises(DataRefusedError, match="label.csv gave no row"):
        import_wands(_write(tmp_path / "in", labels=LABELS.splitlines()[0]), tmp_path / "out")
