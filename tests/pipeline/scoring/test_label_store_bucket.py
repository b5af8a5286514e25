"""Rows that lie in a bucket, labels that are published in one."""

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
from pipeline.registry.version_files import FetchedVersion
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring import work_units as score_units
from pipeline.scoring.label_store import (
    newest_records,
    publish_partition,
    put_record,
    read_errors,
    read_manifests,
    read_published,
    read_run,
    sweep_orphans,
)
from pipeline.scoring.run_record import ScoringRun, run_record
from pipeline.scoring.work_units import on_date, plan_units
from pipeline.storage.object_store import Bucket, Store
from tests.support.planted import planted_config, planted_rows
from tests.support.scoring_world import ROWS, World
from tests.support.servers import Trouble, proxy


class BucketWorld(World):
    """The same rows, and where labels go, in a bucket."""

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


def test_a_bucket_s_rows_get_the_labels_that_a_folder_s_rows_get_and_once(world: BucketWorld) -> None:
    scorer, units = world.scorer(), world.units()
    assert [scorer.outcome(unit).error for unit in units] == ["", ""] and world.units() == []
    there = read_published(world.config.scores_place).sort_by("row_id")
    world.config = world.local
    scorer = world.scorer()
    assert [scorer.outcome(unit).error for unit in world.units()] == ["", ""]
    assert there.num_rows == 2 * ROWS and there.equals(
        read_published(world.config.scores_place).sort_by("row_id")
    )


def test_plain_pyarrow_reads_what_manifests_name(world: BucketWorld, s3: str) -> None:
    scorer = world.scorer()
    for unit in world.units():
        scorer.outcome(unit)
    system = pyarrow.fs.S3FileSystem(
        endpoint_override=s3.removeprefix("http://"), scheme="http", region="us-east-1"
    )
    root = world.config.scores_place.removeprefix("s3://")
    manifests = [
        json.loads(system.open_input_stream(one.path).read())
        for one in system.get_file_info(pyarrow.fs.FileSelector(f"{root}/manifests"))
    ]
    files = [f"{root}/{entry['path']}" for manifest in manifests for entry in manifest["files"]]
    found = ds.dataset(files, filesystem=system, format="parquet").to_table().sort_by("row_id")
    assert found.equals(read_published(world.config.scores_place).sort_by("row_id"))


def test_a_large_object_is_taken_in_parts_and_bad_rows_are_errors(
    world: BucketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_units, "UNIT_ROWS", 10)
    rows = planted_rows("two", 32, 7, labelled=False)
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
    assert not any(scorer.outcome(unit).error for unit in units)
    found = {
        row_id
        for row_id in read_published(world.config.scores_place).column("row_id").to_pylist()
        if row_id.startswith("two-7-")
    }
    assert found == {row["row_id"] for row in rows if row["ad_title"]}
    assert read_errors(world.config.scores_place).column("row").to_pylist() == [30]


