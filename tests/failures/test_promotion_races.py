"""Promotions at the same time: one winner each, and aliases that say what the log says. MLflow is replaced by
files, each alias last-writer-wins and slow, as its own are.
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
from pipeline.registry.promotion_log import promote, read_promotions, repair_aliases, roll_back, rolled_back

pytestmark = pytest.mark.e2e

RACES = 100
CONTEXT = multiprocessing.get_context("spawn")


class SlowAliases:
    """An MLflow client's aliases."""

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


def config_of(root: Path) -> Any:
    return SimpleNamespace(promotions_dir=root / "log", registry=SimpleNamespace(model="m"))


def tags_of(version: str, against: str | None = None, passed: bool = True) -> dict[str, str]:
    gate = {"gate": json.dumps({"against": against, "passed": passed, "sha256": "g"})} if against else {}
    return {"bundle_sha256": f"sha-{version}", "macro_pr_auc": "0.8", "lexical_macro_pr_auc": "0.7", **gate}


def new_world(root: Path) -> tuple[Any, SlowAliases]:
    """Version 1 is champion."""
    (root / "aliases").mkdir(parents=True)
    config, client = config_of(root), SlowAliases(root / "aliases")
    promote(config, client, "1", tags_of("1"))
    return config, client


def racer(number: int, root: str, barrier: Any, results: Any) -> None:
    """One process: in every race it promotes a version of its own against version 1."""
    for race in range(RACES):
        folder, version = Path(root) / str(race), str(number + 2)
        barrier.wait()
        try:
            promote(config_of(folder), SlowAliases(folder / "aliases"), version, tags_of(version, "1"))
            results.put((race, version, "won"))
        except (RetryableError, GateRefusedError) as error:
            results.put((race, version, type(error).__name__))


@pytest.mark.parametrize("num_processes", [2, pytest.param(8, marks=pytest.mark.failures)])
def test_of_promotions_at_the_same_time_exactly_one_wins_and_log_and_aliases_agree(
    tmp_path: Path, num_processes: int
) -> None:
    for race in range(RACES):
        new_world(tmp_path / str(race))
    barrier, results = CONTEXT.Barrier(num_processes), CONTEXT.Queue()
    racers = [
        CONTEXT.Process(target=racer, args=(number, str(tmp_path), barrier, results))
        for number in range(num_processes)
    ]
    for process in racers:
        process.start()
    told = [results.get(timeout=300) for _ in range(RACES * num_processes)]
    for process in racers:
        process.join(timeout=60)
        assert process.exitcode == 0
    for race in range(RACES):
        folder = tmp_path / str(race)
        winners = [version for number, version, outcome in told if number == race and outcome == "won"]
        log = read_promotions(config_of(folder))
        assert [record["version"] for record in log] == ["1", *winners] and len(winners) == 1
        assert SlowAliases(folder / "aliases").get_registered_model("m").aliases == {
            "champion": winners[0],
            "previous_champion": "1",
        }


def test_a_promotion_killed_between_log_and_alias_is_repaired_at_the_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, client = new_world(tmp_path)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(SlowAliases, "set_registered_model_alias", killed)
        promote(config, client, "2", tags_of("2", "1"))
    assert client.get_registered_model("m").aliases == {"champion": "1"}
    repair_aliases(config, client)
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (tags_of("2"), "was compared with no version, the champion is version 1"),
        (tags_of("2", "7"), "was compared with version 7, the champion is version 1"),
        (tags_of("2", "1", passed=False), "did not pass the gate against version 1"),
    ],
)
def test_without_the_gate_s_word_on_this_champion_nothing_is_promoted_but_by_an_override_that_is_recorded(
    tmp_path: Path, tags: dict[str, str], words: str
) -> None:
    config, client = new_world(tmp_path)
    with pytest.raises(GateRefusedError, match=words):
        promote(config, client, "2", tags)
    assert len(read_promotions(config)) == 1
    promote(config, client, "2", tags, override="the gate's rows are of last year")
    assert read_promotions(config)[-1]["override"] == "the gate's rows are of last year"
    assert client.get_registered_model("m").aliases["champion"] == "2"


def test_a_rollback_goes_back_one_champion_each_time_and_a_first_one_has_none_to_go_back_to(
    tmp_path: Path,
) -> None:
    config, client = new_world(tmp_path)
    with pytest.raises(RelevanceError, match="no earlier champion to go back to"):
        roll_back(config, client, "bad")
    promote(config, client, "2", tags_of("2", "1"))
    promote(config, client, "3", tags_of("3", "2"))
    assert roll_back(config, client, "complaints")["version"] == "2"
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}
    assert roll_back(config, client, "more of them")["version"] == "1"
    assert client.get_registered_model("m").aliases == {"champion": "1"}
    with pytest.raises(RelevanceError, match="no earlier champion"):
        roll_back(config, client, "still more")
    promote(config, client, "2", tags_of("2", "1"))  # it was not the model
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}
    kinds = [
        (record["kind"], record["version"], record["expected_champion"]) for record in read_promotions(config)
    ]
    rollbacks = [("rollback", "2", "3"), ("rollback", "1", "2")]
    assert kinds == [
        ("promotion", "1", None),
        ("promotion", "2", "1"),
        ("promotion", "3", "2"),
        *rollbacks,
        ("promotion", "2", "1"),
    ]
    assert json.loads((config.promotions_dir / "000004.json").read_text())["override"] == "complaints"


@pytest.mark.parametrize("failure", [OSError("no answer"), KeyboardInterrupt()])
def test_a_rollback_whose_aliases_do_not_follow_yet_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    config, client = new_world(tmp_path)
    promote(config, client, "2", tags_of("2", "1"))
    promote(config, client, "3", tags_of("3", "2"))

    def fails(*_: Any) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(SlowAliases, "set_registered_model_alias", fails)
        done = roll_back(config, client, "complaints")
    assert done["version"] == "2" and done["aliases"].startswith("behind the log until the next use")
    assert client.get_registered_model("m").aliases["champion"] == "3"
    repair_aliases(config, client)
    assert client.get_registered_model("m").aliases == {"champion": "2", "previous_champion": "1"}


def test_a_version_that_was_left_by_a_rollback_is_known_until_it_is_promoted_again(tmp_path: Path) -> None:
    config, client = new_world(tmp_path)
    promote(config, client, "2", tags_of("2", "1"))
    assert rolled_back(read_promotions(config), "2") is None
    roll_back(config, client, "complaints")
    left = rolled_back(read_promotions(config), "2")
    assert left is not None and left["override"] == "complaints"
    assert rolled_back(read_promotions(config), "1") is None
    promote(config, client, "2", tags_of("2", "1"))
    assert rolled_back(read_promotions(config), "2") is None


def test_a_log_that_lost_a_record_is_not_believed(tmp_path: Path) -> None:
    config, client = new_world(tmp_path)
    promote(config, client, "2", tags_of("2", "1"))
    first = config.promotions_dir / "000001.json"
    kept = first.read_bytes()
    first.write_bytes(kept[:20])
    with pytest.raises(DamagedInputError, match="restore it from a backup"):
        read_promotions(config)
    first.unlink()
    with pytest.raises(DamagedInputError, match="lacks record 1"):
        read_promotions(config)
