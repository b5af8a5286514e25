"""Digest of rows: it depends on rows only."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import content_digest as module
from pipeline.data.content_digest import content_digest
from pipeline.errors import DamagedInputError, DataRefusedError
from pipeline.schema import ROW_SCHEMA
from tests.support.imported import equal_rows, publish_tables


def test_digest_is_independent_of_storage(tmp_path: Path) -> None:
    table = equal_rows(500, ad_description="a\x00b")
    order = list(range(500))
    random.Random(1).shuffle(order)
    variants: dict[str, tuple[pa.Table, dict[str, Any]]] = {
        "plain": (table, {"compression": "none"}),
        "zstd": (table, {"compression": "zstd", "row_group_size": 7}),
        "shuffled": (table.take(order), {"use_dictionary": False, "data_page_size": 100}),
        "columns": (table.select(ROW_SCHEMA.names[::-1]), {}),
        "without": (table.drop_columns(["subset", "official_split"]), {}),
        "large": (table.set_column(1, "query", table["query"].cast(pa.large_string())), {}),
        "encoded": (table.set_column(1, "query", table["query"].dictionary_encode()), {}),
    }
    for name, (rows, options) in variants.items():
        pq.write_table(rows, tmp_path / name, **options)
    assert len({content_digest(tmp_path / name) for name in variants}) == 1
    assert json.dumps(content_digest(tmp_path / "plain")) == '"' + content_digest(tmp_path / "plain") + '"'


def test_digest_depends_on_every_value_and_occurrence(tmp_path: Path) -> None:
    table, more = equal_rows(50), equal_rows(1)
    tables = [
        table,
        table.slice(1),
        pa.concat_tables([table, more]),
        pa.concat_tables([table, more, more]),
        table.slice(0, 0),
        equal_rows(50, "s"),
        equal_rows(50, label=2),
        equal_rows(50, label=None),
        equal_rows(50, weight=0.25),
        equal_rows(50, weight=None),
        equal_rows(50, ad_title="u"),
        equal_rows(50, ad_description="x"),
        equal_rows(50, ad_keyword="x"),
        equal_rows(50, ad_description=""),
        equal_rows(50, subset="x"),
        equal_rows(50, ad_description="x", ad_keyword="y"),
        equal_rows(50, ad_description="y", ad_keyword="x"),
        equal_rows(50, ad_title="t\x00market", market="us"),
        equal_rows(50, official_split="train"),
    ]
    digests = []
    for number, rows in enumerate(tables):
        pq.write_table(rows, tmp_path / str(number))
        digests.append(content_digest(tmp_path / str(number)))
    assert len(set(digests)) == len(tables)


def test_digest_depends_on_the_row_of_a_value(tmp_path: Path) -> None:
    table = equal_rows(2)
    swapped = table.set_column(1, "query", table["query"].take([1, 0]))
    for name, rows in (("a", table), ("b", swapped)):
        pq.write_table(rows, tmp_path / name)
    assert content_digest(tmp_path / "a") != content_digest(tmp_path / "b")


def test_folder_digest_depends_on_tasks_and_not_on_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DIGEST_ROWS", 3)
    publish_tables(tmp_path / "whole", one=equal_rows(10), two=equal_rows(2, "s"))
    publish_tables(tmp_path / "cut", "first", one=equal_rows(10).slice(0, 4))
    publish_tables(tmp_path / "cut", "second", one=equal_rows(10).slice(4), two=equal_rows(2, "s"))
    publish_tables(tmp_path / "turned", two=equal_rows(10), one=equal_rows(2, "s"))
    assert content_digest(tmp_path / "cut") == content_digest(tmp_path / "whole")
    assert content_digest(tmp_path / "turned") != content_digest(tmp_path / "whole")


def test_digest_refuses_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PAR1")
    with pytest.raises(DamagedInputError, match="not whole parquet"):
        content_digest(tmp_path / "x")
    pq.write_table(pa.table({"a": [[1]]}), tmp_path / "y")
    with pytest.raises(DataRefusedError, match="column a of .* is list"):
        content_digest(tmp_path / "y")
