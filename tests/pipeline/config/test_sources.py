"""Source blocks are accepted only if an import can use them."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import build_config
from pipeline.data.importers.table import TableSource, import_table
from pipeline.errors import ConfigError
from tests.support.planted import planted_config

TABLE: dict[str, Any] = {
    "kind": "table",
    "path": "x.csv",
    "task": "two",
    "columns": {"query": "q", "ad_title": "t", "label": "g"},
    "labels": {"0": "bad", "1": "good"},
    "constants": {"market": "us"},
}


def _build(tmp_path: Path, *sources: dict[str, Any]) -> tuple[Any, ...]:
    return build_config(planted_config(tmp_path, "package:x", sources=list(sources)), "c.yaml").sources


def test_every_kind_of_source_has_a_block(tmp_path: Path) -> None:
    blocks = [{"kind": kind, "path": "x"} for kind in ("esci", "chorus", "wands", "qadsm")]
    assert [source.kind for source in _build(tmp_path, *blocks, TABLE)] == [
        "esci",
        "chorus",
        "wands",
        "qadsm",
        "table",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"query": "q"}, "constants": {}}, "no column gives ad_title, market"),
        ({"constants": {"market": "us", "query": "x"}}, "constants must leave out query: columns gives it"),
        ({"constants": {"market": "us", "row_id": "x"}}, "constants must leave out row_id: ids differ"),
        ({"constants": {"market": 1}}, "constants.market must be a text"),
        ({"constants": {"market": " "}}, "constants.market must not be empty"),
        ({"constants": {"market": "us", "weight": -1}}, "constants.weight is -1, outside 0 to"),
        (
            {"columns": {"query": "q", "ad_title": "t"}, "constants": {"market": "us", "label": 99}},
            "constants.label is 99, outside 0 to",
        ),
        (
            {"columns": {"query": "q", "ad_title": "t"}, "constants": {"market": "us", "label": 2}},
            "label 2 is outside the scale of task two",
        ),
        ({"constants": {"market": "us", "weight": "1"}}, "constants.weight must be a number"),
        (
            {"columns": {"query": "q", "ad_title": "t", "lable": "g"}},
            "lable is not a column of a row; did you mean label",
        ),
        ({"encoding": "utf-9"}, "utf-9 is not an encoding of text"),
        ({"encoding": "base64"}, "base64 is not an encoding of text"),
        ({"labels": {True: 1}}, "needs quotes"),
        ({"labels": {"x": "ugly"}}, "'ugly' is not one of task two; its labels: bad, good"),
        ({"labels": {"x": 2}}, "label 2 is outside the scale"),
        ({"task": "four"}, "task 'four', which is not configured; configured: two, three"),
        ({"path": "x.xls"}, "format of .*x.xls unknown; add format: csv"),
        ({"format": "xml"}, "format: "),
        ({"delimitr": ";"}, "delimitr is not a setting; did you mean sources.0.delimiter"),
        ({"name": "../x"}, "'../x' is not a valid name"),
    ],
)
def test_contradictory_table_is_refused_before_reading(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _build(tmp_path, {**TABLE, **changes})


def test_missing_folder_of_parts_stops_no_other_command(tmp_path: Path) -> None:
    (source,) = _build(tmp_path, {**TABLE, "path": str(tmp_path / "parts")})
    with pytest.raises(ConfigError, match="parts is not a file; point the import at"):
        import_table(source, tmp_path / "out", ("bad", "good"))


def test_tables_with_the_same_output_file_need_names(tmp_path: Path) -> None:
    other = {**TABLE, "path": "elsewhere/x.csv"}
    with pytest.raises(
        ConfigError,
        match="rows of elsewhere/x.csv would replace those of x.csv: both are named two.x; give one of them",
    ):
        _build(tmp_path, TABLE, other)
    assert len(_build(tmp_path, TABLE, {**other, "name": "y"})) == 2


def test_sources_of_every_kind_need_names_of_their_own(tmp_path: Path) -> None:
    german = {"kind": "qadsm", "path": "xglue.qadsm.de.train"}
    apart = [
        [{**TABLE, "name": "a"}, {**TABLE, "name": "b"}],
        [german, {"kind": "qadsm", "path": "xglue.qadsm.de.dev"}, {"kind": "qadsm", "path": "a.tsv"}],
    ]
    for sources in apart:
        assert len(_build(tmp_path, *sources)) == len(sources)
    together = [
        *([{"kind": kind, "path": path} for path in "ab"] for kind in ("esci", "wands", "chorus")),
        [{"kind": "qadsm", "path": path, "language": "en"} for path in ("a.tsv", "b.tsv")],
        [german, {"kind": "qadsm", "path": "copy/xglue.qadsm.fr.train", "language": "DE"}],
        [{"kind": "sample", "rows_per_task": rows, "unlabelled_rows_per_task": 1} for rows in (5, 6)],
    ]
    for sources in together:
        with pytest.raises(ConfigError, match="rows of .* would replace those of .*: both are named"):
            _build(tmp_path, *sources)


@pytest.mark.parametrize(
    ("path", "name"),
    [("Clicks 2024 (final).csv", "clicks-2024-final"), ("靴.csv", "table"), ("x" * 99, "x" * 63)],
)
def test_source_is_named_after_its_file(path: str, name: str) -> None:
    assert TableSource.model_validate({**TABLE, "path": path}).source_name == name
