"""Text files, plain or compressed with gzip, opened in bounded memory."""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from pipeline.errors import DamagedInputError, DataRefusedError

# Gzip may unpack to this much, or to MAX_RATIO times its size if that is more; logs shrink to a fiftieth.
MAX_UNPACKED_BYTES = 2**30

MAX_RATIO = 200

FIRST_LINE_CHARS = 2**20  # in which the first line ends; a longer header has lines that end with \n

_LINE_END = re.compile(r"\r*\n|\r")

_GZIP_MARK = b"\x1f\x8b"  # no text in a common encoding begins with it


def is_gzip(path: Path) -> bool:
    """Return whether a file begins as gzip does."""
    with path.open("rb") as file:
        return file.read(len(_GZIP_MARK)) == _GZIP_MARK


@contextlib.contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open text, unpacked if it is gzip; bytes outside the encoding become lone surrogates.

    Lines end as the first one does, with \\n (a \\r may precede it) or with \\r, and keep their ends.
    """
    with translate_text_errors(path, encoding), _open_unpacked(path) as source:
        start = _wrap(source, encoding, "").read(FIRST_LINE_CHARS)
    line_end = _LINE_END.search(start)
    with _open_unpacked(path) as source:
        yield _wrap(source, encoding, "\r" if line_end and line_end[0] == "\r" else "\n")


@contextlib.contextmanager
def _open_unpacked(path: Path) -> Iterator["BinaryIO | io.BufferedReader"]:
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        source: BinaryIO | io.BufferedReader = file
        if is_gzip(path):
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
            source = io.BufferedReader(_BoundedReader(unpacked, path))
        yield source


def _wrap(source: "BinaryIO | io.BufferedReader", encoding: str, newline: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(source, encoding, errors="surrogateescape", newline=newline)


@contextlib.contextmanager
def translate_text_errors(path: Path, encoding: str) -> Iterator[None]:
    """Raise DamagedInputError for bytes that cannot be unpacked or decoded."""
    try:
        yield
    except UnicodeError as error:  # encodings such as utf-16 cannot be decoded after damage
        raise DamagedInputError(
            f"{path} is not in {encoding} ({error}); state its encoding or convert it"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedInputError(f"{path} cannot be read ({error}); download it again") from error


class _BoundedReader(io.RawIOBase):
    """Reader of unpacked bytes that stops at a decompression bomb."""

    def __init__(self, unpacked: gzip.GzipFile, path: Path) -> None:
        self._unpacked, self._path, self._num_bytes = unpacked, path, 0
        self._max_bytes = max(MAX_UNPACKED_BYTES, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        content = self._unpacked.read1(len(buffer))
        buffer[: len(content)] = content
        self._num_bytes += len(content)
        if self._num_bytes > self._max_bytes:
            raise DataRefusedError(
                f"{self._path} unpacks to over {self._max_bytes:,} bytes, {MAX_RATIO} times its size: a "
                "decompression bomb; unpack it and check what it holds"
            )
        return len(content)
