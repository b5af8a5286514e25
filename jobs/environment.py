"""Environment variables of Ray, MLflow and the other libraries.

The libraries read them when they are imported, so they are set first. What the user has set stays.
"""

import os
import signal
import threading

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a cold node takes longer than Ray's minute to import torch and DeepSpeed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # relative paths of a config belong to the folder the command was started in
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray leaves CUDA_VISIBLE_DEVICES as it is in processes that ask for no GPU
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # a registered version must not run code while it loads
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # seconds; with the retries below a dead server is noticed within a minute
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # tokenizing in forked processes deadlocks with the tokenizer's own threads
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare_environment() -> None:
    """Set the defaults for this process and its children.

    Without a GPU, DeepSpeed gets its accelerator by name: its own detection takes seconds.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def worker_environment() -> dict[str, str]:
    """Return the variables that workers on other machines need.

    They hold no secrets, because Ray shows them to everyone who may look at its jobs. DS_ACCELERATOR is not
    among them: a worker's machine may have a GPU where this one has none.
    """
    return {name: os.environ[name] for name in DEFAULTS if name in os.environ}


def end_on_sigterm() -> None:
    """Make SIGTERM end the command as Ctrl-C does: with a message and exit code 3.

    Ray installs its own handler when it starts, which exits with code 15.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
