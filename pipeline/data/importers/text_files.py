"""Separated text and json lines read as streams: a bounded part in memory whatever the size of the file, and
of its lines.

The encoding is stated, never guessed; a byte order mark is dropped. Line numbers are those an editor shows, a
header being line 1. Blank lines are no lines. A quote that is never closed costs its own line: the lines
behind it are read again.
"""

import codecs
import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.data.importers.records import Line, check_columns, check_file, value_text
from pipeline.data.importers.text_cleaning import decode_text, pair_surrogates
from pipeline.errors import DamagedInputError

# of one record: more than four texts of the longest kind that the contract takes
MAX_RECORD_CHARS = 8 * 2**20

# of one record: what a quote that is never closed swallows at most before it is found out
MAX_RECORD_LINES = 1_000

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_separated(
    path: Path, columns: Sequence[str], delimiter: str, encoding: str = "utf-8"
) -> Iterator[Line]:
    """The records of separated text with a header, quoted as csv writers quote.

    ConfigError: no file. DamagedInputError: empty, or its header is no text. DataRefusedError: a column is
    missing or named twice.
    """
    with _open_text(path, encoding) as file:
        feed = _Feed(file)
        # the module's own limit is shorter than texts that the contract takes
        csv.field_size_limit(MAX_RECORD_CHARS)
        records = csv.reader(feed, delimiter=delimiter, strict=True)
        names = _read_header(feed, records, path, encoding)
        check_columns(names, columns, path)
        while feed.begin_record():
            try:
                fields = next(records, None)
            except csv.Error:
                if feed.only_too_long():
                    yield Line(feed.number, {}, feed.text, "line_too_long")
                else:
                    yield Line(
                        feed.number,
                        {},
                        defect="unclosed_quote" if feed.give_back() else "misplaced_quote",
                        text=feed.text,
                    )
                continue
            if fields is None:
                return
            if fields and len(fields) != len(names):
                defect = "unclosed_quote" if feed.give_back() else "wrong_field_count"
                yield Line(feed.number, {}, feed.text, defect)
            elif fields:
                yield _line(feed, names, fields, encoding)


def read_fields(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> Iterator[Line]:
    """The lines of tab-separated text without header and without quotes, fields in the order of `columns`.
    Errors as `read_separated`.
    """
    with _open_text(path, encoding) as file:
        for line in _plain_lines(_Feed(file)):
            fields = line.text.split("\t")
            if line.defect or len(fields) != len(columns):
                yield line._replace(defect=line.defect or "wrong_field_count")
            else:
                repaired = _repair(fields, encoding)
                values = dict(zip(columns, repaired or (), strict=bool(repaired)))
                yield line._replace(fields=values, defect=None if repaired else "bad_encoding")


def read_json_lines(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> Iterator[Line]:
    """The objects of a file of json lines; columns that a line leaves out are null. ConfigError: no file.
    DamagedInputError: empty.
    """
    with _open_text(path, encoding) as file:
        for line in _plain_lines(_Feed(file)):
            repaired = _repair([line.text], encoding)
            if line.defect or not repaired:
                yield line._replace(defect=line.defect or "bad_encoding")
            else:
                yield _json_line(line, repaired[0], columns)


class _Feed:
    """The lines of a file, a record at a time; those behind a record's first can be read again."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._chars = 0  # of the record so far
        self.number = 1  # of the record's first line

    def begin_record(self) -> bool:
        """The next line is the first of a record; always true."""
        self.number += len(self._taken)
        self._taken, self._chars = [], 0
        return True

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        """The next line. csv.Error if the record grows too long with it."""
        line = self._again.popleft() if self._again else self._read()
        if not line:
            raise StopIteration
        self._taken.append(line)
        self._chars += len(line)
        if self._chars > MAX_RECORD_CHARS or len(self._taken) > MAX_RECORD_LINES:
            raise csv.Error("the record is too long")
        return line

    def _read(self) -> str:
        """The file's next line; of one that is longer than any record, the beginning."""
        try:
            line = rest = self._file.readline(MAX_RECORD_CHARS + 1)
            while len(rest) > MAX_RECORD_CHARS and not rest.endswith("\n"):
                rest = self._file.readline(MAX_RECORD_CHARS + 1)
        except UnicodeError as error:  # of encodings that cannot go on behind damage, such as utf-16
            raise DamagedInputError(
                f"{self._file.name} is not in {self._file.encoding} ({error}); state its encoding or "
                "convert it"
            ) from error
        return line

    @property
    def text(self) -> str:
        return "".join(self._taken).rstrip("\r\n")

    def only_too_long(self) -> bool:
        """Whether the record is one line longer than any record."""
        return len(self._taken) == 1 and self._chars > MAX_RECORD_CHARS

    def give_back(self) -> bool:
        """Read all but the record's first line again; whether there were any."""
        self._again.extendleft(reversed(self._taken[1:]))
        num_taken, self._taken = len(self._taken), self._taken[:1]
        return num_taken > 1


def _open_text(path: Path, encoding: str) -> TextIO:
    """The text of a source; bytes outside its encoding become lone surrogates, which `_repair` finds."""
    if not check_file(path).stat().st_size:
        raise DamagedInputError(f"{path} is empty; download it again")
    dropping_mark = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return path.open(encoding=dropping_mark, errors="surrogateescape", newline="")


def _read_header(feed: _Feed, records: Iterator[list[str]], path: Path, encoding: str) -> list[str]:
    """The names in the first line."""
    names = None
    try:
        feed.begin_record()
        names = _repair(next(records, []), encoding)
    except csv.Error:
        pass
    if not names:
        raise DamagedInputError(
            f"{path} does not begin with a header line in {encoding}; check its format and encoding, or "
            "download it again"
        )
    return names


def _plain_lines(feed: _Feed) -> Iterator[Line]:
    """Lines that are records by themselves, without their ends."""
    while feed.begin_record():
        try:
            if next(feed, None) is None:
                return
        except csv.Error:
            yield Line(feed.number, {}, feed.text, "line_too_long")
            continue
        if feed.text.strip():
            yield Line(feed.number, {}, feed.text)


def _line(feed: _Feed, names: Sequence[str], fields: list[str], encoding: str) -> Line:
    repaired = _repair(fields, encoding)
    if repaired is None:
        return Line(feed.number, {}, feed.text, "bad_encoding")
    return Line(feed.number, dict(zip(names, repaired, strict=True)), feed.text)


def _json_line(line: Line, text: str, columns: Sequence[str]) -> Line:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return line._replace(defect="not_json")
    if not isinstance(value, dict):
        return line._replace(defect="not_an_object")
    chosen = {name: value.get(name) for name in columns}
    if any(isinstance(v, dict | list) for v in chosen.values()):
        return line._replace(defect="not_text")
    texts = {name: value_text(v) for name, v in chosen.items()}
    return line._replace(
        fields={
            name: pair_surrogates(text) if text and _SURROGATE.search(text) else text
            for name, text in texts.items()
        }
    )


def _repair(fields: list[str], encoding: str) -> list[str] | None:
    """The fields without lone surrogates: pairs that UTF-8 holds one by one are put together; None if bytes
    are damaged.
    """
    if not any(_SURROGATE.search(field) for field in fields if not field.isascii()):
        return fields
    if codecs.lookup(encoding).name != "utf-8":
        return None
    try:
        return [decode_text(field.encode("utf-8", "surrogateescape"), "a field") for field in fields]
    except (DamagedInputError, UnicodeEncodeError):
        return None
