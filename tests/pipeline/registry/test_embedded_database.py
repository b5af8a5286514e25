"""Creation of the embedded database: whole or not at all, and by one of several processes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.registry import embedded_database
from pipeline.registry.embedded_database import create_embedded_database
from pipeline.registry.mlflow_client import connect_mlflow
from tests.support.places import ROOT


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tables_never_appear_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    seen = []
    original = mlflow.MlflowClient.search_experiments

    def search(self: mlflow.MlflowClient, **arguments: int) -> object:
        found = original(self, **arguments)
        seen.append((tmp_path / "mlflow.db").exists())
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", search)
    create_embedded_database(f"sqlite:///{tmp_path}/mlflow.db")
    assert seen == [False], "MLflow must have made its tables elsewhere"
    assert _names(tmp_path) == ["mlflow.db"]


def test_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_database.sqlite3, "connect", connect)
    with pytest.raises(KeyboardInterrupt):
        create_embedded_database(f"sqlite:///{tmp_path}/mlflow.db")
    assert _names(tmp_path) == []


def test_first_of_concurrent_creations_decides(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    threads = [threading.Thread(target=create_embedded_database, args=(uri,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _names(tmp_path) == ["mlflow.db"]
    client = connect_mlflow(uri)
    client.create_experiment("one")
    assert [experiment.name for experiment in connect_mlflow(uri).search_experiments()] == ["one", "Default"]


def test_existing_database_stays(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"mine")
    create_embedded_database(f"sqlite:///{tmp_path}/mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "sqlite:///:memory:",
        "sqlite:///{folder}/new.db?mode=rw",
        "sqlite:///{folder}/no/x.db",
    ],
)
def test_other_stores_are_left_to_mlflow(uri: str, tmp_path: Path) -> None:
    create_embedded_database(uri.format(folder=tmp_path))
    assert _names(tmp_path) == []


def test_folder_of_a_process_that_was_killed_after_the_link_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    leave = (
        "import sys, pathlib, models.files as files; files.temporary_path(pathlib.Path(sys.argv[1])).mkdir()"
    )
    subprocess.run([sys.executable, "-c", leave, str(path)], cwd=ROOT, check=True)
    path.write_bytes(b"mine")
    create_embedded_database(f"sqlite:///{path}")
    assert _names(tmp_path) == ["mlflow.db"]
