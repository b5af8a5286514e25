"""Labels are published completely and once, and are read back unchanged."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.files import file_sha256
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.publishing.unit_store import is_published
from pipeline.scoring.label_store import (
    UnitSource,
    compute_unit_id,
    publish_unit,
    read_errors,
    read_manifests,
    read_published,
    sweep_orphans,
)
from pipeline.scoring.row_errors import ERROR_SCHEMA
from pipeline.scoring.scoring_record import ScoringRecord, put_record, read_run
from tests.support.score_partitions import (
    BUNDLE_SHA256,
    files_below,
    published_row_ids,
    score_table,
    unit_manifest,
)

SOURCE = {
    "task": "search",
    "input_path": "task=search/a.parquet",
    "input_sha256": "1",
    "bundle_sha256": "2",
    "encoder_version": "1",
}


def test_published_labels_are_read_back_unchanged(tmp_path: Path) -> None:
    assert not is_published(tmp_path, "search-1")
    assert publish_unit(tmp_path, unit_manifest("search-1"), score_table(5)) is True
    assert is_published(tmp_path, "search-1")
    assert read_published(tmp_path).equals(score_table(5))
    [manifest] = read_manifests(tmp_path)
    assert (manifest.unit_id, manifest.num_labels, manifest.task) == ("search-1", 5, "search")


def test_recorded_units_keep_their_ids_and_are_read(tmp_path: Path) -> None:
    source = UnitSource(**SOURCE)
    assert compute_unit_id(source) == "search-32a76ab006e9efdc649d189f"
    assert compute_unit_id(source, (0, 10), ("all-tasks",)) == "search-a80f553c206740229329d408"
    file = tmp_path / "data" / "search-1" / "0a.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(score_table(2), file, compression="zstd")
    manifest = {
        "partition": "search-1",
        "task": "search",
        "input": {"path": "search.parquet", "digest": "1", "part": None, "rows": 2},
        "model_version": "1",
        "bundle_sha256": BUNDLE_SHA256,
        "encoder_version": "1",
        "rows": 2,
        "error_rows": 0,
        "published_at": "2026-01-31T00:00:00.000Z",
        "files": [{"path": "data/search-1/0a.parquet", "sha256": file_sha256(file), "rows": 2}],
        "profile": {},
    }
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "search-1.json").write_text(json.dumps(manifest))
    assert read_published(tmp_path).equals(score_table(2))
    assert publish_unit(tmp_path, unit_manifest("search-1"), score_table(2)) is False
    assert read_manifests(tmp_path)[0].to_json() == manifest


def test_unit_without_rows_is_published(tmp_path: Path) -> None:
    assert publish_unit(tmp_path, unit_manifest("p"), score_table(0))
    assert read_published(tmp_path).equals(score_table(0))


def test_empty_store_has_no_labels(tmp_path: Path) -> None:
    assert read_published(tmp_path).schema == SCORE_SCHEMA and read_published(tmp_path).num_rows == 0


def test_labels_of_one_model_can_be_read_alone(tmp_path: Path) -> None:
    publish_unit(tmp_path, unit_manifest("p1", bundle_sha256="1"), score_table(2, "old"))
    publish_unit(tmp_path, unit_manifest("p2", bundle_sha256="2"), score_table(3, "new"))
    assert read_published(tmp_path, "2").column("row_id").to_pylist() == ["new0", "new1", "new2"]
    assert read_published(tmp_path).num_rows == 5


def bad_rows(count: int) -> pa.Table:
    rows = [
        {
            "row_id": f"bad{n}",
            "row": n,
            "task": "search",
            "reason": "query is null",
            "bundle_sha256": "b" * 64,
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, ERROR_SCHEMA)


def test_rows_with_errors_are_published_beside_labels(tmp_path: Path) -> None:
    assert publish_unit(tmp_path, unit_manifest("p"), score_table(3), bad_rows(2))
    assert publish_unit(tmp_path, unit_manifest("p"), score_table(3), bad_rows(2)) is False
    [manifest] = read_manifests(tmp_path)
    assert (manifest.num_labels, manifest.num_errors) == (3, 2)
    assert read_errors(tmp_path).equals(bad_rows(2)) and published_row_ids(tmp_path) == ["r0", "r1", "r2"]
    assert len(files_below(tmp_path)) == 3
    next((tmp_path / "errors").rglob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DamagedInputError, match="does not match its manifest"):
        read_errors(tmp_path)


def test_run_excludes_units_of_replaced_inputs(tmp_path: Path) -> None:
    for unit_id in ("old", "kept", "new"):
        publish_unit(tmp_path, unit_manifest(unit_id), score_table(2, unit_id))
    with pytest.raises(ConfigError, match="no accepted run yet"):
        read_run(tmp_path)
    for run, unit_ids, accepted in (
        ("20260101-a", ("old", "kept"), True),
        ("20260102-b", ("new", "kept"), True),
        ("20260103-c", ("new",), False),
    ):
        put_record(tmp_path, ScoringRecord(run, unit_ids, accepted))
    assert sorted(read_run(tmp_path).column("row_id").to_pylist()) == ["kept0", "kept1", "new0", "new1"]
    assert sorted(read_run(tmp_path, "20260101-a").column("row_id").to_pylist()) == [
        "kept0",
        "kept1",
        "old0",
        "old1",
    ]
    assert sorted(read_run(tmp_path, "20260103-c").column("row_id").to_pylist()) == ["new0", "new1"]
    with pytest.raises(ConfigError, match="run not found in .*: 2026; there are 3, the last: 2026"):
        read_run(tmp_path, "2026")


def test_old_files_of_killed_scorers_are_removed(tmp_path: Path) -> None:
    publish_unit(tmp_path, unit_manifest("p"), score_table(2), bad_rows(1))
    for stray in ("data/p/stray.parquet", "data/q/.stray.parquet.1.tmp", "errors/p/stray.parquet"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"PAR1")
    assert sweep_orphans(tmp_path) == 0
    assert sweep_orphans(tmp_path, older_than_s=-1) == 3
    assert (
        published_row_ids(tmp_path) == ["r0", "r1"]
        and read_errors(tmp_path).num_rows == 1
        and len(files_below(tmp_path)) == 3
    )
    assert sweep_orphans(tmp_path / "nowhere") == 0


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("field", SOURCE)
def test_unit_id_depends_on_each_part_of_its_source(field: str) -> None:
    one = compute_unit_id(UnitSource(**SOURCE))
    assert compute_unit_id(UnitSource(**SOURCE)) == one
    assert compute_unit_id(UnitSource(**{**SOURCE, field: "other"})) != one


def test_parts_of_a_source_do_not_run_together() -> None:
    swapped = {
        **SOURCE,
        "input_sha256": SOURCE["bundle_sha256"],
        "bundle_sha256": SOURCE["input_sha256"],
    }
    shifted = {**SOURCE, "input_sha256": "12", "bundle_sha256": ""}
    assert len({compute_unit_id(UnitSource(**i)) for i in (SOURCE, swapped, shifted)}) == 3


def test_variants_give_other_unit_ids_in_any_order() -> None:
    ids = [
        compute_unit_id(UnitSource(**SOURCE), variants=variants)
        for variants in ((), ("a",), ("a", "b"), ("b", "a"))
    ]
    assert ids[0] == compute_unit_id(UnitSource(**SOURCE)) and ids[2] == ids[3]
    assert len(set(ids)) == 3


def test_long_task_names_with_equal_prefix_have_different_unit_ids() -> None:
    ids = [compute_unit_id(UnitSource(**{**SOURCE, "task": "t" * 50 + end})) for end in ("a", "b")]
    assert ids[0] != ids[1]
    assert all(len(i) <= 63 for i in ids)


def test_stray_error_file_of_a_published_unit_is_removed(tmp_path: Path) -> None:
    publish_unit(tmp_path, unit_manifest("p"), score_table(2))
    (tmp_path / "errors" / "p").mkdir(parents=True)
    (tmp_path / "errors" / "p" / "stray.parquet").write_bytes(b"PAR1")
    assert sweep_orphans(tmp_path, older_than_s=-1) == 1 and published_row_ids(tmp_path) == ["r0", "r1"]


def test_view_holds_the_first_published_label_of_each_row_task_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter((3e9, 1e9, 2e9, 1e9))
    for unit, task, model in (
        ("a", "search", "m"),
        ("z", "search", "m"),
        ("b", "ads", "m"),
        ("c", "search", "n"),
    ):
        monkeypatch.setattr(time, "time", lambda: next(days))
        table = score_table(2 if unit != "z" else 3)
        for name, value in (("task", task), ("bundle_sha256", model), ("model_version", unit)):
            number = table.schema.get_field_index(name)
            table = table.set_column(number, table.field(number), pa.array([value] * table.num_rows))
        publish_unit(tmp_path, unit_manifest(unit, task=task, bundle_sha256=model), table)
    rows = read_published(tmp_path).to_pylist()
    found = sorted((row["model_version"], row["task"], row["row_id"]) for row in rows)
    assert found == [
        ("b", "ads", "r0"), ("b", "ads", "r1"), ("c", "search", "r0"), ("c", "search", "r1"),
        ("z", "search", "r0"), ("z", "search", "r1"), ("z", "search", "r2"),
    ]  # fmt: skip
    assert read_published(tmp_path, "n").num_rows == 2
