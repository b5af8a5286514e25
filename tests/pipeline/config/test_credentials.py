"""No URL of a config holds an account or a secret; the refusal names the setting and the variables."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import apply_override, build_config
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
    "http://alice:x's3cr3t@host": SERVER,
    "http:/alice:s3cr3t@host": SERVER,
    "postgresql://alice:x s3cr3t@host/x": "PGUSER and PGPASSWORD, or PGPASSFILE",
    "postgresql://alice/x:s3cr3t@host/x": "PGUSER and PGPASSWORD, or PGPASSFILE",
    "postgresql://host/x?passphrase='s3cr3t'": "PGUSER and PGPASSWORD, or PGPASSFILE",
    "mssql+pyodbc:///?odbc_connect=PWD%20%3D%20s3cr3t": "MLflow server on the database",
    "sqlite+pysqlcipher:///x.db?key=s3cr3t": "keep it in a variable",
    "s3://key/x:s3cr3t@bucket/x": "AWS_SECRET_ACCESS_KEY",
}
WITHOUT = (
    "http://host:5000/mlflow?workspace=ads",
    "https://host/a@b",
    "postgresql+psycopg2://alice@host/mlflow?sslmode=require",
    "mysql+pymysql://alice@host/mlflow?read_default_file=/run/secrets/my.cnf",
    "sqlite:////a:b@c/x.db?timeout=3",
    "postgresql://alice%40corp@host:5432/mlflow?sslkey=/run/client.key&passfile=/run/pg",
    "databricks://scope:prefix",
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


def test_credentials_outside_texts_of_settings_are_found(tmp_path: Path) -> None:
    url = "http://alice:x's3cr3t@host"
    for setting, value, place in (
        (url, 1, "a key holds"),
        ("registry", {url: 1}, "a key of registry holds"),
        ("data.nothing", {url: {"known": url}}, r"data.nothing holds .*; data.nothing.\*\*\*.known holds"),
        ("data", {url}, "data.0 holds"),
        ("data.to_score", url.encode(), "data.to_score holds"),
        ("tasks.0.template", f"see {url} {{query}}", "tasks.0.template holds"),
    ):
        settings = planted_config(tmp_path, "package:x")
        *parents, last = [setting] if "//" in setting else setting.split(".")
        target: Any = settings
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target[name]
        target[last] = value
        with pytest.raises(ConfigError, match=rf"^c.yaml: .*{place}") as refused:
            build_config(settings, "c.yaml")
        assert "cr3t" not in str(refused.value)


def test_templates_and_constants_may_name_a_url(tmp_path: Path) -> None:
    text = "https://shop.example/x: {query} @ {ad_title}"
    assert build_config(_settings(tmp_path, "tasks.0.template", text), "c.yaml").tasks[0].template == text


def test_text_that_is_no_uri_is_refused_without_showing_it(tmp_path: Path) -> None:
    for setting in ("registry.tracking_uri", "registry.model", "registry"):
        for text in ("//alice:s3cr3t@host", "alice:s3cr3t@host", "http:alice:s3cr3t@host"):
            with pytest.raises(ConfigError, match=rf"c.yaml: {setting}") as refused:
                build_config(_settings(tmp_path, setting, text), "c.yaml")
            assert "cr3t" not in str(refused.value)
    with pytest.raises(ConfigError, match="tracking_uri: URI has a blank") as refused:
        build_config(_settings(tmp_path, "registry.tracking_uri", "postgresql://ho st/x?x=s3cr3t"), "c.yaml")
    assert "cr3t" not in str(refused.value)


def test_overrides_that_do_not_fit_are_shown_without_credentials(tmp_path: Path) -> None:
    shown = []
    for url in (*URLS, "alice:s3cr3t@host"):
        for override in (
            f"registry.tracking_uri.x={url}",
            f"registry.tracking_uri=[{url}",
            f"registry.tracking_uri=!!int {url}",
            f"registry={{tracking_uri: {url}: x}}",
            url,
        ):
            settings = _settings(tmp_path, "registry.tracking_uri", "x")
            try:
                apply_override(settings, override)
            except ConfigError as refused:
                shown.append(str(refused))
    assert len(shown) > 2 * len(URLS) and [message for message in shown if "cr3t" in message] == []
