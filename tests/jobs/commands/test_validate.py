"""`relevance validate` beyond the gate: what later data are compared with."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.validate import run_validate
from jobs.console import Console
from pipeline.config.loading import read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError
from pipeline.registry import version_files as fetched
from pipeline.registry.model_versions import check_profile
from pipeline.registry.version_files import FetchedVersion
from tests.support.planted import planted_config, write_config, write_planted


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run over planted rows that are not written yet."""
    path = write_config(
        tmp_path / "planted.yaml", planted_config(tmp_path, "nowhere", gate={"reference_profile": "champion"})
    )
    return read_config(path)


def validated(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """(what the command returns, what it says)."""
    result = run_validate(config, Console())
    return result, capsys.readouterr().err


def test_the_profile_is_of_the_accepted_rows_and_says_so(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    write_planted(tmp_path)
    result, said = validated(config, capsys)
    profile = json.loads(config.profile_path.read_text())
    assert profile["data_digest"] == result["data_digest"]
    assert {name: task["rows"] for name, task in profile["tasks"].items()} == result["rows"]
    assert "drift was not looked at: model planted has no champion yet" in said
    check_profile(config.profile_path, result["data_digest"])
    for path, digest in ((config.profile_path, "other"), (tmp_path / "absent.json", result["data_digest"])):
        with pytest.raises(ConfigError, match=r"is not the profile of the rows .* run `relevance validate`"):
            check_profile(path, digest)


def test_rows_are_compared_with_those_of_the_champion(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_planted(tmp_path, num_rows=400)
    validated(config, capsys)
    served = FetchedVersion("7", tmp_path / "served" / "artifacts" / "bundle", "sha")
    served.profile_path.parent.mkdir(parents=True)
    monkeypatch.setattr(fetched, "find_champion", lambda _: served)
    assert (
        "drift was not looked at: version 7 was registered without a profile" in validated(config, capsys)[1]
    )
    config.profile_path.rename(served.profile_path)
    said = validated(config, capsys)[1]
    assert "compared with the data of version 7, the champion" in said
    drift = json.loads((config.validation_dir / "drift.json").read_text())
    assert not [f for f in drift["features"] if f["verdict"] in ("look", "drift")]
    assert (config.validation_dir / "drift.png").is_file()


def test_a_registry_that_is_away_stops_no_validation(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: RunConfig) -> None:
        raise RetryableError("MLflow does not answer")

    write_planted(tmp_path)
    monkeypatch.setattr(fetched, "find_champion", away)
    result, said = validated(config, capsys)
    assert "drift was not looked at: MLflow does not answer" in said
    assert result["rows"] == {"two": 160, "three": 160}


def test_a_reference_that_does_not_exist_and_scripts_of_no_task_are_config_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_planted(tmp_path)
    gate = {"reference_profile": str(tmp_path / "absent.json")}
    path = write_config(tmp_path / "a.yaml", planted_config(tmp_path, "nowhere", gate=gate))
    with pytest.raises(
        ConfigError,
        match=(
            r"absent.json does not exist; name the validation/profile.json of a run, champion, or leave "
            r"it out"
        ),
    ):
        validated(read_config(path), capsys)
    for scripts, said in (
        ({"four": ["latin"]}, "'four', which is not configured; configured: two"),
        ({"two": []}, "task two names no script"),
    ):
        path = write_config(
            tmp_path / "b.yaml", planted_config(tmp_path, "nowhere", gate={"scripts": scripts})
        )
        with pytest.raises(ConfigError, match=said):
            read_config(path)
