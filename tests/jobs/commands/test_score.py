"""What `relevance score` ends with, by the command a user types, where something it needs is wanting: a
folder and a bucket alike.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.score import check_outcomes
from pipeline.errors import RelevanceError, RetryableError
from pipeline.scoring.label_store import read_published
from pipeline.scoring.unit_result import Outcome
from pipeline.storage.object_store import open_store
from tests.support.champion import write_champion
from tests.support.commands import last_json, relevance
from tests.support.planted import planted_rows, write_rows
from tests.support.servers import guarded_s3_server

pytestmark = pytest.mark.e2e

AWAY = "http://127.0.0.1:9"


@dataclass
class Place:
    """A champion's config, and where a test's rows and labels are."""

    root: Path
    config: Path
    here: str

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_rows(rows, self.root / "upload.parquet")
        open_store(f"{self.here}/rows").put(name, (self.root / "upload.parquet").read_bytes())

    def score(self, **settings: str) -> Any:
        given = {"data.to_score": f"{self.here}/rows", "scoring.scores": f"{self.here}/scores", **settings}
        words = [
            word for name, text in given.items() for word in ("--set", f"{name.replace('__', '.')}={text}")
        ]
        return relevance("score", "--config", str(self.config), *words, cwd=self.root)

    def refused(self, code: int, *told: str, **settings: str) -> None:
        """The command ends with the code and says so, and nothing of labels is there, not in part."""
        result = self.score(**settings)
        assert result.returncode == code, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and all(words in last for words in told), last
        assert "Traceback" not in result.stderr and not result.stdout
        if "scoring__scores" not in settings:
            assert [
                entry.key
                for entry in open_store(f"{self.here}/scores").list("")
                if not entry.key.startswith("lease/")
            ] == []


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("champion")
    return root, write_champion(root, tiny_llama)[0]


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, champion: tuple[Path, Path], tmp_path: Path, s3: str) -> Place:
    made = Place(*champion, str(tmp_path) if request.param == "folder" else f"s3://labels/{tmp_path.name}")
    made.put("task=two/part-0.parquet", planted_rows("two", 4, 1, labelled=False))
    return made


@pytest.fixture
def in_folder(champion: tuple[Path, Path], tmp_path: Path) -> Place:
    """Where the command ends before it looks at the place."""
    made = Place(*champion, str(tmp_path))
    made.put("task=two/part-0.parquet", planted_rows("two", 4, 1, labelled=False))
    return made


@pytest.fixture
def in_bucket(champion: tuple[Path, Path], tmp_path: Path, s3: str) -> Place:
    return Place(*champion, f"s3://labels/{tmp_path.name}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for MLflow a tenth as long as production."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def test_fetched_champion_scores_without_the_registry_and_an_empty_file_has_no_rows(
    in_bucket: Place, champion: tuple[Path, Path], impatient: None
) -> None:
    in_bucket.put("task=two/part-0.parquet", planted_rows("two", 4, 1, labelled=False))
    in_bucket.put("task=three/empty.parquet", [])
    # fetches the champion's files
    assert (
        relevance("score", "--config", str(in_bucket.config), "--dry-run", cwd=in_bucket.root).returncode == 0
    )
    not_allowed = {"registry__tracking_uri": AWAY, "registry__use_fetched_champion": "false"}
    in_bucket.refused(
        3,
        "is not used without it (registry.use_fetched_champion)",
        f"MLflow at {AWAY} does not answer",
        **not_allowed,
    )
    scored = in_bucket.score(registry__tracking_uri=AWAY)
    assert (
        "does not answer" in scored.stderr
        and "going on with version 1, the champion by the promotion log" in scored.stderr
    )
    assert re.search(
        r"[01]\.\d\d of \d+ tokens were computed; \d+% of the time in the model, .*; arithmetic at \d+% of",
        scored.stderr,
    )
    result = last_json(scored)
    assert (result["units_scored"], result["rows_in"], result["labels"], result["errors"]) == (2, 4, 4, 0)
    assert read_published(f"{in_bucket.here}/scores").num_rows == 4
    assert last_json(in_bucket.score(registry__tracking_uri=AWAY))["units_already_published"] == 2


def test_a_champion_whose_files_are_not_here_waits_for_the_registry(
    in_folder: Place, impatient: None
) -> None:
    told = (
        "version 1 of planted, the champion by the promotion log, is not here yet",
        f"MLflow at {AWAY} does not answer",
        "run again",
    )
    in_folder.refused(3, *told, name="elsewhere", registry__tracking_uri=AWAY)


def test_a_champion_that_the_registry_does_not_have_is_an_error_of_the_config(
    in_folder: Place, tmp_path: Path
) -> None:
    told = (
        "version 1 of planted, the champion by the promotion log, is not here yet",
        "set registry.tracking_uri",
    )
    in_folder.refused(2, *told, name="elsewhere", registry__tracking_uri=f"sqlite:///{tmp_path}/other.db")


def test_a_model_that_was_never_promoted_is_told_with_what_comes_first(in_folder: Place) -> None:
    in_folder.refused(
        2, "model unheard has no champion; run `relevance promote` first", registry__model="unheard"
    )


def test_a_task_that_is_not_configured_stops_the_run_before_any_label(in_bucket: Place) -> None:
    in_bucket.put("task=unheard/part-0.parquet", planted_rows("two", 2, 2, labelled=False))
    in_bucket.refused(2, "'unheard'", f"{in_bucket.here}/rows", "configured: two, three")


def test_a_place_without_rows_is_refused_and_one_that_is_not_there_is_an_error_of_the_config(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    place.refused(1, f"{place.here}/none holds no task=<name>/*.parquet", data__to_score=f"{place.here}/none")
    if "://" not in place.here:
        place.refused(
            2,
            f"{place.here}/nowhere is not a folder; point the config at",
            data__to_score=f"{place.here}/nowhere",
        )


def test_a_bucket_that_is_not_there_is_an_error_of_the_config_for_rows_and_for_labels(
    in_bucket: Place,
) -> None:
    told = ("s3://nowhere/x lies in no bucket that there is; make the bucket, or correct the config",)
    in_bucket.refused(2, *told, data__to_score="s3://nowhere/x")
    in_bucket.refused(2, *told, scoring__scores="s3://nowhere/x")


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, str, str]]:
    with guarded_s3_server() as found:
        yield found


@pytest.mark.parametrize(("wrong", "of"), [("key", "rows"), ("secret", "labels"), ("rights", "rows")])
def test_an_account_that_a_bucket_refuses_ends_the_command_for_good(
    champion: tuple[Path, Path],
    guarded: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wrong: str,
    of: str,
) -> None:
    address, key_id, secret = guarded
    local = Place(*champion, str(tmp_path))
    local.put("task=two/part-0.parquet", planted_rows("two", 4, 1, labelled=False))
    settings = {
        "ENDPOINT_URL": address,
        "REGION": "us-east-1",
        "ACCESS_KEY_ID": "nobody" if wrong == "key" else key_id,
    }
    for name, value in {**settings, "SECRET_ACCESS_KEY": secret if wrong == "rights" else "wrong"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    code = {"key": "InvalidAccessKeyId", "secret": "SignatureDoesNotMatch", "rights": "AccessDenied"}[wrong]
    setting = {"rows": "data__to_score", "labels": "scoring__scores"}[of]
    local.refused(
        2,
        "s3://labels/x refuses access",
        f"(403 {code}",
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        **{setting: "s3://labels/x"},
    )


def test_units_that_may_succeed_make_the_command_worth_a_retry_whatever_else_failed() -> None:
    done, away, poison = (
        Outcome("p", "path", error=error, retry=retry)
        for error, retry in (("", False), ("away", True), ("poison", False))
    )
    check_outcomes([done])
    with pytest.raises(
        RetryableError, match="2 of 3 units were not scored, the others are published: poison; away"
    ):
        check_outcomes([done, away, poison])
    with pytest.raises(RelevanceError) as caught:
        check_outcomes([done, poison])
    assert caught.value.exit_code == 1


def test_a_bucket_that_is_away_is_worth_a_retry(in_bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = open_store(f"{in_bucket.here}/scores")
    monkeypatch.setenv("AWS_ENDPOINT_URL", AWAY)
    result = in_bucket.score()
    assert (
        result.returncode == 3
        and f"error: {in_bucket.here}/scores does not do what it is asked" in result.stderr
    ), result.stderr
    assert result.stderr.strip().endswith("run the same command again") and list(scores.list("")) == []


def test_a_promotion_log_that_is_damaged_is_damaged_input(
    in_folder: Place, champion: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(champion[0] / "promotions", tmp_path / "promotions")
    record = tmp_path / "promotions" / "planted" / "000001.json"
    record.write_text(record.read_text()[:-5])
    assert json.loads((champion[0] / "promotions" / "planted" / "000001.json").read_text())["version"] == "1"
    in_folder.refused(
        4,
        f"{record}, a record of the promotion log, is damaged; restore it",
        registry__promotions=str(tmp_path / "promotions"),
    )
