"""Scorers killed at every point where they change the disk, and concurrent scorers.

Each row gets one label, and no reader ever sees part of a unit.
"""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.inference.predictor import build_predictor
from pipeline.scoring.label_store import read_manifests, read_published, sweep_orphans
from tests.failures.support import scorer
from tests.support.bundles import write_evaluated_bundle
from tests.support.places import ROOT
from tests.support.planted import LABEL_WORDS, planted_config, planted_rows, write_rows
from tests.support.scoring_world import plan

pytestmark = pytest.mark.e2e

ROWS, PARTS = 5, 4  # rows of a unit, units of a task


class Scoring:
    """A process that forks scorers, and the rows they score."""

    def __init__(self, root: Path, tiny_llama: Path) -> None:
        self.root = root
        self.expected: list[str] = []
        for task in LABEL_WORDS:
            for part in range(PARTS):
                rows = planted_rows(task, ROWS, 10 + part, labeled=False)
                write_rows(rows, root / "to_score" / f"task={task}" / f"part-{part}.parquet")
                self.expected += [row["row_id"] for row in rows]
        self.plain = planted_config(root, str(tiny_llama))
        config = build_config(self.plain, "test")
        self.bundle_sha256 = write_evaluated_bundle(root / "bundle", build_predictor(config), config)
        (root / "config.json").write_text(json.dumps(self.plain))
        command = [
            sys.executable,
            "-m",
            scorer.__name__,
            str(root / "config.json"),
            str(root / "bundle"),
            self.bundle_sha256,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def config(self, name: str) -> RunConfig:
        return build_config({**self.plain, "work_dir": str(self.root / name)}, "test")

    def run(self, name: str, die_at: int | None = None, copies: int = 1) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"work_dir": str(self.root / name), "die_at": die_at, "copies": copies}) + "\n"
        )
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def scores(self, name: str) -> Path:
        return self.config(name).run_dir / "scores"


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Scoring]:
    found = Scoring(tmp_path_factory.mktemp("scoring"), tiny_llama)
    yield found
    found.process.kill()
    found.process.wait()


@pytest.fixture(scope="module")
def num_points(scoring: Scoring) -> int:
    """Return the number of points of an undisturbed run."""
    done = scoring.run("undisturbed")
    assert done["exits"] == [0]
    return int(done["points"][0])


class Reader:
    """Reader that polls the published labels while it is entered, and counts partial units that it saw."""

    def __init__(self, scores: Path) -> None:
        self.scores, self.views, self.partial, self.over = scores, 0, 0, threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.over.is_set():
            rows = Counter(
                row_id.rpartition("-")[0]
                for row_id in read_published(self.scores).column("row_id").to_pylist()
            )
            self.partial += sum(count != ROWS for count in rows.values())
            self.views += 1

    def __enter__(self) -> "Reader":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def check_whole(counts: Any, scoring: Scoring, name: str, reader: Reader) -> None:
    """Check that every row is published once and nothing is left to do."""
    rows = Counter(read_published(scoring.scores(name)).column("row_id").to_pylist())
    twice, missing = (
        sum(count - 1 for count in rows.values()),
        sum(row not in rows for row in scoring.expected),
    )
    counts.add("score_rows_duplicated", twice)
    counts.add("score_rows_missing", missing)
    counts.add("score_partial_views", reader.partial)
    assert (twice, missing, reader.partial, len(rows)) == (
        0,
        0,
        0,
        len(scoring.expected),
    ) and reader.views > 0
    to_do, published = plan(scoring.config(name), scoring.bundle_sha256)
    assert (len(to_do), len(published)) == (0, 2 * PARTS)


def kill_and_run_again(counts: Any, scoring: Scoring, point: int) -> None:
    name = f"killed-{point}"
    with Reader(scoring.scores(name)) as reader:
        assert scoring.run(name, die_at=point)["exits"] == [-9]
        counts.add("score_kills")
        assert scoring.run(name)["exits"] == [0]
    check_whole(counts, scoring, name, reader)
    again = scoring.run(name)
    assert again == {"points": [0], "exits": [0]}, "the second run had work to do"
    files = [
        path
        for kind in ("data", "errors", "manifests")
        for path in (scoring.scores(name) / kind).rglob("*")
        if path.is_file()
    ]
    named = len(read_manifests(scoring.scores(name)))
    assert len(files) <= 2 * named + 2  # the killed scorer leaves a file and its manifest at most
    sweep_orphans(scoring.scores(name), older_than_s=-1)
    assert len(list((scoring.scores(name) / "data").rglob("*.*"))) == named
    check_whole(counts, scoring, name, reader)


@pytest.mark.parametrize("share", [0.0, 0.07, 0.31, 0.52, 0.99])
def test_killed_scorer_leaves_no_duplicates(
    counts: Any, scoring: Scoring, num_points: int, share: float
) -> None:
    kill_and_run_again(counts, scoring, int(share * num_points))


@pytest.mark.failures
def test_scorer_killed_at_any_point_leaves_no_duplicates(
    counts: Any, scoring: Scoring, num_points: int
) -> None:
    assert num_points >= 100
    for point in range(num_points):
        if not scoring.scores(f"killed-{point}").exists():
            kill_and_run_again(counts, scoring, point)


@pytest.mark.parametrize("copies", [2, pytest.param(4, marks=pytest.mark.failures)])
def test_concurrent_scorers_label_every_row_once(counts: Any, scoring: Scoring, copies: int) -> None:
    for number in range(3):
        name = f"at-once-{copies}-{number}"
        with Reader(scoring.scores(name)) as reader:
            assert scoring.run(name, copies=copies)["exits"] == [0] * copies
        check_whole(counts, scoring, name, reader)
