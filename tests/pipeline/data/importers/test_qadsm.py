"""Importer of QADSM, on made-up files in the published layout."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.importers.importer import ImportCounts
from pipeline.data.importers.qadsm import import_qadsm
from pipeline.data.reader import read_partition
from pipeline.errors import ConfigError
from tests.support.imported import file_names, imported

LINES = 'buy "tv\tBest TV "sale"\tCheap\tGood\nshoes\tSofas\t\tBad\n'


def _write(path: Path, text: str = LINES) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_language_and_split_come_from_the_file_name(tmp_path: Path) -> None:
    assert import_qadsm(_write(tmp_path / "xglue.qadsm.de.dev"), tmp_path / "out") == ImportCounts(
        {"qadsm": 2}, {}
    )
    first, second = read_partition(
        imported(tmp_path / "out", "task=qadsm/qadsm-de-dev-0.parquet")
    ).to_pylist()
    assert (first["row_id"], first["query"], first["ad_title"], first["ad_description"]) == (
        "qadsm-de-dev-1",
        'buy "tv',
        'Best TV "sale"',
        "Cheap",
    )
    assert (first["label"], first["market"], first["official_split"]) == (1, "de", "dev")
    assert (second["label"], second["ad_description"]) == (0, None)


def test_languages_and_splits_share_a_folder(tmp_path: Path) -> None:
    for name in ("xglue.qadsm.en.train", "xglue.qadsm.en.dev", "xglue.qadsm.fr.test"):
        import_qadsm(_write(tmp_path / name), tmp_path / "out")
    names = file_names(tmp_path / "out" / "task=qadsm")
    assert names == ["qadsm-en-dev-0.parquet", "qadsm-en-train-0.parquet", "qadsm-fr-test-0.parquet"]
    row_ids = [
        i
        for name in names
        for i in read_partition(imported(tmp_path / "out" / "task=qadsm", name))["row_id"].to_pylist()
    ]
    assert len(set(row_ids)) == 6


@pytest.mark.parametrize(("file", "name"), [("ads.tsv", "qadsm-fr"), ("xglue.qadsm.en.dev", "qadsm-fr-dev")])
@pytest.mark.parametrize("language", ["fr", "FR"])
def test_language_option_overrides_the_file_name(tmp_path: Path, file: str, name: str, language: str) -> None:
    import_qadsm(_write(tmp_path / file), tmp_path / "out", language)
    rows = read_partition(imported(tmp_path / "out", f"task=qadsm/{name}-0.parquet"))
    assert rows["market"].to_pylist() == ["fr", "fr"]


def test_unknown_language_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "ads.tsv")
    with pytest.raises(ConfigError, match="names no language; add --language en"):
        import_qadsm(tmp_path / "ads.tsv", tmp_path / "out")
    with pytest.raises(ConfigError, match="'english' is not two letters"):
        import_qadsm(tmp_path / "ads.tsv", tmp_path / "out", "english")


def test_numeric_labels_are_read_and_bad_lines_rejected(tmp_path: Path) -> None:
    text = "q\tt\td\t1\r\n" * 9 + "q\tt\td\t0\r\nq\tt\td\r\nq\tt\td\tFair\r\n"
    counts = import_qadsm(_write(tmp_path / "xglue.qadsm.en.train", text), tmp_path / "out")
    assert counts == ImportCounts({"qadsm": 10}, {"unknown_label": 1, "wrong_field_count": 1})
    assert (
        sorted(
            read_partition(imported(tmp_path / "out", "task=qadsm/qadsm-en-train-0.parquet"))[
                "label"
            ].to_pylist()
        )
        == [0] + [1] * 9
    )
    kept = pq.read_table(tmp_path / "out" / "quarantine" / "qadsm-en-train.parquet")
    assert kept["line"].to_pylist() == [11, 12]
