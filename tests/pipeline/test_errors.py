"""Errors for users: class and sentence of each cause."""

import errno
import os
import re

from pipeline.errors import ConfigError, RetryableError, translate_os_error

CAUSES = {
    errno.ENOSPC: "disk full: .*; nothing half-written is visible, free some space, then run",
    errno.EDQUOT: "quota of the disk used up: .*, free some space, then run",
    errno.EMFILE: "limit of open files reached: .*, raise it \\(`ulimit -n`\\), then run",
    errno.ENFILE: "limit of open files of the machine reached: .*, raise it",
    errno.EIO: "operating system failed: .*; nothing half-written is visible, run the same command again",
}


def test_errors_of_the_system_name_their_own_cause() -> None:
    for number, words in CAUSES.items():
        error = translate_os_error(OSError(number, os.strerror(number)))
        assert isinstance(error, RetryableError) and re.match(words, str(error)), str(error)
    assert isinstance(translate_os_error(PermissionError(errno.EACCES, "denied", "/x")), ConfigError)
