"""Errors of the tracking store are one sentence of the right kind, and quick."""

import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.registry.mlflow_client import connect_mlflow, create_run, find_run
from pipeline.registry.mlflow_errors import translate_connect_errors, translate_mlflow_errors
from tests.support.planted import planted_config

ODD_FOLDER = "a b#é'\"&[x]{y}$z"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of MLflow; making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect_mlflow(f"sqlite:///{path}")
    return path


def _failure_at(uri: str) -> RelevanceError:
    started_s = time.monotonic()
    with pytest.raises(RelevanceError) as failed:
        connect_mlflow(uri)
    assert "\n" not in str(failed.value)
    assert time.monotonic() - started_s < 120, "the store was asked again and again"
    return failed.value


def test_newer_schema_is_refused_with_the_remedy(database: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    shutil.copy(database, newer)
    with sqlite3.connect(newer) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
    failure = _failure_at(f"sqlite:///{newer}")
    assert isinstance(failure, ConfigError) and "`mlflow db upgrade`" in str(failure)


def test_damaged_database_is_damaged_input_and_named(database: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(b"\x01\x02\x03\x04" * 30_000)
    cut = bytearray(database.read_bytes())
    cut[100:40_000] = b"\xff" * 39_900
    (tmp_path / "cut.db").write_bytes(cut)
    for name in ("noise.db", "cut.db"):
        failure = _failure_at(f"sqlite:///{tmp_path}/{name}")
        assert isinstance(failure, DamagedInputError) and name in str(failure)


def test_half_made_database_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "half.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table experiment_tags (key text)")
    failure = _failure_at(f"sqlite:///{path}")
    assert isinstance(failure, DamagedInputError) and "delete its file" in str(failure)


def test_database_in_an_unusable_place_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    assert isinstance(_failure_at(f"sqlite:///{tmp_path}/folder.db"), ConfigError)


WRONG_URIS = {
    "mysql://alice@127.0.0.1:9/mlflow": "install mysqlclient",
    "mysql+mysqlconnector://h/d": "install mysql-connector-python",
    "postgresql+pg8000://h/d": "install pg8000",
    "mssql+pymssql://h/d": "install pymssql",
    "mysql+foo://h/d": r"URI that is not valid \(Can't load plugin: \S+mysql.foo\)",
    "mysql+a.b://h/d": "URI that is not valid",
    "postgresql+psycopg2://u@h:abc/d": "URI that is not valid .*'abc'",
    "postgresql+psycopg2://u@[h/d": "URI that is not valid",
    "postgresql+psycopg2://u@127.0.0.1:99999/d": "URI that is not valid .*99999",
    "postgresql+asyncpg://h/d": "asynchronous driver asyncpg; write postgresql://",
    "sqlite+aiosqlite:///{}": "asynchronous driver aiosqlite; write sqlite://",
    "sqlite+pysqlcipher:///{}": "install pysqlcipher3",
    "sqlite:///{}?timeout=x": "URI that is not valid",
    "databricks": "has no credentials .*`databricks auth login`",
    "databricks://profile": "has no credentials",
}


def test_uris_that_no_driver_can_open_are_config_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    wrong = {}
    for uri, message in WRONG_URIS.items():
        failure = _failure_at(uri.format(tmp_path / "x.db"))
        if not isinstance(failure, ConfigError) or not re.search(message, str(failure)):
            wrong[uri] = repr(failure)
    assert not wrong
    assert not list(tmp_path.iterdir()), "a database without its driver"


def test_errors_while_connecting_blame_the_uri() -> None:
    broken = ImportError("no pq wrapper available"), TypeError("unexpected keyword argument 'foo'")
    for error in (*broken, ModuleNotFoundError("No module named 'x'", name="x")):
        with pytest.raises(ConfigError, match="URI|package"), translate_connect_errors("http://host"):
            raise error


def test_deleted_experiment_is_refused_with_the_remedy(database: Path, tmp_path: Path) -> None:
    config = _config_at(tmp_path, database)
    client = connect_mlflow(config.tracking_uri)
    create_run(client, config)
    client.delete_experiment(client.get_experiment_by_name(config.registry.model).experiment_id)
    with pytest.raises(ConfigError, match="experiment deleted: .*`mlflow experiments restore"):
        create_run(client, config)


def test_deleted_run_is_refused_with_the_remedy(database: Path, tmp_path: Path) -> None:
    config = _config_at(tmp_path, database, model="runs")
    client = connect_mlflow(config.tracking_uri)
    run_id = create_run(client, config)
    client.delete_run(run_id)
    with (
        pytest.raises(ConfigError, match=f"has deleted the run .*{run_id}.*`mlflow runs restore --run-id`"),
        translate_mlflow_errors(config.tracking_uri),
    ):
        client.log_metric(run_id, "loss", 1.0)


def test_run_of_a_folder_with_any_name_is_found(database: Path, tmp_path: Path) -> None:
    config = _config_at(tmp_path / ODD_FOLDER, database, model="odd")
    client = connect_mlflow(config.tracking_uri)
    assert find_run(client, config, "print") is None
    assert client.get_experiment_by_name("odd") is None, "a look-up must create nothing"
    run_id = create_run(client, config, {"fingerprint": "print", "folder": str(config.run_dir)})
    assert find_run(client, config, "print") == run_id
    assert find_run(client, _config_at(tmp_path / "other", database, model="odd"), "print") is None


def _config_at(folder: Path, database: Path, model: str = "planted") -> RunConfig:
    settings: dict[str, Any] = planted_config(folder.parent, "package:x")
    settings |= {"work_dir": folder, "registry": {"model": model, "tracking_uri": f"sqlite:///{database}"}}
    return build_config(settings, "c.yaml")


TEXTS = [
    ('(psycopg.OperationalError) FATAL: password authentication failed for user "a"', ConfigError),
    ("(pymysql.err.OperationalError) (1045, \"Access denied for user 'a'@'h'\")", ConfigError),
    ('FATAL: database "mlflow" does not exist', ConfigError),
    ("attempt to write a readonly database", ConfigError),
    ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]')", ConfigError),
    ("API request to endpoint /x failed with error code 404 != 200", ConfigError),
    ("The experiment 3 must be in the 'active' state.", ConfigError),
    ('invalid dsn: invalid connection option "foo"', ConfigError),
    ('invalid integer value "x" for connection option "connect_timeout"', ConfigError),
    ('invalid sslmode value: "x"', ConfigError),
    ("database or disk is full", RetryableError),
    ("database is locked", RetryableError),
    ("connection refused", RetryableError),
]


