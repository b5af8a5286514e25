"""Every path setting takes every character, or refuses it with its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from pipeline.config.loading import build_config
from pipeline.config.paths import parse_location, parse_tracking_uri
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from tests.support.planted import planted_config

SETTINGS = (
    "work_dir",
    "data.judged",
    "data.to_score",
    "scoring.scores",
    "registry.promotions",
    "gate.reference_profile",
    "sources.0.path",
    "backbone.source",
    "backbone.cache_dir",
)
ANYWHERE = ("a b", "é日本", "a#b", "it's", 'say "x"', "a&b;c", "a+b=c", "a:b@c", "[x]{y}*", "back\\slash")
SETTINGS_OF_DATABASE = ("work_dir",)  # hold MLflow's database
ENCODED = ("50%20off", "100%", "what?x=1")
NOWHERE = ("$HOME/x", "a/${RUN}/x", "a\nb", "a\x7fb", "~bob/x", "", "  ")


def _build(tmp_path: Path, setting: str, text: str) -> RunConfig:
    given = planted_config(tmp_path, "package:x", sources=[{"kind": "esci", "path": "/storage/esci"}])
    *parents, last = setting.split(".")
    target: Any = given
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
    target[last] = text
    return build_config(given, "c.yaml")


def _value(config: RunConfig, setting: str) -> str:
    value: Any = config
    for name in setting.split("."):
        value = value[int(name)] if isinstance(value, tuple) else getattr(value, name)
    return str(value)


@pytest.mark.parametrize("setting", SETTINGS)
def test_odd_characters_of_paths_are_kept_or_refused(tmp_path: Path, setting: str) -> None:
    for name in (*ANYWHERE, *ENCODED):
        text = f"{tmp_path}/{name}"
        if name in ENCODED and setting in SETTINGS_OF_DATABASE:
            with pytest.raises(ConfigError, match=f"registry: MLflow .* below a {setting} .* rename it"):
                _build(tmp_path, setting, text)
            continue
        config = _build(tmp_path, setting, text)
        assert _value(config, setting) == text
        assert make_url(config.tracking_uri).database == f"{config.run_dir}/mlflow.db"
    for text in NOWHERE:
        with pytest.raises(ConfigError, match=f"{setting}: path "):
            _build(tmp_path, setting, text)


@pytest.mark.parametrize("setting", SETTINGS)
def test_bucket_is_read_or_refused_with_the_setting(tmp_path: Path, setting: str) -> None:
    if setting in ("data.judged", "data.to_score", "scoring.scores"):
        assert _value(_build(tmp_path, setting, "s3://ads/x"), setting) == "s3://ads/x"
        return
    with pytest.raises(ConfigError, match=f"{setting}: bucket is not possible here"):
        _build(tmp_path, setting, "s3://ads/x")


def test_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/ann")
    for setting in SETTINGS:
        if setting != "backbone.cache_dir":  # expanded on the machine that loads the model
            assert _value(_build(tmp_path, setting, "~/x"), setting) == "/homes/ann/x"
    assert parse_tracking_uri("sqlite:///~/x.db") == "sqlite:////homes/ann/x.db"


def test_location_with_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="use a folder or s3://bucket/prefix"):
        parse_location("gs://ads/x")


TRACKING_URIS: Mapping[str, str] = {
    "mlflow:5000": "write http://HOST:PORT",
    "./mlruns": "write http://HOST:PORT",
    "http:/host": "write http://HOST:PORT",
    "file:///mlruns": "no store of scheme file",
    "htp://host": "no store of scheme htp",
    "http://": "address is not valid",
    "http://host:port": "address is not valid",
    "http://host:99999": "address is not valid",
    "http://ho st:5000": "address is not valid",
    "postgresql://host/my db": "has a blank",
    "sqlite://": "names no file",
    "sqlite:////a/50%20off/x.db": "with % is not possible",
    "sqlite:////$HOME/x.db": "has a \\$",
    "databricks-uc": "write http://HOST:PORT",
    "": "write http://HOST:PORT",
}


def test_tracking_uri_that_mlflow_cannot_use_is_refused(tmp_path: Path) -> None:
    for uri, message in TRACKING_URIS.items():
        with pytest.raises(ConfigError, match=f"registry.tracking_uri: .*{message}"):
            _build(tmp_path, "registry.tracking_uri", uri)


def test_supported_tracking_uris_are_kept(tmp_path: Path) -> None:
    for uri in (
        "http://host:5000",
        "https://host/mlflow",
        "http://[::1]:5000",
        "databricks",
        "databricks://profile",
        "postgresql+psycopg2://alice@host/mlflow?sslmode=require",
        "mysql+pymysql://host/mlflow",
        "sqlite:////a/x.db?timeout=3",
    ):
        assert _build(tmp_path, "registry.tracking_uri", uri).tracking_uri == uri


def test_relative_sqlite_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_tracking_uri("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