def test_planning_lists_twice_and_reads_only_the_end_of_each_file_through_one_client(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_units, "UNIT_ROWS", 8000)
    place, trouble, opened, read = f"s3://labels/{tmp_path.name}", Trouble(), [], []
    file = parquet(planted_rows("two", 12_000, 1, labelled=False), 6000)
    for number in range(12):
        Bucket(place).put(f"rows/task=two/part-{number:02d}.parquet", file)
    scoring = {"scores": f"{place}/scores"}
    config = build_config(
        {**planted_config(tmp_path, "nowhere", scoring=scoring), "data": {"to_score": f"{place}/rows"}},
        "test",
    )
    (first, *_), _ = plan_units(config, "b")
    publish_partition(
        config.scores_place, first.partition, SCORE_SCHEMA.empty_table(), {"bundle_sha256": "b"}
    )
    init, get_range = Bucket.__init__, Bucket.get_range

    def ranged(bucket: Bucket, key: str, version: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return get_range(bucket, key, version, start, end)

    monkeypatch.setattr(Bucket, "__init__", lambda self, url: (opened.append(url), init(self, url))[1])
    monkeypatch.setattr(Bucket, "get_range", ranged)
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        to_do, published = plan_units(config, "b")
    assert (
        published == [first]
        and [unit.part for unit in to_do] == [(8000, 12_000)] + [(0, 8000), (8000, 12_000)] * 11
    )
    assert [unit.path[-10:-8] for unit in to_do] == sorted(unit.path[-10:-8] for unit in to_do)
    listings = [path for method, path in trouble.asked if path.strip("/") == "labels"]
    assert {method for method, _ in trouble.asked} == {"GET"} and len(listings) == 2, (
        "rows, and what is published"
    )
    assert sorted(opened) == [f"{place}/rows", f"{place}/scores"]
    assert len(read) == len(trouble.asked) - len(listings) == 12 and max(read) <= 65_536 < len(file)


def test_a_unit_that_was_published_after_it_was_planned_is_not_scored_again(world: BucketWorld) -> None:
    scorer, late = world.scorer(), world.scorer()
    unit = world.units()[0]
    assert scorer.outcome(unit).labels == ROWS
    late.judge = None
    assert late.outcome(unit).labels == ROWS and read_published(world.config.scores_place).num_rows == ROWS


def test_an_object_that_changes_while_it_is_scored_is_not_scored_under_its_old_name(
    world: BucketWorld,
) -> None:
    scorer, (unit, _) = world.scorer(), world.units()
    world.bucket.put(
        f"rows/{unit.path.partition('/rows/')[2]}", parquet(planted_rows("two", ROWS, 99, labelled=False))
    )
    told = scorer.outcome(unit)
    assert (
        told.retry
        and "changed while it was read" in told.error
        and read_manifests(world.config.scores_place) == []
    )
    again = world.units()
    assert unit.partition not in {one.partition for one in again} and scorer.outcome(again[0]).error == ""


def test_an_object_that_is_removed_before_it_is_scored_is_to_be_planned_anew(world: BucketWorld) -> None:
    scorer, (unit, _) = world.scorer(), world.units()
    world.bucket.delete(f"rows/{unit.path.partition('/rows/')[2]}")
    told = scorer.outcome(unit)
    assert told.retry and "was removed while it was read" in told.error and len(world.units()) == 1


def test_an_object_that_is_no_parquet_fails_its_unit_alone(world: BucketWorld) -> None:
    world.bucket.put("rows/task=two/part-5.parquet", b"PAR1 and no more")
    scorer = world.scorer()
    outcomes = [scorer.outcome(unit) for unit in world.units()]
    assert sorted("not whole" in one.error or "damaged" in one.error for one in outcomes) == [
        False,
        False,
        True,
    ]
    assert read_published(world.config.scores_place).num_rows == 2 * ROWS


@pytest.mark.parametrize("point", ["put", "put_if_absent"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_scorer_that_is_gone_before_or_after_a_write_leaves_all_or_nothing(
    world: BucketWorld, monkeypatch: pytest.MonkeyPatch, point: str, done: bool
) -> None:
    class Gone(BaseException):
        """As the process would be."""

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
            scorer.outcome(unit)
    monkeypatch.undo()
    published = point == "put_if_absent" and done
    assert read_published(world.config.scores_place).num_rows == ROWS * published
    assert len(world.units()) == 2 - published
    for left in world.units():
        assert world.scorer().outcome(left).error == ""
    assert read_published(world.config.scores_place).num_rows == 2 * ROWS
    assert sweep_orphans(world.config.scores_place, older_than_s=-1) == (
        0 if published or (point == "put" and not done) else 1
    )
    assert read_published(world.config.scores_place).num_rows == 2 * ROWS


def test_a_run_s_record_lies_beside_its_labels_and_is_read_from_there(world: BucketWorld) -> None:
    scorer, units, scores = world.scorer(), world.units(), world.config.scores_place
    outcomes = [scorer.outcome(unit) for unit in units]
    champion = FetchedVersion("1", world.root / "bundle", world.sha256)
    record = run_record(scores, ScoringRun("20260131-a", champion, 0.0, None), units, outcomes)
    assert put_record(scores, record) == f"{scores}/runs/20260131-a.json"
    assert next(newest_records(scores))["labels"] == 2 * ROWS
    assert read_run(scores).num_rows == read_run(scores, "20260131-a").num_rows == 2 * ROWS
    with pytest.raises(ConfigError, match="has no run b; there are: 20260131-a"):
        read_run(scores, "b")


def test_a_bucket_s_days_are_told_apart_and_one_without_rows_is_refused(world: BucketWorld) -> None:
    config = build_config({**world.plain, "data": {"to_score": f"{world.place}/days/{{date}}"}}, "test")
    world.bucket.put(
        "days/2026-01-31/task=two/part-0.parquet", parquet(planted_rows("two", 3, 1, labelled=False))
    )
    (unit,), _ = plan_units(on_date(config, "2026-01-31"), "b")
    assert unit.path.endswith("/days/2026-01-31/task=two/part-0.parquet") and unit.rows == 3
    with pytest.raises(
        DataRefusedError, match=r"days/2026-02-01 holds no task=<name>/\*.parquet; upload rows"
    ):
        plan_units(on_date(config, "2026-02-01"), "b")
    world.bucket.put("days/2026-01-31/task=unheard/part-0.parquet", b"")
    with pytest.raises(ConfigError, match="unheard"):
        plan_units(on_date(config, "2026-01-31"), "b")


def test_a_store_that_goes_away_fails_its_unit_to_be_tried_again(
    world: BucketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, unit = world.scorer(), world.units()[0]

    def away(*_: object) -> bytes:
        raise RetryableError("the store is away")

    monkeypatch.setattr(Bucket, "put", away)
    told = scorer.outcome(unit)
    assert told.retry and "the store is away" in told.error
    monkeypatch.undo()
    assert (
        scorer.outcome(unit).labels == ROWS
        and np.isfinite(read_published(world.config.scores_place).column("probability").to_numpy()).all()
    )
