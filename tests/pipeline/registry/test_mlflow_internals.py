"""Undocumented parts of MLflow still behave as pipeline/registry/mlflow_internals.py expects."""

import inspect
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import verify_rest_response

from pipeline.registry.mlflow_internals import TESTED_VERSION, is_account_refused, start_system_monitor

HELP = f"mlflow {mlflow.__version__} breaks mlflow_internals.py, which was tested with {TESTED_VERSION}"

SAMPLE_TIMEOUT_S = 90  # of a loaded machine


def test_system_monitor_logs_the_machine_load_by_client(tmp_path: Path) -> None:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    parameters = inspect.signature(SystemMetricsMonitor).parameters
    assert {"run_id", "sampling_interval", "resume_logging"} <= parameters.keys(), HELP
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("load")).info.run_id
    monitor = start_system_monitor(run_id, 0.1)
    deadline_s = time.monotonic() + SAMPLE_TIMEOUT_S
    metrics: dict[str, float] = {}
    while not metrics and time.monotonic() < deadline_s:
        time.sleep(0.1)
        metrics = client.get_run(run_id).data.metrics
    monitor.finish()
    assert "system/cpu_utilization_percentage" in metrics, HELP


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", ["<html>refused</html>", ""])
def test_refused_account_is_recognized(status: int, body: str) -> None:
    response = SimpleNamespace(status_code=status, text=body)
    with pytest.raises(MlflowException) as refused:
        verify_rest_response(response, "/api/2.0/mlflow/experiments/search")
    assert is_account_refused(refused.value), f"{refused.value}: {HELP}"


@pytest.mark.parametrize("status", [404, 500])
def test_other_errors_are_not_refusals(status: int) -> None:
    response = SimpleNamespace(status_code=status, text="")
    with pytest.raises(MlflowException) as failed:
        verify_rest_response(response, "/api/2.0/mlflow/experiments/search")
    assert not is_account_refused(failed.value), HELP
