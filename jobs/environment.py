"""Environment of a command: variables of Ray, MLflow and the other libraries, home folder, encoding, signals.

The libraries read their variables when they are imported, so they are set first. What the user has set stays.
"""

import errno
import getpass
import io
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.escaping import one_line

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

READER_GONE = (errno.EPIPE, errno.EIO)  # a pipe such as `| head`, a terminal that was closed

OTHERS_MASK = 0o027  # bits that no file of a run has

USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # of getpass.getuser

# files of a home folder that libraries need, and the variables that name them; they write to HF_HOME alone
HOME_FILES = {
    "AWS_CONFIG_FILE": ".aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials",
    "DATABRICKS_CONFIG_FILE": ".databrickscfg",
    "HF_HOME": ".cache/huggingface",
    "MLFLOW_TRACKING_CREDENTIALS_FILE": ".mlflow/credentials",
    "NETRC": ".netrc",
    "PGPASSFILE": ".pgpass",
    "RAY_AUTH_TOKEN_PATH": ".ray/auth_token",
}


def open_closed_streams() -> None:
    """Open stdin, stdout and stderr on the null device where the caller closed them.

    A file that is opened later would take the number of a closed stream, and receive its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def use_utf8() -> None:
    """Make this process and its children read and write UTF-8, whatever the locale.

    Libraries open files in the encoding of the locale, which Python fixes when it starts: where it is another
    one, the command is started again. A character that cannot be written is replaced, never an error.
    """
    os.environ["PYTHONIOENCODING"] = "utf-8:replace"
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.stdout, sys.stderr = open_output(1), open_output(2)


class _Output(io.FileIO):
    """Output that takes what nobody reads any more: it is dropped, and the work goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
        return len(data)


def open_output(fd: int, *, closefd: bool = False) -> io.TextIOWrapper:
    """Return a stream to a file descriptor in UTF-8, which drops what is written after its reader left."""
    raw = _Output(fd, "w", closefd=closefd)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True)


def check_arguments() -> None:
    """Raise ConfigError if an argument is not UTF-8: texts, records and the registry could not hold it."""
    for argument in sys.argv[1:]:
        shown = argument.encode("utf-8", errors="replace").decode()
        if shown != argument:
            raise ConfigError(
                f"argument not UTF-8: {shown}; write it in UTF-8, and rename a file that it names"
            )


def typed_command() -> str:
    """Return the command that this process was started for; empty for `relevance` alone."""
    return " ".join(sys.argv[1:2])


def restrict_file_modes() -> None:
    """Keep new files of this process and its children from users outside the group: 0640, folders 0750.

    A mask of the user that takes away more stays.
    """
    os.umask(os.umask(OTHERS_MASK) | OTHERS_MASK)


def prepare_environment() -> None:
    """Set the defaults for this process and its children.

    Without a GPU, DeepSpeed gets its accelerator by name: its own detection takes seconds.

    Raises:
        ConfigError: There is no home folder, and none can be made.
    """
    ensure_home()
    name_user()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def ensure_home() -> None:
    """Set HOME to a folder below the temporary folder if this user has none that can be written.

    Containers run as users without an entry in the list of users, with HOME unset or `/`. Ray, Great
    Expectations and the caches of models need a home folder.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if home is None or not os.access(home, os.W_OK | os.X_OK):
        for name, path in HOME_FILES.items():
            if home is not None and os.access(home / path, os.R_OK):
                os.environ.setdefault(name, str(home / path))
        os.environ["HOME"] = str(_temporary_home())


def name_user() -> None:
    """Make the account's name, which MLflow and the promotion log record, one line.

    A user without an entry gets a name, which torch needs.
    """
    for name in USER_VARIABLES:
        if name in os.environ:
            os.environ[name] = one_line(os.environ[name])
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


def _temporary_home() -> Path:
    """Return a folder that this user alone may use, the same one for each command."""
    try:
        folder = Path(tempfile.gettempdir()) / f"relevance-home-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # made by somebody else
            return Path(tempfile.mkdtemp(prefix="relevance-home-"))
    except OSError as error:
        raise ConfigError(
            f"home folder missing ({error}); set HOME to a folder that this user may write to"
        ) from error
    return folder


def worker_environment() -> dict[str, str]:
    """Return the variables that workers on other machines need.

    They hold no secrets, because Ray shows them to everyone who may look at its jobs. DS_ACCELERATOR is not
    among them: a worker's machine may have a GPU where this one has none.
    """
    return {name: os.environ[name] for name in DEFAULTS if name in os.environ}


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the command as Ctrl-C does: with a message and exit code 3.

    Ray installs its own handler of SIGTERM when it starts, which exits with code 15. `nohup` ignores SIGHUP.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.default_int_handler)
