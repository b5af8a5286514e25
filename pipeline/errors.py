"""Errors for users. The class decides the exit code of the command.

A message has the form `<thing> <state>: <value>; <what to do>`.
"""


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
