"""Undocumented parts of MLflow, each with its reason. Tested with mlflow 3.17.2."""

from typing import Any

TESTED_VERSION = "3.17.2"

DATABASE_ATTEMPTS = 4

REFUSED_CODES = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # MLflow's names of 401 and 403

REFUSED_STATUS = (401, 403)


def start_system_monitor(run_id: str, interval_s: float) -> Any:
    """Start a thread that logs the load of this machine to a run; its `finish` ends it.

    The documented way, `mlflow.enable_system_metrics_logging`, works only with the global active run. The
    tracker uses a client, which leaves that run to others.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling_interval=interval_s, resume_logging=True)
    monitor.start()
    return monitor


def limit_database_retries() -> None:
    """Make MLflow give up a database that does not answer after about a second.

    It has no setting for its ten attempts, which take 100 s, also where the database refuses the account.
    """
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS


def is_account_refused(error: Exception) -> bool:
    """Return True if a server refuses the account.

    MLflow has no exception class for that. The error code is missing where the server answers in HTML, and
    the HTTP status then stands only in the message.
    """
    if getattr(error, "error_code", None) in REFUSED_CODES:
        return True
    if getattr(getattr(error, "response", None), "status_code", None) in REFUSED_STATUS:
        return True
    return any(f"error code {status} " in str(error) for status in REFUSED_STATUS)
