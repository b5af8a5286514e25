"""Paths that a cluster's machines cannot see are refused before a command is sent."""

from pathlib import Path

import pytest

from jobs.submit_paths import check_paths
from pipeline.config.loading import build_config, read_config, read_settings
from pipeline.errors import ConfigError
from tests.support.planted import planted_config, write_config

RELATIVE = [
    ("work_dir", "runs"),
    ("data.judged", "judged"),
    ("data.to_score", "days/{date}"),
    ("scoring.scores", "~/scores"),
    ("registry.promotions", "log"),
    ("gate.reference_profile", "profile.json"),
    ("sources.0.path", "esci"),
    ("backbone.source", "./llama"),
    ("backbone.source", "tiny.gguf"),
    ("registry.tracking_uri", "sqlite:///mlflow.db"),
    ("registry.tracking_uri", "sqlite:///~/mlflow.db"),
]
SHARED = [
    ("data.to_score", "s3://ads/pairs"),
    ("scoring.scores", "/storage/x"),
    ("gate.reference_profile", "champion"),
    ("backbone.source", "org/name"),
    ("backbone.source", "package:llm"),
    ("registry.tracking_uri", "http://mlflow:5000"),
    ("registry.tracking_uri", "sqlite:////storage/mlflow.db"),
    ("registry.tracking_uri", "databricks"),
]


@pytest.mark.parametrize(("setting", "text"), RELATIVE)
def test_relative_path_of_any_setting_is_refused(tmp_path: Path, setting: str, text: str) -> None:
    settings = planted_config(tmp_path, "/storage/llama", sources=[{"kind": "esci", "path": "/storage/esci"}])
    path = write_config(tmp_path / "c.yaml", settings)
    check_paths(read_config(path), read_settings(path))
    given = read_settings(path, [f"{setting}={text}"])
    with pytest.raises(ConfigError) as refused:
        check_paths(build_config(given, "test"), given)
    assert f"cannot resolve: {setting} ({text}); write absolute paths" in str(refused.value)


@pytest.mark.parametrize(("setting", "text"), SHARED)
def test_location_seen_by_all_machines_is_accepted(tmp_path: Path, setting: str, text: str) -> None:
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "/storage/llama"))
    override = f"{setting}={text}"
    check_paths(read_config(path, [override]), read_settings(path, [override]))
