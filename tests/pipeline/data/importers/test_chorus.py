"""Importer of Chorus ratings: made-up files in the published layout, and the real file if it exists."""

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers.chorus import import_chorus
from pipeline.data.importers.importer import ImportCounts
from pipeline.data.reader import read_partition
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from tests.support.imported import file_names, imported
from tests.support.places import SHARED_DATA

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is not there: the real data does not ship"
)

TSV_HEADER = (
    "query",
    "docid",
    "name",
    "final_rating",
    "title",
    "short_description",
    "supplier",
    "attributes",
)
HEADER_LINE = "\t".join(TSV_HEADER).encode() + b"\n"


def _write_tsv(path: Path, *lines: tuple[str, ...]) -> Path:
    path.write_bytes(
        "".join("\t".join(line) + "\n" for line in (TSV_HEADER, *lines)).encode("utf-8", "surrogatepass")
    )
    return path


def _rated(
    docid: str = "7", query: str = "tv", rating: str = "3", title: str = "Sony TV", text: str = "4K"
) -> tuple[str, ...]:
    return (query, docid, "name", rating, title, text, "Sony", "size: 1 | colour: red")


def _rows(out_dir: Path) -> list[dict[str, Any]]:
    return read_partition(imported(out_dir, "task=electronics/part-0.parquet")).to_pylist()


def test_rating_becomes_a_row_of_electronics(tmp_path: Path) -> None:
    lines = (_rated(title='"15"" TV"'), _rated("8", rating="0", text=""))
    counts = import_chorus(_write_tsv(tmp_path / "r.tsv", *lines), tmp_path / "out")
    assert counts == ImportCounts({"electronics": 2}, {})
    rows = {row["ad_title"]: row for row in _rows(tmp_path / "out")}
    assert (rows['15" TV']["label"], rows['15" TV']["ad_description"], rows['15" TV']["market"]) == (
        3,
        "Sony\n4K",
        "en",
    )
    assert (rows["Sony TV"]["label"], rows["Sony TV"]["ad_description"]) == (0, "Sony")


def test_repeated_pair_gets_a_numbered_row_id(tmp_path: Path) -> None:
    import_chorus(
        _write_tsv(tmp_path / "r.tsv", _rated(), _rated(rating="2"), _rated(query="tv set")), tmp_path / "out"
    )
    row_ids = [r["row_id"] for r in _rows(tmp_path / "out")]
    assert len(set(row_ids)) == 3
    assert row_ids[1] == f"{row_ids[0]}-2"


def test_rejected_ratings_have_their_line_number(tmp_path: Path) -> None:
    unusable = (
        _rated("8", rating="4"),
        _rated("9", rating=""),
        _rated(""),
        _rated("10", title=" "),
        _rated("11", query=" "),
        ("tv", "7"),
    )
    counts = import_chorus(_write_tsv(tmp_path / "r.tsv", *[_rated()] * 30, *unusable), tmp_path / "out")
    assert counts.rows == {"electronics": 30}
    assert counts.rejected == {
        "empty_id": 1,
        "empty_query": 1,
        "empty_title": 1,
        "unknown_label": 2,
        "wrong_field_count": 1,
    }
    kept = pq.read_table(tmp_path / "out" / "quarantine" / "chorus.parquet").to_pylist()
    assert [line["line"] for line in kept] == list(range(32, 38))
    assert kept[-1] == {"line": 37, "reason": "wrong_field_count", "text": "tv\\t7"}


def test_nul_and_surrogates_become_clean_utf_8(tmp_path: Path) -> None:
    import_chorus(
        _write_tsv(tmp_path / "r.tsv", _rated(query="t\ud83dv\x00", title="a\x00b")), tmp_path / "out"
    )
    assert (_rows(tmp_path / "out")[0]["query"], _rows(tmp_path / "out")[0]["ad_title"]) == (
        "t\ufffdv",
        "a b",
    )


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DamagedInputError, "is empty; download it again"),
        (HEADER_LINE + "\t".join(_rated()).encode()[:-3], DamagedInputError, "ends in the middle of a line"),
        (
            HEADER_LINE + b"tv\t7\n",
            DataRefusedError,
            "1 of 1 lines .* line 2 has more or fewer fields than the header: 'tv.*7'",
        ),
        (
            HEADER_LINE + b'tv\t"7\n',
            DataRefusedError,
            "line 2 has text behind a closing quote|line 2 opens a quote",
        ),
        (b"PAR1\xff\xfe\n", DamagedInputError, "does not begin with a header line in utf-8"),
        (b"query,docid\ntv,7\n", DataRefusedError, "has no column query, docid, final_rating"),
        (HEADER_LINE, DataRefusedError, "gave no row; it holds no record"),
    ],
)
def test_unfit_file_publishes_nothing(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / "r.tsv").write_bytes(content)
    with pytest.raises(error, match=message):
        import_chorus(tmp_path / "r.tsv", tmp_path / "out")
    assert not file_names(tmp_path / "out")


def test_gzip_is_read_whole_or_refused(tmp_path: Path) -> None:
    text = HEADER_LINE + "".join("\t".join(_rated()) + "\n" for _ in range(500)).encode()
    packed = gzip.compress(text)
    (tmp_path / "r.tsv.gz").write_bytes(packed)
    assert import_chorus(tmp_path / "r.tsv.gz", tmp_path / "out").rows == {"electronics": 500}
    (tmp_path / "r.tsv.gz").write_bytes(packed[:-20])
    with pytest.raises(DamagedInputError, match="r.tsv.gz cannot be read"):
        import_chorus(tmp_path / "r.tsv.gz", tmp_path / "cut")


def test_folder_in_place_of_the_file_is_a_config_error(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="is not a file; point the import at"):
            import_chorus(wrong, tmp_path / "out")


@needs_shared_data
def test_shared_chorus_ratings_have_the_counts_of_their_readme(tmp_path: Path) -> None:
    counts = import_chorus(SHARED_DATA / "chorus_electronics" / "query_product_ratings.tsv", tmp_path)
    assert counts == ImportCounts({"electronics": 3_188}, {})
    rows = _rows(tmp_path)
    assert Counter(row["label"] for row in rows) == {0: 1_471, 1: 198, 2: 93, 3: 1_426}
    assert len({row["row_id"] for row in rows}) == 3_188
    assert len({row["query"] for row in rows}) == 135
