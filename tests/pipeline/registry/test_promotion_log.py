"""Promotion log beside a real MLflow store: gate, rollbacks, aliases, and what a lost log is noticed by."""

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError, RelevanceError, RetryableError
from pipeline.registry.promotion_entries import last_rollback_of
from pipeline.registry.promotion_log import PromotionLog
from pipeline.storage.filesystem import put_if_absent
from tests.support.promotions import Promotions, tags_of

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def promotions(tmp_path_factory: pytest.TempPathFactory) -> Promotions:
    return Promotions(tmp_path_factory.mktemp("store"))


@pytest.fixture
def log(promotions: Promotions, request: pytest.FixtureRequest) -> PromotionLog:
    """Return the log of a model of the test's own, whose champion is version 1."""
    return promotions.add_model(f"m{abs(hash(request.node.name))}")


def promote(promotions: Promotions, log: PromotionLog, version: str, against: str) -> None:
    log.promote(promotions.client, version, tags_of(version, against))


def test_one_of_two_promotions_at_once_wins(promotions: Promotions) -> None:
    """tests/failures/test_promotion_races.py does this with processes."""
    for race in range(5):
        log = promotions.add_model(f"race{race}")
        barrier = threading.Barrier(2)

        def attempt(version: str, log: PromotionLog = log, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            try:
                promote(promotions, log, version, "1")
            except (RetryableError, GateRefusedError) as error:
                return str(error)
            return "won"

        with ThreadPoolExecutor(2) as pool:
            outcomes = dict(zip(("2", "3"), pool.map(attempt, ("2", "3")), strict=True))
        [winner] = [version for version, outcome in outcomes.items() if outcome == "won"]
        [loss] = [outcome for outcome in outcomes.values() if outcome != "won"]
        assert f"expected champion 1, found {winner};" in loss or f"champion is version {winner};" in loss
        assert [entry.version for entry in log.read(promotions.client)] == ["1", winner]
        assert promotions.aliases(log.model) == {"champion": winner, "previous_champion": "1"}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (tags_of("2"), "was compared with no version, the champion is version 1"),
        (tags_of("2", "7"), "was compared with version 7, the champion is version 1"),
        (tags_of("2", "1", passed=False), "did not pass the gate against version 1"),
    ],
)
def test_promotion_needs_the_gate_or_a_recorded_override(
    promotions: Promotions, log: PromotionLog, tags: dict[str, str], words: str
) -> None:
    with pytest.raises(GateRefusedError, match=words):
        log.promote(promotions.client, "2", tags)
    assert len(log.read(promotions.client)) == 1
    log.promote(promotions.client, "2", tags, override="the gate's rows are of last year")
    assert log.read(promotions.client)[-1].override == "the gate's rows are of last year"
    assert promotions.aliases(log.model)["champion"] == "2"


def test_deleted_version_is_not_rolled_back_to(promotions: Promotions, log: PromotionLog) -> None:
    promote(promotions, log, "2", "1")
    promotions.client.delete_model_version(log.model, "1")
    with pytest.raises(ConfigError, match="version 1 of .* was deleted in MLflow"):
        log.roll_back(promotions.client, "bad")
    assert len(log.read(promotions.client)) == 2


