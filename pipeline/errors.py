"""Errors for users. The class decides the exit code of the command.

A message has the form `<thing> <state>: <value>; <what to do>`.
"""

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

# of files and folders, which a retry without a change cannot mend
PERMANENT_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EILSEQ,
    }
)

# state, and what to do before a retry
TEMPORARY_ERRNOS = {
    errno.ENOSPC: ("disk full", "free some space, then "),
    errno.EDQUOT: ("quota of the disk used up", "free some space, then "),
    errno.EMFILE: ("limit of open files reached", "raise it (`ulimit -n`), then "),
    errno.ENFILE: ("limit of open files of the machine reached", "raise it (fs.file-max), then "),
}

# errors of code that parses JSON with other fields than it expects
WRONG_FIELDS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def describe_first_problem(error: "ValidationError") -> str:
    """Return the place and the message of the first problem that pydantic found."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def summarize_error(error: BaseException) -> str:
    """Return the class name and the last line of the message of a library's error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


class RelevanceError(Exception):
    """A failure with a message for the user."""

    exit_code = 1


class DataRefusedError(RelevanceError):
    """The data is readable but unusable."""

    exit_code = 1


class GateRefusedError(RelevanceError):
    """The promotion gate refused a model version."""

    exit_code = 1


class ConfigError(RelevanceError):
    """The config, the command line or the account is wrong; a retry without a change cannot help."""

    exit_code = 2


class RetryableError(RelevanceError):
    """An outside service is busy or unreachable, or the run was interrupted; a retry may succeed."""

    exit_code = 3


class DamagedInputError(RelevanceError):
    """A file is truncated, altered or of another format."""

    exit_code = 4


def translate_os_error(error: OSError) -> RelevanceError:
    """Return the error for the user of a file or folder that cannot be read or written."""
    if error.errno not in PERMANENT_ERRNOS:
        state, cure = TEMPORARY_ERRNOS.get(error.errno or 0, ("operating system failed", ""))
        return RetryableError(
            f"{state}: {error}; nothing half-written is visible, {cure}run the same command again"
        )
    place = f": {error.filename}" if error.filename else ""
    return ConfigError(
        f"file or folder not usable ({error.strerror}){place}; give this user the right to read and write "
        "there, or choose another place in the config"
    )