@pytest.mark.parametrize(("text", "kind"), TEXTS)
def test_permanent_faults_are_not_retryable(text: str, kind: type[Exception]) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(kind), translate_mlflow_errors("http://host"):
        raise MlflowException(text)


def test_errors_of_other_code_pass_unchanged() -> None:
    import mlflow  # noqa: F401, the errors are looked at only where it is loaded

    for error in (ValueError("x"), ModuleNotFoundError(name="ours"), OSError("x")):
        with pytest.raises(type(error)), translate_mlflow_errors("http://host"):
            raise error


def test_account_of_the_uri_of_the_environment_is_not_shown() -> None:
    from mlflow.exceptions import MlflowException

    with (
        pytest.raises(RetryableError, match=r"MLflow at http://\*\*\*@host:5000 does not") as failed,
        translate_mlflow_errors("http://alice:x's3cr3t@host:5000"),
    ):
        raise MlflowException("x")
    assert "s3cr3t" not in str(failed.value)


def test_errors_of_libraries_hide_accounts_before_they_are_cut() -> None:
    from mlflow.exceptions import MlflowException

    for blanks in range(40, 120):
        url = "http://" + "alice:" + "s3cr3t" * 40 + "@proxy:3128"
        with pytest.raises(RetryableError) as failed, translate_mlflow_errors("http://host"):
            raise MlflowException(f"{'x' * blanks} {url} {'y' * 150}")
        assert "s3cr3t" not in str(failed.value)
