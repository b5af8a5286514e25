"""Concurrent promotions in a real MLflow store: one wins, and the aliases agree with the log."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import GateRefusedError, RetryableError
from tests.support.promotions import Promotions, tags_of

pytestmark = pytest.mark.failures

NUM_RACES = 100
CONTEXT = multiprocessing.get_context("spawn")


def racer(number: int, folder: Path, barrier: Any, results: Any) -> None:
    """Promote this process's version against version 1 in every race."""
    promotions, version = Promotions(folder), str(number + 2)
    for race in range(NUM_RACES):
        barrier.wait()
        try:
            promotions.log(f"m{race}").promote(promotions.client, version, tags_of(version, "1"))
            results.put((race, version, "won"))
        except (RetryableError, GateRefusedError) as error:
            results.put((race, version, str(error)))


@pytest.mark.parametrize("num_processes", [2, 8])
def test_one_of_concurrent_promotions_wins_and_aliases_agree(tmp_path: Path, num_processes: int) -> None:
    promotions = Promotions(tmp_path)
    for race in range(NUM_RACES):
        promotions.add_model(f"m{race}", num_processes + 1)
    barrier, results = CONTEXT.Barrier(num_processes), CONTEXT.Queue()
    racers = [
        CONTEXT.Process(target=racer, args=(number, tmp_path, barrier, results))
        for number in range(num_processes)
    ]
    for process in racers:
        process.start()
    outcomes = [results.get(timeout=300) for _ in range(NUM_RACES * num_processes)]
    for process in racers:
        process.join(timeout=60)
        assert process.exitcode == 0
    for race in range(NUM_RACES):
        winners = [version for number, version, outcome in outcomes if number == race and outcome == "won"]
        losses = [outcome for number, _, outcome in outcomes if number == race and outcome != "won"]
        entries = promotions.log(f"m{race}").read(promotions.client)
        assert [entry.version for entry in entries] == ["1", *winners] and len(winners) == 1
        assert promotions.aliases(f"m{race}") == {"champion": winners[0], "previous_champion": "1"}
        expected = (
            f"expected champion 1, found {winners[0]};",
            f"the champion is version {winners[0]};",
        )
        assert [loss for loss in losses if not any(words in loss for words in expected)] == []
