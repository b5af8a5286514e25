"""Concurrent promotions: one wins, and the aliases agree with the log.

Files stand for MLflow. As in MLflow, the last writer of an alias wins, and writing is slow.
"""

import json
import multiprocessing
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import DamagedInputError, GateRefusedError, RelevanceError, RetryableError
from pipeline.registry.promotion_log import PromotionLog, last_rollback_of

pytestmark = pytest.mark.e2e

RACES = 100
CONTEXT = multiprocessing.get_context("spawn")


class SlowAliases:
    """Client of MLflow's aliases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_registered_model(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(
            aliases={path.name: path.read_text() for path in self.folder.glob("*") if path.read_text()}
        )

    def set_registered_model_alias(self, _: str, alias: str, version: str) -> None:
        time.sleep(random.random() * 0.004)
        (self.folder / alias).write_text(version)

    def delete_registered_model_alias(self, _: str, alias: str) -> None:
        (self.folder / alias).unlink(missing_ok=True)


def log_of(root: Path) -> PromotionLog:
    return PromotionLog(root / "log", "m")


def tags_of(version: str, against: str | None = None, passed: bool = True) -> dict[str, str]:
    gate = {"gate": json.dumps({"against": against, "passed": passed, "sha256": "g"})} if against else {}
    return {"bundle_sha256": f"sha-{version}", "macro_pr_auc": "0.8", "lexical_macro_pr_auc": "0.7", **gate}


def new_world(root: Path) -> tuple[PromotionLog, SlowAliases]:
    """Return a log whose champion is version 1, and its aliases."""
    (root / "aliases").mkdir(parents=True)
    log, client = log_of(root), SlowAliases(root / "aliases")
    log.promote(client, "1", tags_of("1"))
    return log, client


def racer(number: int, root: str, barrier: Any, results: Any) -> None:
    """Promote this process's version against version 1 in every race."""
    for race in range(RACES):
        folder, version = Path(root) / str(race), str(number + 2)
        barrier.wait()
        try:
            log_of(folder).promote(SlowAliases(folder / "aliases"), version, tags_of(version, "1"))
            results.put((race, version, "won"))
        except (RetryableError, GateRefusedError) as error:
            results.put((race, version, type(error).__name__))


@pytest.mark.parametrize("num_processes", [2, pytest.param(8, marks=pytest.mark.failures)])
def test_one_of_concurrent_promotions_wins_and_aliases_agree(tmp_path: Path, num_processes: int) -> None:
    for race in range(RACES):
        new_world(tmp_path / str(race))
    barrier, results = CONTEXT.Barrier(num_processes), CONTEXT.Queue()
    racers = [
        CONTEXT.Process(target=racer, args=(number, str(tmp_path), barrier, results))
        for number in range(num_processes)
    ]
    for process in racers:
        process.start()
    outcomes = [results.get(timeout=300) for _ in range(RACES * num_processes)]
    for process in racers:
        process.join(timeout=60)
        assert process.exitcode == 0
    for race in range(RACES):
        folder = tmp_path / str(race)
        winners = [version for number, version, outcome in outcomes if number == race and outcome == "won"]
        entries = log_of(folder).read()
        assert [entry.version for entry in entries] == ["1", *winners] and len(winners) == 1
        assert SlowAliases(folder / "aliases").get_registered_model("m").aliases == {
            "champion": winners[0],
            "previous_champion": "1",
        }


def test_aliases_of_a_killed_promotion_are_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, client = new_world(tmp_path)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(SlowAliases, "set_registered_model_alias", killed)
        log.promote(client, "2", tags_of("2", "1"))
    assert client.get_registered_model("m").aliases == {"champion": "1"}
    log.repair_aliases(client)
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (tags_of("2"), "was compared with no version, the champion is version 1"),
        (tags_of("2", "7"), "was compared with version 7, the champion is version 1"),
        (tags_of("2", "1", passed=False), "did not pass the gate against version 1"),
    ],
)
def test_promotion_needs_the_gate_or_a_recorded_override(
    tmp_path: Path, tags: dict[str, str], words: str
) -> None:
    log, client = new_world(tmp_path)
    with pytest.raises(GateRefusedError, match=words):
        log.promote(client, "2", tags)
    assert len(log.read()) == 1
    log.promote(client, "2", tags, override="the gate's rows are of last year")
    assert log.read()[-1].override == "the gate's rows are of last year"
    assert client.get_registered_model("m").aliases["champion"] == "2"


def test_each_rollback_goes_back_one_champion(
    tmp_path: Path,
) -> None:
    log, client = new_world(tmp_path)
    with pytest.raises(RelevanceError, match="has no earlier champion"):
        log.roll_back(client, "bad")
    log.promote(client, "2", tags_of("2", "1"))
    log.promote(client, "3", tags_of("3", "2"))
    assert log.roll_back(client, "complaints").entry.version == "2"
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}
    assert log.roll_back(client, "more of them").entry.version == "1"
    assert client.get_registered_model("m").aliases == {"champion": "1"}
    with pytest.raises(RelevanceError, match="no earlier champion"):
        log.roll_back(client, "still more")
    log.promote(client, "2", tags_of("2", "1"))  # it was not the model
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}
    kinds = [(entry.kind, entry.version, entry.expected_champion) for entry in log.read()]
    rollbacks = [("rollback", "2", "3"), ("rollback", "1", "2")]
    assert kinds == [
        ("promotion", "1", None),
        ("promotion", "2", "1"),
        ("promotion", "3", "2"),
        *rollbacks,
        ("promotion", "2", "1"),
    ]
    assert json.loads((log.folder / "000004.json").read_text())["override"] == "complaints"


@pytest.mark.parametrize("failure", [OSError("no answer"), KeyboardInterrupt()])
def test_rollback_succeeds_while_aliases_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    log, client = new_world(tmp_path)
    log.promote(client, "2", tags_of("2", "1"))
    log.promote(client, "3", tags_of("3", "2"))

    def fails(*_: Any) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(SlowAliases, "set_registered_model_alias", fails)
        done = log.roll_back(client, "complaints")
    assert done.entry.version == "2" and done.aliases.startswith("behind the log until the next use")
    assert client.get_registered_model("m").aliases["champion"] == "3"
    log.repair_aliases(client)
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}


def test_rolled_back_version_is_known_until_promoted_again(tmp_path: Path) -> None:
    log, client = new_world(tmp_path)
    log.promote(client, "2", tags_of("2", "1"))
    assert last_rollback_of(log.read(), "2") is None
    log.roll_back(client, "complaints")
    left = last_rollback_of(log.read(), "2")
    assert left is not None and left.override == "complaints"
    assert last_rollback_of(log.read(), "1") is None
    log.promote(client, "2", tags_of("2", "1"))
    assert last_rollback_of(log.read(), "2") is None


def test_damaged_or_incomplete_log_is_refused(tmp_path: Path) -> None:
    log, client = new_world(tmp_path)
    log.promote(client, "2", tags_of("2", "1"))
    first = log.folder / "000001.json"
    kept = first.read_bytes()
    first.write_bytes(kept[:20])
    with pytest.raises(DamagedInputError, match="restore it from a backup"):
        log.read()
    first.unlink()
    with pytest.raises(DamagedInputError, match="lacks entry 1"):
        log.read()
