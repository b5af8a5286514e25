"""Scoring processes without Ray that die at a chosen point.

`python -m tests.failures.support.scorer CONFIG BUNDLE_DIR BUNDLE_SHA256` loads a model once. For each line of
stdin it forks processes that score:

    {"work_dir": folder of the run, "die_at": number of a point or null, "copies": number of processes}

The answer is a line:

    {"points": [points that each process passed], "exits": [exit codes, negative for a signal]}

There is a point before and after each call that changes a name or syncs bytes to the disk.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "link", "replace", "unlink")


class Points:
    """Counter of points that kills the process at one of them."""

    def __init__(self, die_at: int | None) -> None:
        self.die_at, self.passed = die_at, 0

    def point(self) -> None:
        if self.passed == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def around(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            self.point()
            result = change(*arguments, **options)
            self.point()
            return result

        return changed


def score(scorer: Any, config: Any, die_at: int | None) -> int:
    """Score all units that are left; return the number of points passed."""
    from pipeline.storage.object_store import open_store
    from tests.support.scoring_world import plan

    points = Points(die_at)
    attempts_dir = config.run_dir / "scoring" / str(os.getpid())
    attempts_dir.mkdir(parents=True)
    scorer.actor.attempts_dir, scorer.scores = attempts_dir, open_store(config.scores_location)
    for name in CHANGES:
        setattr(os, name, points.around(getattr(os, name)))
    units, _ = plan(config, scorer.actor.bundle.sha256)
    for unit in units:
        result = scorer.score_unit(unit)
        assert not result.error, result.error
    return points.passed


def fork(scorer: Any, config: Any, die_at: int | None) -> tuple[int, int]:
    """Fork a scoring process; return its id and a file descriptor with its number of points."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writes, str(score(scorer, config, die_at)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    return child, reads


def main() -> None:
    """Answer each line of stdin."""
    import torch

    from pipeline.config.loading import build_config
    from pipeline.registry.version_files import VersionFiles
    from tests.support.scoring_world import build_scorer

    plain, bundle_dir, sha256 = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    folder = Path(plain["work_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    version = VersionFiles("1", bundle_dir, sha256)
    scorer = build_scorer(build_config(plain, "the test"), version, folder)
    for line in sys.stdin:
        order = json.loads(line)
        config = build_config({**plain, "work_dir": order["work_dir"]}, "the test")
        started = [fork(scorer, config, order["die_at"]) for _ in range(order["copies"])]
        exits = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in started]
        points = [os.read(reads, 20).decode() for _, reads in started]
        for _, reads in started:
            os.close(reads)
        print(
            json.dumps({"points": [int(one) if one else None for one in points], "exits": exits}), flush=True
        )


if __name__ == "__main__":
    main()
