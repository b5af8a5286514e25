"""A range of dates is scored although rows of some dates are missing, which are named."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.commands import score
from jobs.commands.score import requested_days, run_backfill, run_plan
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError
from pipeline.scoring.work_units import MissingDayError, check_day
from pipeline.storage.object_store import open_store
from tests.support.planted import planted_config, planted_rows, write_rows

DAYS = ("2026-01-31", "2026-02-02")  # the day between is missing


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Return a config whose rows of DAYS are there; the folder of the day between is empty."""
    for day in DAYS:
        write_rows(
            planted_rows("two", 2, 1, labeled=False), tmp_path / "rows" / day / "task=two" / "part.parquet"
        )
    (tmp_path / "rows" / "2026-02-01" / "task=two").mkdir(parents=True)
    data = {"to_score": str(tmp_path / "rows" / "{date}")}
    return build_config({**planted_config(tmp_path, "nowhere"), "data": data}, "test")


@pytest.fixture
def run() -> Any:
    """Return a command run that shows nothing."""
    return SimpleNamespace(begin_stage=print, result=print, suggest=lambda *words: words)


def scored_days(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the scoring of a day by a check of its rows; return the days that will be scored."""
    days: list[str] = []

    def run_score(config: RunConfig, run: Any, day: str, all_tasks: bool) -> dict[str, Any]:
        check_day(config.to_score_location, day)
        days.append(day)
        return {"run": day, **dict.fromkeys(score.SUMMARY_KEYS, 1)}

    monkeypatch.setattr(score, "run_score", run_score)
    return days


def test_missing_day_is_passed_over_named_and_retryable(
    config: RunConfig, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    days = scored_days(monkeypatch)
    message = "rows of 1 of 3 days are missing: 2026-02-01; the other days are scored"
    with caplog.at_level(logging.WARNING), pytest.raises(RetryableError, match=message) as raised:
        run_backfill(config, run, *DAYS)
    assert days == list(DAYS) and raised.value.exit_code == 3
    assert "rows/2026-02-01 is absent or empty" in caplog.text
    assert run_backfill(config, run, DAYS[0], DAYS[0])["dates"] == {DAYS[0]: DAYS[0]}


def test_dry_run_lists_the_other_days(
    config: RunConfig, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = SimpleNamespace(bundle_sha256="b", version="1")
    monkeypatch.setattr(score, "resolve_champion", lambda config: champion)
    plan = run_plan(config, run, [DAYS[0], "2026-02-01", "2026-02-03"])
    assert (plan["units_to_score"], plan["days_missing"]) == (1, ["2026-02-01", "2026-02-03"])
    assert plan["next"] == ("score", "--logical-date", DAYS[0], "--until", "2026-02-03")
    plan = run_plan(config, run, [DAYS[0]], all_tasks=True)
    assert plan["next"] == ("score", "--logical-date", DAYS[0], "--all-tasks")
    assert "rows of 2026-02-03 are missing" in capsys.readouterr().out


@pytest.mark.parametrize("first", ["", " ", "2026-1-31", "20260131", "yesterday"])
def test_dates_in_another_form_are_refused(first: str) -> None:
    assert requested_days(None, None) == [None]
    assert requested_days(DAYS[0], None) == [DAYS[0]]
    assert requested_days(*DAYS) == [DAYS[0], "2026-02-01", DAYS[1]]
    for wrong in ((first, None), (first, DAYS[1]), (DAYS[0], first)):
        with pytest.raises(ConfigError, match="write it as 2026-01-31"):
            requested_days(*wrong)


@pytest.fixture(params=["folder", "bucket"])
def dated(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    """Return a location of dates with rows of the first of DAYS."""
    place = str(tmp_path) if request.param == "folder" else f"s3://labels/{tmp_path.name}"
    open_store(place).put(f"{DAYS[0]}/task=two/part.parquet", b"")
    return f"{place}/{{date}}"


def test_day_without_rows_is_missing(dated: str) -> None:
    check_day(dated, DAYS[0])
    with pytest.raises(MissingDayError, match="rows of 2026-02-02 are missing"):
        check_day(dated, DAYS[1])


def test_missing_folder_of_all_days_is_a_config_error(tmp_path: Path) -> None:
    for place in ("typo/{date}", "typo/day-{date}/rows"):
        with pytest.raises(ConfigError, match="typo is not a folder; point data.to_score at"):
            check_day(f"{tmp_path}/{place}", DAYS[0])
    with pytest.raises(MissingDayError):
        check_day(f"{tmp_path}/day-{{date}}/rows", DAYS[0])
