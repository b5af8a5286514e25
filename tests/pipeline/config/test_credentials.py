"""No URL of a config holds an account or a secret; the refusal names the setting and the variables."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import build_config
from pipeline.errors import ConfigError
from tests.support.planted import planted_config

SETTINGS = (
    "work_dir",
    "data.judged",
    "data.to_score",
    "scoring.scores",
    "registry.tracking_uri",
    "registry.promotions",
    "sources.0.path",
    "backbone.source",
    "nothing.known",
)
SERVER = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
URLS = {
    "http://alice:s3cr3t@host:5000": SERVER,
    "https://s3cr3t@host": SERVER,
    "http://alice:s3/cr3t@host:x": SERVER,
    "https://host/mlflow?access_token=s3cr3t": SERVER,
    "postgresql://alice:s3cr3t@host/x": "PGUSER and PGPASSWORD, or PGPASSFILE",
    "postgresql+psycopg2://alice@host/x?password=s3cr3t": "PGUSER and PGPASSWORD, or PGPASSFILE",
    "postgresql://host/x?sslmode=require&sslpassword=s3cr3t": "PGUSER and PGPASSWORD, or PGPASSFILE",
    "mysql+pymysql://alice:s3cr3t@host/x": "?read_default_file=",
    "mssql+pyodbc://sa:s3cr3t@host/x": "MLflow server on the database",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dsa%3BPWD%3Ds3cr3t": "MLflow server on the database",
    "s3://key:s3cr3t@bucket/x": "AWS_SECRET_ACCESS_KEY",
    "s3://bucket/x?X-Amz-Signature=s3cr3t": "AWS_SECRET_ACCESS_KEY",
    "https://host/x?sv=2025&SIG=s3cr3t": SERVER,
}
WITHOUT = (
    "http://host:5000/mlflow?workspace=ads",
    "https://host/a@b",
    "postgresql+psycopg2://alice@host/mlflow?sslmode=require",
    "mysql+pymysql://alice@host/mlflow?read_default_file=/run/secrets/my.cnf",
    "sqlite:////a:b@c/x.db?timeout=3",
    "databricks://profile",
)


def _settings(tmp_path: Path, setting: str, text: str) -> dict[str, Any]:
    given = planted_config(tmp_path, "package:x", sources=[{"kind": "esci", "path": "/storage/esci"}])
    *parents, last = setting.split(".")
    target: Any = given
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
    target[last] = text
    return given


@pytest.mark.parametrize("setting", SETTINGS)
def test_credentials_in_any_url_are_refused_without_showing_them(tmp_path: Path, setting: str) -> None:
    for url, variables in URLS.items():
        with pytest.raises(ConfigError) as refused:
            build_config(_settings(tmp_path, setting, url), "c.yaml")
        message = str(refused.value)
        assert message.startswith(f"c.yaml: {setting} holds an account or a secret"), message
        assert "cr3t" not in message and "alice" not in message
        assert ("HF_TOKEN" if setting == "backbone.source" else variables) in message, url


def test_urls_without_credentials_are_kept(tmp_path: Path) -> None:
    for url in WITHOUT:
        config = build_config(_settings(tmp_path, "registry.tracking_uri", url), "c.yaml")
        assert config.tracking_uri == url == config.model_dump(mode="json")["registry"]["tracking_uri"]


def test_all_urls_with_credentials_are_named_at_once(tmp_path: Path) -> None:
    settings = _settings(tmp_path, "scoring.scores", "s3://a:b@c/d")
    settings["registry"]["tracking_uri"] = "http://a:b@c"
    with pytest.raises(ConfigError, match=r"registry\.tracking_uri holds .*; scoring\.scores holds"):
        build_config(settings, "c.yaml")
