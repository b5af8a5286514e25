"""Environment variables of the libraries below us. Set before they are imported; what the user set stays."""

import os
import signal
import threading

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a cold node takes longer than Ray's minute to import torch and DeepSpeed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # seconds; with the retries below a dead server is noticed within a minute
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare_environment() -> None:
    """Quiet, bounded, without telemetry. On a machine without a GPU DeepSpeed is told so: its own look takes
    seconds.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def worker_environment() -> dict[str, str]:
    """What workers on other machines need of it; no secrets, as Ray shows these to anyone who may look at its
    jobs.

    Not DS_ACCELERATOR: that is about this machine, and the workers' may have a GPU.
    """
    return {name: os.environ[name] for name in QUIET if name in os.environ}


def end_on_sigterm() -> None:
    """Have SIGTERM end the command as Ctrl-C does: with a sentence and exit code 3. Ray, where it starts,
    would have it exit with 15.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
