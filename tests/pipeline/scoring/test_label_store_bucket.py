"""Rows in a bucket, and labels published in one."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import build_config
from pipeline.errors import ConfigError, DataRefusedError, RetryableError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import work_units
from pipeline.scoring.label_store import (
    publish_unit,
    read_errors,
    read_manifests,
    read_published,
    sweep_orphans,
)
from pipeline.scoring.scoring_record import newest_records, put_record, read_run
from pipeline.scoring.work_units import WorkUnit, insert_date, plan_units
from pipeline.storage.object_store import Bucket, Store
from tests.support.planted import planted_config, planted_rows
from tests.support.score_partitions import unit_manifest
from tests.support.scoring_world import ROWS, World, full_plan, plan
from tests.support.servers import ProxyFaults, proxy


class BucketWorld(World):
    """World whose rows and labels are in a bucket."""

    def __init__(self, root: Path, tiny_llama: Path) -> None:
        super().__init__(root, tiny_llama)
        self.local = self.config
        self.place = f"s3://labels/{root.name}"
        self.bucket = Bucket(self.place)
        for path in (root / "to_score").rglob("*.parquet"):
            self.bucket.put(f"rows/{path.relative_to(root / 'to_score')}", path.read_bytes())
        data, scoring = (
            {"to_score": f"{self.place}/rows"},
            {**self.plain["scoring"], "scores": f"{self.place}/scores"},
        )
        self.config = build_config({**self.plain, "data": data, "scoring": scoring}, "test")


@pytest.fixture
def world(tmp_path: Path, tiny_llama: Path, s3: str) -> BucketWorld:
    return BucketWorld(tmp_path, tiny_llama)


def parquet(rows: list[dict[str, object]], group_rows: int = 4) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), file, row_group_size=group_rows)
    return file.getvalue()


def test_bucket_and_folder_give_equal_labels_once(world: BucketWorld) -> None:
    scorer, units = world.scorer(), world.units()
    assert [scorer.score_unit(unit).error for unit in units] == ["", ""] and world.units() == []
    there = read_published(world.config.scores_location).sort_by("row_id")
    world.config = world.local
    scorer = world.scorer()
    assert [scorer.score_unit(unit).error for unit in world.units()] == ["", ""]
    assert there.num_rows == 2 * ROWS and there.equals(
        read_published(world.config.scores_location).sort_by("row_id")
    )


def test_plain_pyarrow_reads_the_files_of_manifests(world: BucketWorld, s3: str) -> None:
    scorer = world.scorer()
    for unit in world.units():
        scorer.score_unit(unit)
    system = pyarrow.fs.S3FileSystem(
        endpoint_override=s3.removeprefix("http://"), scheme="http", region="us-east-1"
    )
    root = world.config.scores_location.removeprefix("s3://")
    manifests = [
        json.loads(system.open_input_stream(one.path).read())
        for one in system.get_file_info(pyarrow.fs.FileSelector(f"{root}/manifests"))
    ]
    files = [f"{root}/{entry['path']}" for manifest in manifests for entry in manifest["files"]]
    found = ds.dataset(files, filesystem=system, format="parquet").to_table().sort_by("row_id")
    assert found.equals(read_published(world.config.scores_location).sort_by("row_id"))


def test_large_object_is_scored_in_parts_with_errors_apart(
    world: BucketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 10)
    rows = planted_rows("two", 32, 7, labeled=False)
    rows[30]["ad_title"] = ""
    world.bucket.put("rows/task=two/part-7-large.parquet", parquet(rows))
    units = world.units()
    assert [unit.part for unit in units if "part-7-large" in unit.path] == [
        (0, 10),
        (10, 20),
        (20, 30),
        (30, 32),
    ]
    scorer = world.scorer()
    assert not any(scorer.score_unit(unit).error for unit in units)
    found = {
        row_id
        for row_id in read_published(world.config.scores_location).column("row_id").to_pylist()
        if row_id.startswith("two-7-")
    }
    assert found == {row["row_id"] for row in rows if row["ad_title"]}
    assert read_errors(world.config.scores_location).column("row").to_pylist() == [30]


def test_planning_lists_places_and_reads_only_new_footers(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_units, "UNIT_ROWS", 8000)
    place, trouble, opened, read = f"s3://labels/{tmp_path.name}", ProxyFaults(), [], []
    file = parquet(planted_rows("two", 12_000, 1, labeled=False), 6000)
    for number in range(12):
        Bucket(place).put(f"rows/task=two/part-{number:02d}.parquet", file)
    scoring = {"scores": f"{place}/scores"}
    config = build_config(
        {**planted_config(tmp_path, "nowhere", scoring=scoring), "data": {"to_score": f"{place}/rows"}},
        "test",
    )
    (first, *_), _ = plan(config, "b")
    publish_unit(
        config.scores_location,
        unit_manifest(first.unit_id, bundle_sha256="b"),
        SCORE_SCHEMA.empty_table(),
    )
    init, get_range = Bucket.__init__, Bucket.get_range

    def ranged(bucket: Bucket, key: str, version: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return get_range(bucket, key, version, start, end)

    monkeypatch.setattr(Bucket, "__init__", lambda self, url: (opened.append(url), init(self, url))[1])
    monkeypatch.setattr(Bucket, "get_range", ranged)
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        planned = full_plan(config, "b")
        to_do, published = planned.to_do, planned.published
    assert (
        published == [first]
        and [unit.part for unit in to_do] == [(8000, 12_000)] + [(0, 8000), (8000, 12_000)] * 11
    )
    assert [unit.path[-10:-8] for unit in to_do] == sorted(unit.path[-10:-8] for unit in to_do)
    listings = [path for method, path in trouble.requests if path.strip("/") == "labels"]
    assert {method for method, _ in trouble.requests} == {"GET"} and len(listings) == 3, (
        "rows, what is published, and what is known of the rows"
    )
    assert sorted(opened) == [f"{place}/rows", f"{place}/scores"]
    assert len(read) == len(trouble.requests) - len(listings) == 12 and max(read) <= 65_536 < len(file)
    planned.inputs.save()
    read.clear()
    assert plan(config, "b") == (to_do, published) and read == []


def test_unit_published_after_planning_is_not_scored_again(world: BucketWorld) -> None:
    scorer, late = world.scorer(), world.scorer()
    unit = world.units()[0]
    assert scorer.score_unit(unit).labels == ROWS
    late.actor.predictor = None
    assert (
        late.score_unit(unit).labels == ROWS and read_published(world.config.scores_location).num_rows == ROWS
    )


def test_changed_object_is_not_published_under_its_old_id(
    world: BucketWorld,
) -> None:
    scorer, (unit, _) = world.scorer(), world.units()
    world.bucket.put(
        f"rows/{unit.path.partition('/rows/')[2]}", parquet(planted_rows("two", ROWS, 99, labeled=False))
    )
    result = scorer.score_unit(unit)
    assert (
        result.retry
        and "changed while it was read" in result.error
        and read_manifests(world.config.scores_location) == []
    )
    again = world.units()
    assert unit.unit_id not in {one.unit_id for one in again} and scorer.score_unit(again[0]).error == ""


def test_removed_object_is_retried(world: BucketWorld) -> None:
    scorer, (unit, _) = world.scorer(), world.units()
    world.bucket.delete(f"rows/{unit.path.partition('/rows/')[2]}")
    result = scorer.score_unit(unit)
    assert result.retry and "was deleted while it was read" in result.error and len(world.units()) == 1


def test_invalid_parquet_object_fails_only_its_unit(world: BucketWorld) -> None:
    world.bucket.put("rows/task=two/part-5.parquet", b"PAR1 and no more")
    scorer = world.scorer()
    results = [scorer.score_unit(unit) for unit in world.units()]
    assert sorted("not whole" in one.error or "damaged" in one.error for one in results) == [
        False,
        False,
        True,
    ]
    assert read_published(world.config.scores_location).num_rows == 2 * ROWS


@pytest.mark.parametrize("point", ["put", "put_if_absent"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_scorer_killed_around_a_write_leaves_all_or_nothing(
    world: BucketWorld, monkeypatch: pytest.MonkeyPatch, point: str, done: bool
) -> None:
    class Gone(BaseException):
        """Stands for the end of the process."""

    unit, write = world.units()[0], getattr(Bucket, point)
    scorer = world.scorer()

    def gone_too(*_: object) -> None:
        raise Gone

    def gone(store: Store, key: str, content: bytes) -> None:
        if done:
            write(store, key, content)
        for name in ("exists", "delete"):  # so that it cannot clean up either
            monkeypatch.setattr(Bucket, name, gone_too)
        raise Gone

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, point, gone)
        with pytest.raises(Gone):
            scorer.score_unit(unit)
    monkeypatch.undo()
    published = point == "put_if_absent" and done
    assert read_published(world.config.scores_location).num_rows == ROWS * published
    assert len(world.units()) == 2 - published
    for left in world.units():
        assert world.scorer().score_unit(left).error == ""
    assert read_published(world.config.scores_location).num_rows == 2 * ROWS
    assert sweep_orphans(world.config.scores_location, older_than_s=-1) == (
        0 if published or (point == "put" and not done) else 1
    )
    assert read_published(world.config.scores_location).num_rows == 2 * ROWS


def test_scoring_record_is_stored_beside_the_labels(world: BucketWorld) -> None:
    scorer, units, scores = world.scorer(), world.units(), world.config.scores_location
    results = [scorer.score_unit(unit) for unit in units]
    record = world.build_record("20260131-a", units, results)
    assert put_record(scores, record) == f"{scores}/runs/20260131-a.json"
    assert next(newest_records(scores)).counts.labels == 2 * ROWS
    assert read_run(scores).num_rows == read_run(scores, "20260131-a").num_rows == 2 * ROWS
    with pytest.raises(ConfigError, match="run not found in .*: b; there are 1, the last: 20260131-a"):
        read_run(scores, "b")


def test_days_in_a_bucket_are_separate_and_empty_one_refused(world: BucketWorld) -> None:
    config = build_config({**world.plain, "data": {"to_score": f"{world.place}/days/{{date}}"}}, "test")
    world.bucket.put(
        "days/2026-01-31/task=two/part-0.parquet", parquet(planted_rows("two", 3, 1, labeled=False))
    )

    def plan_day(day: str) -> list[WorkUnit]:
        location = insert_date(config.to_score_location, day)
        return plan_units(location, config.scores_location, config.tasks, "b")[0]

    (unit,) = plan_day("2026-01-31")
    assert unit.path.endswith("/days/2026-01-31/task=two/part-0.parquet") and unit.rows == 3
    with pytest.raises(DataRefusedError, match=r"days/2026-02-01 holds no task=<name>/\*.parquet file"):
        plan_day("2026-02-01")
    world.bucket.put("days/2026-01-31/task=unheard/part-0.parquet", b"")
    with pytest.raises(ConfigError, match="unheard"):
        plan_day("2026-01-31")


def test_unreachable_store_makes_the_unit_retryable(
    world: BucketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, unit = world.scorer(), world.units()[0]

    def away(*_: object) -> bytes:
        raise RetryableError("the store is away")

    monkeypatch.setattr(Bucket, "put", away)
    result = scorer.score_unit(unit)
    assert result.retry and "the store is away" in result.error
    monkeypatch.undo()
    assert (
        scorer.score_unit(unit).labels == ROWS
        and np.isfinite(read_published(world.config.scores_location).column("probability").to_numpy()).all()
    )
