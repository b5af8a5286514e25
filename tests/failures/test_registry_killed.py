"""Commands of the registry, killed before a file event and run again.

A promotion is killed before every event. The others take seconds each and are killed before every nth, unless
KILL_STRIDE=1 is set.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.kills import Kills, kill_at_every_event

pytestmark = [pytest.mark.failures, pytest.mark.timeout(5_400)]  # with KILL_STRIDE=1

# MLflow's ids and times differ from run to run
UNSTABLE = ("*.db", "*.db-*", "*/mlartifacts*", "promotions/*", "*.html")


def _config(root: Path) -> Any:
    from pipeline.config.loading import read_config

    return read_config(root / "config.yaml", [])


def _register(root: Path) -> Any:
    """Register the champion's bundle, and return its records in MLflow."""
    from models.serialization.bundle import read_bundle
    from pipeline.registry.mlflow_client import connect_mlflow
    from pipeline.registry.model_versions import register_version
    from tests.support.champion import evaluation_of

    config, bundle_dir = _config(root), root / "made" / "bundle"
    sha256 = read_bundle(bundle_dir).sha256
    version = register_version(config, bundle_dir, evaluation_of(sha256))
    client = connect_mlflow(config.tracking_uri)
    records = client.search_model_versions(f"name = '{config.registry.model}'")
    return {
        "versions": [str(record.version) for record in records],
        "version": version,
        "aliases": client.get_registered_model(config.registry.model).aliases,
        "tags": {name: value for name, value in records[0].tags.items() if name != "code_version"},
        "has_description": bool(client.get_model_version(config.registry.model, version).description),
        "runs": [run.info.status for run in client.search_runs([records_experiment(client)])],
    }


def records_experiment(client: Any) -> str:
    """Return the id of the experiment that holds the versions' runs."""
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    return str(experiment.experiment_id)


def _promote(root: Path) -> Any:
    """Promote version 1, and return the log and the aliases."""
    from pipeline.registry.mlflow_client import connect_mlflow
    from pipeline.registry.model_versions import get_version
    from pipeline.registry.promotion_log import PromotionLog

    config = _config(root)
    client, log = connect_mlflow(config.tracking_uri), PromotionLog.from_config(config)
    result = log.promote(client, "1", get_version(client, config.registry.model, "1").tags)
    entries = [(entry.number, entry.version, entry.kind) for entry in log.read_files()]
    return [result.entry.version, entries, client.get_registered_model(config.registry.model).aliases]


def _export(root: Path) -> Any:
    """Export a task of version 1."""
    from models.files import file_sha256
    from pipeline.registry.exports import export_task
    from pipeline.registry.version_files import fetch_version

    folder = root / "export"
    export_task(fetch_version(_config(root), "1"), "two", "merged", folder)
    return {path.name: file_sha256(path) for path in folder.glob("*.safetensors")}


def _report(root: Path) -> Any:
    """Report on version 1, and return the artifacts of its run's reports."""
    from jobs.command_run import CommandRun
    from jobs.commands.report import run_report
    from jobs.console import Console
    from pipeline.registry.mlflow_client import connect_mlflow
    from pipeline.registry.model_versions import get_version

    config = _config(root)
    written = run_report(config, "1", CommandRun(Console()))
    client = connect_mlflow(config.tracking_uri)
    run_id = get_version(client, config.registry.model, "1").run_id
    return [written["report"], [info.path for info in client.list_artifacts(run_id, "reports")]]


def _kill(function: Any, template: Path, root: Path, stride: int = 1) -> Kills:
    """Kill a function before every `stride`th event; every rerun must return what an unkilled run returns."""
    kills = kill_at_every_event(function, template, root, stride=stride)
    assert len(kills.kills) > 3
    problems = kills.differences(UNSTABLE)
    problems += [
        f"killed before {kill.event}: {kill.rerun.value}, not {kills.unkilled.value}"
        for kill in kills.kills
        if not kill.rerun.error and kill.rerun.value != kills.unkilled.value
    ]
    assert problems == []
    return kills


@pytest.fixture
def unregistered(tmp_path: Path, tiny_llama: Path) -> tuple[Path, Path]:
    """Return the template of a run with a bundle that is not registered, and the root of its paths."""
    from tests.support.champion import write_bundle_to_register

    root, template = tmp_path / "root", tmp_path / "template"
    write_bundle_to_register(root, tiny_llama)
    shutil.copytree(root, template)
    return template, root


@pytest.fixture
def registered(tmp_path: Path, tiny_llama: Path) -> tuple[Path, Path]:
    """Return the template of a run whose version 1 is registered but not promoted."""
    from pipeline.registry.model_versions import register_version
    from tests.support.champion import evaluation_of, write_bundle_to_register

    root, template = tmp_path / "root", tmp_path / "template"
    config, sha256 = write_bundle_to_register(root, tiny_llama)
    register_version(config, root / "made" / "bundle", evaluation_of(sha256))
    shutil.copytree(root, template)
    return template, root


@pytest.fixture
def reported(tmp_path: Path, tiny_llama: Path) -> tuple[Path, Path]:
    """Return the template of a run with a registered version and test rows, and the root of its paths."""
    from pipeline.data.reader import find_partitions
    from pipeline.registry.model_versions import register_version
    from tests.support.champion import DATA_DIGEST, evaluation_of, write_bundle_to_register
    from tests.support.planted import planted_rows, write_rows
    from validation.drift.profile import build_tally, write_profile

    root, template = tmp_path / "root", tmp_path / "template"
    config, sha256 = write_bundle_to_register(root, tiny_llama)
    for task in ("two", "three"):
        write_rows(planted_rows(task, 60, 1), config.accepted_dir / f"task={task}" / "part-0.parquet")
    tally = build_tally(find_partitions(config.accepted_dir, config.tasks))
    write_profile(config.profile_path, tally.profile(), DATA_DIGEST)
    register_version(config, root / "made" / "bundle", evaluation_of(sha256))
    shutil.copytree(root, template)
    return template, root


def test_killed_register_is_finished_by_the_next(unregistered: tuple[Path, Path]) -> None:
    kills = _kill(_register, *unregistered, stride=5)
    assert kills.unkilled.value["versions"] == ["1"] and kills.unkilled.value["runs"] == ["FINISHED"]


def test_killed_promotion_is_finished_by_the_next(registered: tuple[Path, Path]) -> None:
    _kill(_promote, *registered)


def test_killed_export_leaves_nothing_half_written(registered: tuple[Path, Path]) -> None:
    _kill(_export, *registered, stride=6)


def test_killed_report_is_written_by_the_next(reported: tuple[Path, Path]) -> None:
    _kill(_report, *reported, stride=4)
