"""A pool that Ray loses is started again for the units that are left, and gives them up in the end."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from pipeline.config.scoring import ScoringConfig
from pipeline.inference import actor_pool
from pipeline.inference.actor_pool import Pool, PoolUnit, do_units
from pipeline.inference.attempts import MAX_ATTEMPTS

POOL = Pool(Any, None, ScoringConfig(), Path("/nowhere"))  # type: ignore[arg-type]
UNITS = {name: PoolUnit({"unit_id": name}, name.encode()) for name in ("a", "b", "c")}


def give_up(unit_id: str, reason: str) -> dict[str, Any]:
    return {"unit_id": unit_id, "reason": reason}


def run(monkeypatch: pytest.MonkeyPatch, done_per_start: Sequence[int]) -> tuple[list[Any], list[list[str]]]:
    """Return the results of UNITS and the units of each start; a start ends after some units."""
    starts: list[list[str]] = []

    def run_pipeline(pool: Pool, units: Sequence[PoolUnit]) -> Iterator[dict[str, Any]]:
        num_done = done_per_start[len(starts)]
        starts.append([unit.fields["unit_id"] for unit in units])
        for unit in units[:num_done]:
            assert unit.content == unit.fields["unit_id"].encode()
            yield {"unit_id": unit.fields["unit_id"]}
        if num_done < len(units):
            raise RayError("a node is gone")

    monkeypatch.setattr(actor_pool, "_run_pipeline", run_pipeline)
    return list(do_units(POOL, UNITS, give_up)), starts


def test_units_that_are_left_are_done_by_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    results, starts = run(monkeypatch, [2, 1])
    assert results == [{"unit_id": name} for name in "abc"]
    assert starts == [["a", "b", "c"], ["c"]]


def test_units_that_no_start_finishes_are_given_up_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    results, starts = run(monkeypatch, [1, *[0] * (MAX_ATTEMPTS - 1)])
    assert len(starts) == MAX_ATTEMPTS and results[0] == {"unit_id": "a"}
    assert [one["unit_id"] for one in results[1:]] == ["b", "c"]
    for one in results[1:]:
        assert f"lost its actors {MAX_ATTEMPTS} times" in one["reason"] and "a node is gone" in one["reason"]
        assert one["reason"].endswith("run the command again")
