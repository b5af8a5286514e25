"""Importer of tables by a mapping: every format, no lost record, nothing guessed."""

import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.commands.data import build_source
from pipeline.data.importers.importer import ImportCounts
from pipeline.data.importers.table import TableSource, import_table, stringify_labels
from pipeline.data.reader import read_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from tests.support.imported import file_names, imported

RECORDS = [
    {"q": "red shoe", "t": 'Shoe "X"', "d": "line\nline <b>two</b>", "g": "good"},
    {"q": "tv", "t": "Sony, 4K", "d": None, "g": "bad"},
]
BLOCK: dict[str, Any] = {
    "kind": "table",
    "task": "ads",
    "columns": {"query": "q", "ad_title": "t", "ad_description": "d", "label": "g"},
    "labels": {"good": 1, "bad": 0},
    "constants": {"market": "us"},
}


def _source(path: Path, **changes: Any) -> TableSource:
    if path.suffix in (".csv", ".tsv"):
        changes.setdefault("quoting", "csv")
    return TableSource.model_validate({**BLOCK, "path": path, **changes})


def _write(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


def _rows(out_dir: Path, name: str) -> list[dict[str, Any]]:
    return read_partition(imported(out_dir, f"task=ads/{name}-0.parquet")).to_pylist()


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    assert import_table(_source(_write(tmp_path / f"My clicks.{ending}")), tmp_path / "out") == ImportCounts(
        {"ads": 2}, {}
    )
    rows = _rows(tmp_path / "out", "my-clicks")
    assert [
        {name: row[name] for name in ("query", "ad_title", "ad_description", "label", "market")}
        for row in rows
    ] == [
        {
            "query": "red shoe",
            "ad_title": 'Shoe "X"',
            "ad_description": "line\nline two",
            "label": 1,
            "market": "us",
        },
        {"query": "tv", "ad_title": "Sony, 4K", "ad_description": None, "label": 0, "market": "us"},
    ]
    first, second = {"csv": (2, 4), "tsv": (2, 4), "parquet": (1, 2), "jsonl": (1, 2)}[ending]
    assert [row["row_id"] for row in rows] == [f"ads.my-clicks.{first}", f"ads.my-clicks.{second}"]


def test_hyphens_in_names_mix_no_ids_and_rejects(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("q,t,d,g\n" + "shoe,Shoe,,good\n" * 9 + "shoe,,,good\n")
    row_ids: set[str] = set()
    for task, name in (("a-b", "c"), ("a", "b-c")):
        import_table(_source(tmp_path / "x.csv", task=task, name=name), tmp_path / "out")
        path = imported(tmp_path / "out", f"task={task}/{name}-0.parquet")
        row_ids |= {*read_partition(path)["row_id"].to_pylist()}
    assert len(row_ids) == 18
    rejects = [path.name for path in (tmp_path / "out" / "quarantine").iterdir()]
    assert sorted(rejects) == ["a-b.c.parquet", "a.b-c.parquet"]


def test_labels_map_to_names_indices_or_null(tmp_path: Path) -> None:
    records = [{"q": "a", "t": "b", "g": label} for label in ("4", "2", "", "1")]
    path = _write(tmp_path / "x.csv", records)
    columns = {"query": "q", "ad_title": "t", "label": "g"}
    import_table(
        _source(path, columns=columns, labels={4: "great", 2: "fair", 1: 0, "": None}),
        tmp_path / "out",
        ("bad", "fair", "great"),
    )
    assert [row["label"] for row in _rows(tmp_path / "out", "x")] == [2, 1, None, 0]
    with pytest.raises(ConfigError, match="'great' of task ads is a name"):
        import_table(_source(path, columns=columns, labels={"4": "great"}), tmp_path / "out")
    with pytest.raises(ConfigError, match="'grate' is not one of task ads; its labels: bad, great"):
        import_table(
            _source(path, columns=columns, labels={"4": "grate"}), tmp_path / "out", ("bad", "great")
        )
    with pytest.raises(ConfigError, match="label 2 is outside the scale.* 0 to 1"):
        import_table(_source(path, columns=columns, labels={"4": 2}), tmp_path / "out", ("bad", "great"))


def test_labels_that_become_one_text_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="one text: 1 and '1', 2 and '2'; keep one of each"):
        stringify_labels({1: 0, "1": 1, "2": 0, 2: 1, 3: 1})
    for changed in (True, 1.0, None, date(2026, 1, 1), b"1"):
        with pytest.raises(ValueError, match="needs quotes"):
            stringify_labels({changed: 0})
    assert stringify_labels({1: 0, "02": 1, "yes": 2}) == {"1": 0, "02": 1, "yes": 2}


def test_unmapped_labels_are_indices_of_the_scale(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", [{"q": "a", "t": "b", "g": n} for n in (0, 1.0, "1", 0, 1, 2)])
    counts = import_table(
        _source(path, columns={"query": "q", "ad_title": "t", "label": "g"}, labels={}),
        tmp_path / "out",
        ("bad", "good"),
    )
    assert counts == ImportCounts({"ads": 5}, {"unknown_label": 1})


def test_rows_and_rejects_add_up_to_the_lines(tmp_path: Path) -> None:
    good = [f"query {n},title {n},x,good" for n in range(40)]
    bad = [
        ",title,x,good",
        "query,,x,good",
        "query,title,x,fair",
        "query,title,x",
        "caf\udce9,title,x,good",
        "query,\x01,x,good",
    ]
    content = "\r\n".join(["q,t,d,g", *good, *bad]).encode("utf-8", "surrogateescape")
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + content)
    counts = import_table(_source(tmp_path / "x.csv"), tmp_path / "out")
    assert counts.rows == {"ads": 40}
    assert counts.rejected == {
        "bad_encoding": 1,
        "empty_query": 1,
        "empty_title": 2,
        "unknown_label": 1,
        "wrong_field_count": 1,
    }
    kept = pq.read_table(tmp_path / "out" / "quarantine" / "ads.x.parquet").to_pylist()
    assert [(line["line"], line["reason"]) for line in kept] == [
        (42, "empty_query"),
        (43, "empty_title"),
        (44, "unknown_label"),
        (45, "wrong_field_count"),
        (46, "bad_encoding"),
        (47, "empty_title"),
    ]
    assert kept[4]["text"] == "caf\\xe9,title,x,good" and kept[5]["text"] == "query,\\x01,x,good"


def test_constants_are_cleaned_and_weights_finite(tmp_path: Path) -> None:
    weights = ["1", "nan", "0.5", "inf", "x", "2", *"11111111111"]
    path = _write(tmp_path / "x.csv", [{"q": "a", "t": "b", "w": weight} for weight in weights])
    columns = {"query": "q", "ad_title": "t", "weight": "w"}
    counts = import_table(_source(path, columns=columns, constants={"market": " us\n"}), tmp_path / "out")
    assert counts == ImportCounts({"ads": 14}, {"bad_weight": 3})
    assert {row["market"] for row in _rows(tmp_path / "out", "x")} == {"us"}


def test_latin_1_is_read_only_if_stated(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("q,t,d,g\ncafé,Café,é,good\n".encode("latin-1"))
    import_table(_source(tmp_path / "x.csv", encoding="latin-1"), tmp_path / "out")
    assert _rows(tmp_path / "out", "x")[0]["query"] == "café"
    with pytest.raises(
        DataRefusedError,
        match=(
            "1 of 1 lines .*bad_encoding.*line 2 holds bytes .* the stated encoding.*check format, encoding"
        ),
    ):
        import_table(_source(tmp_path / "x.csv"), tmp_path / "again")


def test_ids_weights_and_splits_of_the_source_are_kept(tmp_path: Path) -> None:
    records = [
        {"id": f"r{n}", "q": "a", "t": "b", "w": w, "s": "train", "m": "de"}
        for n, w in enumerate(["0.5", "", "x", "2", "1", "1"])
    ]
    columns = {
        "row_id": "id",
        "query": "q",
        "ad_title": "t",
        "weight": "w",
        "official_split": "s",
        "market": "m",
    }
    source = _source(
        _write(tmp_path / "x.csv", records),
        columns=columns,
        labels={},
        constants={"subset": "small", "label": 1},
    )
    assert import_table(source, tmp_path / "out") == ImportCounts({"ads": 5}, {"bad_weight": 1})
    rows = _rows(tmp_path / "out", "x")
    assert [
        (row["row_id"], row["weight"], row["label"], row["market"], row["official_split"], row["subset"])
        for row in rows[:2]
    ] == [
        ("r0", 0.5, 1, "de", "train", "small"),
        ("r1", None, 1, "de", "train", "small"),
    ]


def test_reimport_replaces_only_its_own_file(tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        import_table(_source(_write(tmp_path / f"{name}.csv")), tmp_path / "out")
    assert file_names(tmp_path / "out" / "task=ads") == ["a-0.parquet", "b-0.parquet"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DamagedInputError, "is empty"),
        (b"q,t,d,g\n", DataRefusedError, "gave no row; it holds no record"),
        (b"q,t,d\n1,2,3\n", DataRefusedError, "has no column g, only q, t, d"),
        (b"q,t,d,g,q\n1,2,3,good,5\n", DataRefusedError, "names column q twice"),
        (b"q;t;d;g\n1;2;3;good\n", DataRefusedError, "has no column q, t, d, g, only q;t;d;g"),
    ],
)
def test_unfit_table_leaves_the_old_rows(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    import_table(_source(_write(tmp_path / "x.csv")), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(error, match=message):
        import_table(_source(tmp_path / "x.csv"), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")} == before


def test_folder_or_missing_file_is_a_config_error(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "holds no file"), (tmp_path / "no.csv", "is not a file")):
        with pytest.raises(ConfigError, match=message):
            import_table(_source(path, format="csv"), tmp_path / "out")


def test_mapping_file_is_checked_like_a_config(tmp_path: Path) -> None:
    mapping = tmp_path / "m.yaml"
    mapping.write_text(yaml.safe_dump({k: v for k, v in BLOCK.items() if k != "kind"}))
    assert build_source("table", Path("x.csv"), mapping, None) == _source(Path("x.csv"), quoting="line")
    mapping.write_text("task: ads\ncolumns: {query: q, ad_titel: t}\nconstant: {market: us}\n")
    message = (
        r"ad_titel is not a column of a row; did you mean ad_title\?.*constant is not a setting; did you "
        r"mean constants"
    )
    with pytest.raises(ConfigError, match=message):
        build_source("table", Path("x.csv"), mapping, None)
    for text, message in (("- 1", "must be a YAML mapping"), ("a: [", "not readable YAML")):
        mapping.write_text(text)
        with pytest.raises(ConfigError, match=message):
            build_source("table", Path("x.csv"), mapping, None)
    with pytest.raises(ConfigError, match="does not exist"):
        build_source("table", Path("x.csv"), tmp_path / "no.yaml", None)
