"""`relevance score` on a folder and a bucket: its refusals, and scoring without the registry."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.commands import score as score_module
from jobs.commands.score import check_results
from pipeline.errors import RelevanceError, RetryableError
from pipeline.scoring.label_store import read_published
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit
from pipeline.storage.object_store import open_store
from tests.support.champion import write_champion
from tests.support.commands import last_json, relevance, relevance_in_process
from tests.support.planted import planted_rows, write_rows
from tests.support.servers import guarded_s3_server

pytestmark = pytest.mark.e2e

UNREACHABLE = "http://127.0.0.1:9"


@dataclass
class Place:
    """A champion's config, and the location of a test's rows and labels."""

    root: Path
    config: Path
    location: str

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows under the location of the rows to score."""
        write_rows(rows, self.root / "upload.parquet")
        open_store(f"{self.location}/rows").put(name, (self.root / "upload.parquet").read_bytes())

    def score(
        self, command: Callable[..., subprocess.CompletedProcess[str]] = relevance_in_process, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `relevance score`; `command` must start a process if Ray will be started."""
        given = {
            "data.to_score": f"{self.location}/rows",
            "scoring.scores": f"{self.location}/scores",
            **settings,
        }
        words = []
        for name, value in given.items():
            words += ["--set", f"{name.replace('__', '.')}={value}"]
        return command("score", "--config", str(self.config), *words, cwd=self.root)

    def check_refused(self, code: int, *words: str, **settings: str) -> None:
        """Check exit code and message, and that no part of a label was written."""
        result = self.score(**settings)
        assert result.returncode == code, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and all(word in last for word in words), last
        assert "Traceback" not in result.stderr and not result.stdout
        if "scoring__scores" not in settings:
            keys = [entry.key for entry in open_store(f"{self.location}/scores").list("")]
            assert [key for key in keys if not key.startswith("lease/")] == []


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path]:
    """Root folder and config of a run with a champion."""
    root = tmp_path_factory.mktemp("champion")
    return root, write_champion(root, tiny_llama)[0]


@pytest.fixture
def in_folder(champion: tuple[Path, Path], tmp_path: Path) -> Place:
    """Four rows to score in a folder."""
    place = Place(*champion, str(tmp_path))
    place.put("task=two/part-0.parquet", planted_rows("two", 4, 1, labeled=False))
    return place


@pytest.fixture
def in_bucket(champion: tuple[Path, Path], tmp_path: Path, s3: str) -> Place:
    """Four rows to score in a bucket."""
    place = Place(*champion, f"s3://labels/{tmp_path.name}")
    place.put("task=two/part-0.parquet", planted_rows("two", 4, 1, labeled=False))
    return place


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on MLflow after a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def test_downloaded_champion_scores_without_the_registry(in_bucket: Place, impatient: None) -> None:
    in_bucket.put("task=three/empty.parquet", [])
    dry_run = relevance_in_process(
        "score", "--config", str(in_bucket.config), "--dry-run", cwd=in_bucket.root
    )
    assert dry_run.returncode == 0, "downloads the champion's files"
    in_bucket.check_refused(
        3,
        "is not used without it (registry.use_fetched_champion)",
        f"MLflow at {UNREACHABLE} does not answer",
        registry__tracking_uri=UNREACHABLE,
        registry__use_fetched_champion="false",
    )
    scored = in_bucket.score(relevance, registry__tracking_uri=UNREACHABLE)
    result = last_json(scored)
    assert "does not answer" in scored.stderr
    assert "using version 1, the champion by the promotion log" in scored.stderr
    usage = (
        r"[01]\.\d\d of [\d,]+ tokens were computed; "
        r"\d+% of the time in the model, .*; arithmetic at \d+% of"
    )
    assert re.search(usage, scored.stderr)
    assert (result["units_scored"], result["rows_in"], result["labels"], result["errors"]) == (2, 4, 4, 0)
    assert read_published(f"{in_bucket.location}/scores").num_rows == 4
    again = last_json(in_bucket.score(registry__tracking_uri=UNREACHABLE))
    assert (again["units_scored"], again["units_already_published"]) == (0, 2)


def test_champion_without_local_files_waits_for_the_registry(in_folder: Place, impatient: None) -> None:
    in_folder.check_refused(
        3,
        "version 1 of planted, the champion by the promotion log, is not here yet",
        f"MLflow at {UNREACHABLE} does not answer",
        "run again",
        name="elsewhere",
        registry__tracking_uri=UNREACHABLE,
    )


def test_champion_unknown_to_the_registry_is_a_config_error(in_folder: Place, tmp_path: Path) -> None:
    in_folder.check_refused(
        2,
        "version 1 of planted, the champion by the promotion log, is not here yet",
        "set registry.tracking_uri",
        name="elsewhere",
        registry__tracking_uri=f"sqlite:///{tmp_path}/other.db",
    )


def test_model_without_a_champion_names_promote(in_folder: Place) -> None:
    in_folder.check_refused(
        2, "model unheard has no champion; run `relevance promote` first", registry__model="unheard"
    )


def test_unconfigured_task_stops_the_run_before_any_label(in_bucket: Place) -> None:
    in_bucket.put("task=unheard/part-0.parquet", planted_rows("two", 2, 2, labeled=False))
    in_bucket.check_refused(2, "'unheard'", f"{in_bucket.location}/rows", "configured: two, three")


def test_location_without_rows_is_refused(in_folder: Place, in_bucket: Place, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for place in (in_folder, in_bucket):
        empty = f"{place.location}/none"
        place.check_refused(1, f"{empty} holds no task=<name>/*.parquet", data__to_score=empty)


def test_missing_folder_or_bucket_is_a_config_error(in_folder: Place, in_bucket: Place) -> None:
    missing = f"{in_folder.location}/nowhere"
    in_folder.check_refused(2, f"{missing} is not a folder; point the config at", data__to_score=missing)
    message = "bucket does not exist: s3://nowhere/x; create it, or correct the config"
    in_bucket.check_refused(2, message, data__to_score="s3://nowhere/x")
    in_bucket.check_refused(2, message, scoring__scores="s3://nowhere/x")


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, str, str]]:
    """Address of an S3 server that checks keys, and a key and secret without permissions."""
    with guarded_s3_server() as server:
        yield server


@pytest.mark.parametrize(
    ("code", "setting"),
    [
        ("InvalidAccessKeyId", "data__to_score"),
        ("SignatureDoesNotMatch", "scoring__scores"),
        ("AccessDenied", "data__to_score"),
    ],
)
def test_refused_account_is_a_config_error(
    in_folder: Place, guarded: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, code: str, setting: str
) -> None:
    address, key_id, secret = guarded
    account = {
        "ENDPOINT_URL": address,
        "REGION": "us-east-1",
        "ACCESS_KEY_ID": "nobody" if code == "InvalidAccessKeyId" else key_id,
        "SECRET_ACCESS_KEY": secret if code == "AccessDenied" else "wrong",
    }
    for name, value in account.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    in_folder.check_refused(
        2,
        "s3://labels/x refuses access",
        f"(403 {code}",
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        **{setting: "s3://labels/x"},
    )


def test_one_retryable_unit_makes_the_command_retryable() -> None:
    done, away, poison = (
        UnitResult("p", "path", error=error, retry=retry)
        for error, retry in (("", False), ("away", True), ("poison", False))
    )
    check_results([done])
    with pytest.raises(
        RetryableError, match="2 of 3 units were not scored, the others are published: poison; away"
    ):
        check_results([done, away, poison])
    with pytest.raises(RelevanceError) as raised:
        check_results([done, poison])
    assert raised.value.exit_code == 1


def test_model_that_no_actor_can_use_is_a_config_error() -> None:
    done, poison = UnitResult("p", "path"), UnitResult("p", "path", error="poison")
    refused = UnitResult("p", "path", error="scoring.use_gpu", is_config_error=True)
    for results, exit_code in (([done, refused], 2), ([refused, refused], 2), ([refused, poison], 1)):
        with pytest.raises(RelevanceError) as raised:
            check_results(results)
        assert raised.value.exit_code == exit_code


def test_unreachable_bucket_is_retryable(in_bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = open_store(f"{in_bucket.location}/scores")
    monkeypatch.setenv("AWS_ENDPOINT_URL", UNREACHABLE)
    result = in_bucket.score()
    assert result.returncode == 3, result.stderr
    assert f"error: request to {in_bucket.location}/scores failed" in result.stderr
    assert result.stderr.strip().endswith("run the same command again")
    assert list(scores.list("")) == []


def test_damaged_promotion_log_is_damaged_input(
    in_folder: Place, champion: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(champion[0] / "promotions", tmp_path / "promotions")
    entry = tmp_path / "promotions" / "planted" / "000001.json"
    entry.write_text(entry.read_text()[:-5])
    in_folder.check_refused(
        4,
        "entry of the promotion log is damaged",
        f"{entry}; mount or restore its folder",
        registry__promotions=str(tmp_path / "promotions"),
    )


class _Rounds:
    """Two rounds of a unit each, and a unit that waits for ever."""

    units = [WorkUnit("two", f"{number}.parquet", "", f"u{number}", None) for number in range(3)]

    def next_units(self, results: list[UnitResult]) -> list[WorkUnit]:
        return self.units[len(results) : len(results) + 1] if len(results) < 2 else []

    def describe_waiting(self) -> list[UnitResult]:
        return [UnitResult("u2", "2.parquet", error="waits", retry=True)]


def test_each_round_is_scored_after_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[list[str]] = []

    def score(units: list[WorkUnit], settings: Any) -> Iterator[UnitResult]:
        scored.append([unit.unit_id for unit in units])
        return (UnitResult(unit.unit_id, unit.path) for unit in units)

    monkeypatch.setattr(score_module, "score_on_ray", score)
    rounds, settings = cast(Any, _Rounds()), cast(Any, None)
    results = list(score_module.score_rounds(rounds, settings))
    assert scored == [["u0"], ["u1"]]
    assert [(result.unit_id, result.error) for result in results] == [("u0", ""), ("u1", ""), ("u2", "waits")]