def test_rollback_that_lost_a_race_is_not_retryable(
    promotions: Promotions, log: PromotionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(promotions, log, "2", "1")
    winner = PromotionLog(log.folder, log.model)

    def lose(path: Path, content: bytes) -> bool:
        monkeypatch.undo()
        winner.roll_back(promotions.client, "complaints")
        return put_if_absent(path, content)

    monkeypatch.setattr("pipeline.registry.promotion_log.put_if_absent", lose)
    with pytest.raises(RelevanceError, match="look at `relevance history` first: a repeated") as lost:
        log.roll_back(promotions.client, "complaints")
    assert lost.value.exit_code == 1
    assert len(log.read(promotions.client)) == 3


def test_each_rollback_goes_back_one_champion(promotions: Promotions, log: PromotionLog) -> None:
    client = promotions.client
    with pytest.raises(RelevanceError, match="has no earlier champion"):
        log.roll_back(client, "bad")
    promote(promotions, log, "2", "1")
    promote(promotions, log, "3", "2")
    assert log.roll_back(client, "complaints").entry.version == "2"
    assert promotions.aliases(log.model) == {"champion": "2", "previous_champion": "1"}
    assert log.roll_back(client, "more of them").entry.version == "1"
    assert promotions.aliases(log.model) == {"champion": "1"}
    with pytest.raises(RelevanceError, match="no earlier champion"):
        log.roll_back(client, "still more")
    promote(promotions, log, "2", "1")  # it was not the model
    assert promotions.aliases(log.model) == {"champion": "2", "previous_champion": "1"}
    assert [(entry.kind, entry.version, entry.expected_champion) for entry in log.read(client)] == [
        ("promotion", "1", None),
        ("promotion", "2", "1"),
        ("promotion", "3", "2"),
        ("rollback", "2", "3"),
        ("rollback", "1", "2"),
        ("promotion", "2", "1"),
    ]
    assert json.loads((log.folder / "000004.json").read_text())["override"] == "complaints"


def test_rolled_back_version_is_known_until_promoted_again(promotions: Promotions, log: PromotionLog) -> None:
    promote(promotions, log, "2", "1")
    assert last_rollback_of(log.read_files(), "2") is None
    log.roll_back(promotions.client, "complaints")
    left = last_rollback_of(log.read_files(), "2")
    assert left is not None and left.override == "complaints"
    assert last_rollback_of(log.read_files(), "1") is None
    promote(promotions, log, "2", "1")
    assert last_rollback_of(log.read_files(), "2") is None


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("call", ["set_model_version_tag", "set_registered_model_alias"])
def test_promotion_killed_before_its_alias_is_finished_by_the_next(
    promotions: Promotions, log: PromotionLog, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(MlflowClient, call, killed)
        promote(promotions, log, "2", "1")
    assert promotions.aliases(log.model) == {"champion": "1"}
    checks = {check.name: check for check in log.verify(promotions.client)}
    assert all(check.passed for check in checks.values())
    assert checks["aliases"].result == "behind the log until the next use"
    log.repair_registry(promotions.client)
    assert promotions.aliases(log.model) == {"champion": "2", "previous_champion": "1"}
    assert {check.result for check in log.verify(promotions.client)} == {"ok"}


@pytest.mark.parametrize("failure", [OSError("no answer"), KeyboardInterrupt()])
def test_rollback_succeeds_while_aliases_fail(
    promotions: Promotions, log: PromotionLog, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    promote(promotions, log, "2", "1")
    promote(promotions, log, "3", "2")

    def fails(*_: Any) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", fails)
        done = log.roll_back(promotions.client, "complaints")
    assert done.entry.version == "2" and done.aliases.startswith("behind the log until the next use")
    assert promotions.aliases(log.model)["champion"] == "3"
    log.repair_registry(promotions.client)
    assert promotions.aliases(log.model) == {"champion": "2", "previous_champion": "1"}


def lose_folder(promotions: Promotions, log: PromotionLog) -> None:
    shutil.rmtree(log.folder)


def lose_folder_and_alias(promotions: Promotions, log: PromotionLog) -> None:
    shutil.rmtree(log.folder)
    promotions.client.delete_registered_model_alias(log.model, "champion")


def lose_folder_and_tags(promotions: Promotions, log: PromotionLog) -> None:
    shutil.rmtree(log.folder)
    for version in ("1", "2"):
        promotions.client.delete_model_version_tag(log.model, version, "promotion")


def lose_tail(promotions: Promotions, log: PromotionLog) -> None:
    (log.folder / "000002.json").unlink()


def alter_tail(promotions: Promotions, log: PromotionLog) -> None:
    path = log.folder / "000002.json"
    path.write_text(path.read_text().replace('"macro_pr_auc":0.8', '"macro_pr_auc":0.9'))


def alter_bundle_tag(promotions: Promotions, log: PromotionLog) -> None:
    promotions.client.set_model_version_tag(log.model, "1", "bundle_sha256", "0" * 64)


def move_alias(promotions: Promotions, log: PromotionLog) -> None:
    promotions.client.set_registered_model_alias(log.model, "champion", "3")


def lose_all_but_previous_champion(promotions: Promotions, log: PromotionLog) -> None:
    lose_folder_and_tags(promotions, log)
    promotions.client.delete_registered_model_alias(log.model, "champion")


def lose_tail_with_its_version(promotions: Promotions, log: PromotionLog) -> None:
    lose_tail(promotions, log)
    promotions.client.delete_model_version(log.model, "2")


def lose_tail_and_damage_tag(promotions: Promotions, log: PromotionLog) -> None:
    lose_tail(promotions, log)
    promotions.client.set_model_version_tag(log.model, "2", "promotion", "garbage")
    promotions.client.set_registered_model_alias(log.model, "champion", "1")


LOSSES: dict[Callable[[Promotions, PromotionLog], None], tuple[str, str]] = {
    lose_folder: ("version tags", "lacks the entry that the tag promotion of version 1"),
    lose_folder_and_alias: ("version tags", "lacks the entry that the tag promotion of version 1"),
    lose_folder_and_tags: ("aliases", "holds no promotion of version 2 .* MLflow's alias champion"),
    lose_tail: ("version tags", "lacks the entry that the tag promotion of version 2"),
    alter_tail: ("version tags", "lacks the entry that the tag promotion of version 2"),
    alter_bundle_tag: ("bundle digests", "by its tag and .* by entry 1 of the promotion log"),
    lose_all_but_previous_champion: ("aliases", "holds no successor of version 1 .* alias previous_champion"),
    lose_tail_with_its_version: ("aliases", "holds no successor of version 1 .* alias previous_champion"),
    lose_tail_and_damage_tag: ("version tags", "tag promotion of version 2 .* is damaged: 'garbage'"),
    move_alias: ("aliases", "holds no promotion of version 3 .* delete it in MLflow"),
}


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_lost_or_altered_log_is_noticed_by_every_reader(
    promotions: Promotions, log: PromotionLog, lose: Callable[[Promotions, PromotionLog], None]
) -> None:
    promote(promotions, log, "2", "1")
    lose(promotions, log)
    before = promotions.aliases(log.model)
    check, words = LOSSES[lose]
    readers: dict[str, Callable[[], Any]] = {
        "read": lambda: log.read(promotions.client),
        "promote": lambda: log.promote(promotions.client, "3", tags_of("3"), override="a drill"),
        "roll back": lambda: log.roll_back(promotions.client, "a drill"),
        "repair": lambda: log.repair_registry(promotions.client),
    }
    for reader in readers.values():
        with pytest.raises(DamagedInputError, match=words):
            reader()
    assert promotions.aliases(log.model) == before
    failed = {check.name for check in log.verify(promotions.client) if not check.passed}
    assert check in failed


def test_new_log_begins_only_where_the_old_one_is_gone(promotions: Promotions, log: PromotionLog) -> None:
    client = promotions.client
    promote(promotions, log, "2", "1")
    client.set_model_version_tag(log.model, "1", "promotion", "garbage")
    with pytest.raises(ConfigError, match="promotion log is not empty: .*; move the folder away"):
        log.begin(client)
    shutil.rmtree(log.folder)
    log.begin(client)
    assert promotions.aliases(log.model) == {}
    log.promote(client, "3", tags_of("3"), override="the volume was lost")
    assert [(entry.number, entry.version) for entry in log.read(client)] == [(1, "3")]
    assert promotions.aliases(log.model) == {"champion": "3"}
    assert {check.result for check in log.verify(client)} == {"ok"}


def test_versions_copied_with_their_tags_are_no_lost_log(promotions: Promotions, log: PromotionLog) -> None:
    copy = f"{log.model}-copy"
    promotions.client.create_registered_model(copy)
    tags = promotions.client.get_model_version(log.model, "1").tags
    assert "promotion" in tags
    promotions.client.create_model_version(copy, source=f"{promotions.folder}/none", tags=tags)
    assert promotions.log(copy).read(promotions.client) == []


def test_unusable_tags_of_a_version_are_not_recorded(promotions: Promotions, log: PromotionLog) -> None:
    for name, value in (("bundle_sha256", "none"), ("macro_pr_auc", "inf"), ("lexical_macro_pr_auc", "")):
        with pytest.raises(
            DamagedInputError, match=f"tags of version 2 .* are not usable .{name}: .*; delete"
        ):
            log.promote(promotions.client, "2", {**tags_of("2", "1"), name: value}, override="a drill")
    assert [entry.version for entry in log.read(promotions.client)] == ["1"]


def test_account_name_of_any_bytes_is_recorded_as_one_line(
    promotions: Promotions, log: PromotionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ana\udcff\n2 forged\u202e")
    promote(promotions, log, "2", "1")
    assert log.read(promotions.client)[-1].by == r"ana?\n2 forged\u202e"
