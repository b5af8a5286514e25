"""Time to plan a scoring run and to close its record, with 20,000 published units in a slow bucket.

python -m tests.bench.support.plan_scale [UNITS NEW_UNITS]

Rows and labels are in memory behind the bucket code of the pipeline. Each request waits 30 ms in the thread
that makes it, each page of a listing too. The earlier run planned and recorded its units as a run does; its
labels were not computed.
"""

import io
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.publishing.unit_store import PublishedFile, manifest_key
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.duplicates import ScoringRounds
from pipeline.scoring.label_store import sweep_orphans
from pipeline.scoring.score_cache import find_cached_files
from pipeline.scoring.scoring_record import ScoringRun, build_scoring_record, put_record
from pipeline.scoring.unit_manifest import UnitInput, profile_labels
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import Plan, WorkUnit, plan_units
from tests.support.memory_bucket import MemoryBucket
from tests.support.score_partitions import score_table, unit_manifest
from tests.support.scoring_world import World
from tests.support.tiny import write_tiny_llama

UNITS, NEW_UNITS, ROWS, LATENCY_S = 20_000, 1_000, 10, 0.03

ROWS_URL = "s3://rows"


class Place:
    """A bucket of rows, a bucket of labels, and a champion."""

    def __init__(self, root: Path) -> None:
        self.world = World(root, write_tiny_llama(root / "tiny"))
        self.rows, self.scores, self.folder = MemoryBucket("rows"), MemoryBucket("scores"), root
        self.labels = score_table(ROWS)

    def add_files(self, first: int, last: int) -> None:
        """Write input files of ROWS rows each."""
        texts = {"query": "lamp", "ad_title": "lamp", "market": "us"}
        for number in range(first, last):
            rows = [{"row_id": f"{number}-{row}", **texts} for row in range(ROWS)]
            file = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), file)
            self.rows.put(f"task=two/part-{number:06}.parquet", file.getvalue())

    def plan(self) -> Plan:
        """Plan a run, as the command does."""
        with self.rows.opened_by_location():
            plan = plan_units(ROWS_URL, self.scores, self.world.config.tasks, self.world.sha256)
        plan.inputs.save()
        sweep_orphans(self.scores)
        return plan

    def first_round(self, plan: Plan) -> list[WorkUnit]:
        """Compare row ids and look up scores to reuse, as the command does before actors start."""
        with self.rows.opened_by_location():
            units = ScoringRounds(plan, self.scores, self.folder).next_units()
        find_cached_files(self.scores, self.world.sha256, plan.index_name)
        return units

    def publish(self, unit: WorkUnit) -> UnitResult:
        """Publish made-up labels of a unit: the file of all units is the same."""
        tasks = [task for task in self.world.config.tasks if task.name == unit.task]
        manifest = unit_manifest(
            unit.unit_id,
            task=unit.task,
            bundle_sha256=self.world.sha256,
            tasks=(unit.task,),
            input=UnitInput(unit.path, unit.digest, unit.part, unit.rows),
            profiles=profile_labels(self.labels, tasks, ["us"] * ROWS),
        )
        file = PublishedFile(f"data/{unit.unit_id}/0.parquet", "0" * 64, ROWS)
        complete = replace(
            manifest, num_labels=ROWS, label_files=(file,), published_at="2026-11-30T00:00:00Z"
        )
        self.scores.put(file.path, b"labels")
        self.scores.put_if_absent(manifest_key(unit.unit_id), json.dumps(complete.to_json()).encode())
        return UnitResult(unit.unit_id, unit.path, labels=ROWS, tasks=(unit.task,))

    def close(self, run: str, plan: Plan, results: list[UnitResult]) -> None:
        """Build and store the record of a run."""
        scoring_run = ScoringRun(run, self.world.version, 0.0, 1.0, None, None, plan.index_name)
        units = [*plan.published, *plan.to_do]
        record = build_scoring_record(self.scores, scoring_run, units, results)
        assert record.counts.labels == ROWS * len(units) and record.accepted
        put_record(self.scores, record)

    def set_latency(self, latency_s: float) -> None:
        """Set the time that each request takes, and count requests anew."""
        for bucket in (self.rows, self.scores):
            bucket.latency_s = latency_s
            bucket.requests.clear()

    def requests(self) -> dict[str, int]:
        """Return the number of requests since the latency was set, by bucket and method."""
        return dict(
            Counter(
                f"{bucket.location[5:]} {method}"
                for bucket in (self.rows, self.scores)
                for method, _ in bucket.requests
            )
        )


def measure(units: int, new_units: int, root: Path) -> dict[str, Any]:
    """Return the times in seconds, and the requests."""
    assert SCORE_SCHEMA.names == score_table(1).column_names
    place = Place(root)
    place.add_files(0, units)
    plan = place.plan()
    place.close("1", plan, [place.publish(unit) for unit in place.first_round(plan)])
    place.set_latency(LATENCY_S)
    started_s = time.monotonic()
    plan = place.plan()
    assert not plan.to_do and len(plan.published) == units
    place.close("2", plan, [])
    nothing_new = {"seconds": round(time.monotonic() - started_s, 1), "requests": place.requests()}
    assert place.rows.requested("get") == place.rows.requested("get_range") == 0
    place.set_latency(0.0)
    place.add_files(units, units + new_units)
    place.set_latency(LATENCY_S)
    started_s = time.monotonic()
    plan = place.plan()
    new = place.first_round(plan)
    assert len(new) == len(plan.to_do) == new_units
    some_new = {"seconds": round(time.monotonic() - started_s, 1), "requests": place.requests()}
    for key in [entry.key for entry in place.scores.list("cache")]:
        place.scores.delete(key)
    place.set_latency(LATENCY_S)
    started_s = time.monotonic()
    place.first_round(place.plan())
    without_cache = {"seconds": round(time.monotonic() - started_s, 1), "requests": place.requests()}
    return {"nothing_new": nothing_new, "some_new": some_new, "some_new_without_cache": without_cache}


def main() -> None:
    """Measure and print."""
    units, new_units = map(int, sys.argv[1:] or (UNITS, NEW_UNITS))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(units, new_units, Path(folder))))


if __name__ == "__main__":
    main()
