"""`relevance validate` after the data gate: the profile, and drift from a reference."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.command_run import CommandRun
from jobs.commands.validate import run_validate
from jobs.console import Console
from pipeline.config.loading import read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.registry import version_files
from pipeline.registry.model_versions import check_profile
from pipeline.registry.version_files import VersionFiles
from pipeline.storage.filesystem import write_json
from tests.support.planted import planted_config, write_config, write_planted
from tests.support.quick_docs import QuickDocs
from validation.gate import runner


def read_with_gate(root: Path, **gate: Any) -> RunConfig:
    """Return the config of a run over the planted rows in `root`, with settings of the data gate."""
    return read_config(write_config(root / "planted.yaml", planted_config(root, "nowhere", gate=gate)))


@pytest.fixture(autouse=True)
def quick_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Great Expectations out; `tests/validation/gate` has the tests of it."""
    monkeypatch.setattr(runner, "DataDocs", QuickDocs)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Config of a run that compares its rows with the champion's; the rows are not written yet."""
    return read_with_gate(tmp_path, reference_profile="champion")


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture the messages that people see."""
    caplog.set_level("INFO")
    return caplog


def validate(config: RunConfig) -> dict[str, Any]:
    """Run the command's stage."""
    return run_validate(config, CommandRun(Console()))


def test_profile_describes_the_accepted_rows(
    tmp_path: Path, config: RunConfig, messages: pytest.LogCaptureFixture
) -> None:
    write_planted(tmp_path)
    result = validate(config)
    profile = json.loads(config.profile_path.read_text())
    assert profile["data_digest"] == result["data_digest"]
    assert {name: task["rows"] for name, task in profile["tasks"].items()} == result["rows"]
    assert "drift not compared: model planted has no champion yet" in messages.text
    check_profile(config.profile_path, result["data_digest"])
    for path, digest in ((config.profile_path, "other"), (tmp_path / "absent.json", result["data_digest"])):
        with pytest.raises(ConfigError, match=r"profile is not of the rows .* run `relevance validate`"):
            check_profile(path, digest)


def test_rows_are_compared_with_the_champion_profile(
    tmp_path: Path,
    config: RunConfig,
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_planted(tmp_path, num_rows=400)
    validate(config)
    served = VersionFiles("7", tmp_path / "served" / "artifacts" / "bundle", "sha")
    served.profile_path.parent.mkdir(parents=True)
    monkeypatch.setattr(version_files, "find_champion", lambda _: served)
    validate(config)
    assert "drift not compared: version 7 was registered without a profile" in messages.text
    config.profile_path.rename(served.profile_path)
    validate(config)
    assert "drift is compared with the data of version 7, the champion" in messages.text
    drift = json.loads((config.validation_dir / "drift.json").read_text())
    assert not [feature for feature in drift["features"] if feature["verdict"] in ("look", "drift")]
    assert (config.validation_dir / "drift.png").is_file()


@pytest.mark.parametrize("kind", [RetryableError, ConfigError, DamagedInputError])
def test_registry_that_fails_does_not_stop_validation(
    tmp_path: Path,
    config: RunConfig,
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[RelevanceError],
) -> None:
    def away(_: RunConfig) -> None:
        raise kind("the registry has a fault")

    write_planted(tmp_path)
    monkeypatch.setattr(version_files, "find_champion", away)
    assert validate(config)["rows"] == {"two": 160, "three": 160}
    assert "drift not compared: the registry has a fault" in messages.text


def test_champion_profile_of_another_version_does_not_stop_validation(
    tmp_path: Path,
    config: RunConfig,
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_planted(tmp_path)
    served = VersionFiles("7", tmp_path / "served" / "artifacts" / "bundle", "sha")
    write_json(served.profile_path, {"profile_version": 99})
    monkeypatch.setattr(version_files, "find_champion", lambda _: served)
    validate(config)
    assert "drift not compared" in messages.text and "profile_version is 99" in messages.text


def test_refused_data_leave_no_reports_of_an_earlier_run(tmp_path: Path) -> None:
    write_planted(tmp_path)
    validate(read_with_gate(tmp_path))
    reference = tmp_path / "reference.json"
    config = read_with_gate(tmp_path, reference_profile=str(reference))
    shutil.copy(config.profile_path, reference)
    validate(config)
    reports = {"leakage.json", "profile.json", "drift.json", "drift.png"}
    assert reports <= {path.name for path in config.validation_dir.iterdir()}
    validate(read_with_gate(tmp_path))
    assert reports & {path.name for path in config.validation_dir.iterdir()} == {
        "leakage.json",
        "profile.json",
    }
    Path(config.judged_location, "task=two", "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedInputError):
        validate(config)
    assert not reports & {path.name for path in config.validation_dir.iterdir()}


def test_own_profile_is_refused_as_reference(tmp_path: Path) -> None:
    write_planted(tmp_path)
    path = read_with_gate(tmp_path).profile_path
    with pytest.raises(ConfigError, match="gate.reference_profile is the profile that this run replaces"):
        validate(read_with_gate(tmp_path, reference_profile=str(path)))


def test_missing_reference_profile_is_a_config_error(tmp_path: Path) -> None:
    write_planted(tmp_path)
    config = read_with_gate(tmp_path, reference_profile=str(tmp_path / "absent.json"))
    expected = (
        r"gate.reference_profile does not exist: .*absent.json; name the validation/profile.json of a run"
    )
    with pytest.raises(ConfigError, match=expected):
        validate(config)
    assert not config.validation_dir.exists(), "it is found before the gate's work"


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        ({"four": ["latin"]}, "task 'four' in gate.scripts is not configured; configured: two"),
        ({"two": []}, "scripts of task two are empty"),
    ],
)
def test_wrong_gate_scripts_are_refused(tmp_path: Path, scripts: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_with_gate(tmp_path, scripts=scripts)
