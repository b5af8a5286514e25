"""Errors a user meets. A message says what, where and what next; the class decides the exit code of the
command.
"""


def last_line(error: BaseException) -> str:
    """A short name for an error of a library."""
    return (
        f"{type(error).__name__}: "
        f"{str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
    )


class RelevanceError(Exception):
    """Any failure with a message meant for the user."""

    exit_code = 1


class DataRefusedError(RelevanceError):
    """The data was read and judged unfit."""

    exit_code = 1


class GateRefusedError(RelevanceError):
    """A model version did not earn its promotion."""

    exit_code = 1


class ConfigError(RelevanceError):
    """The config or the command line is wrong; running again without a change cannot help."""

    exit_code = 2


class RetryableError(RelevanceError):
    """Something outside is busy, away or was interrupted; the same command may succeed later."""

    exit_code = 3


class DamagedInputError(RelevanceError):
    """A file cannot be what it claims to be: truncated, altered, of another format."""

    exit_code = 4
