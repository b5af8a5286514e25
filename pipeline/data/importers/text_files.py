"""Readers of delimited text and json; memory is bounded for any size of a file and of its lines.

- The encoding is stated, never guessed; a byte order mark is dropped. Gzip is known by its first bytes.
- Lines are numbered as in an editor; a header is line 1. Blank lines are skipped.
- A quote that is never closed costs only its own line: the lines after it are read again.
"""

import codecs
import contextlib
import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from pipeline.data.importers.gzip_text import open_text, translate_text_errors
from pipeline.data.importers.records import SourceRecord, check_columns, check_file, format_value
from pipeline.data.importers.text_cleaning import decode_text, pair_surrogates
from pipeline.errors import DamagedInputError

MAX_RECORD_CHARS = 8 * 2**20  # more than four texts of the contract's maximum length

MAX_RECORD_LINES = 1_000  # a quote that is never closed is detected after this many lines

JSON_CHARS = 2**20  # of an array, read at a time

# line: a quoted field ends in its line; csv: it may hold line breaks; none: a quote is a plain character
Quoting = Literal["line", "csv", "none"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")

_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class TextFormat:
    """Format of delimited text with a header."""

    delimiter: str
    quoting: Quoting = "csv"
    encoding: str = "utf-8"


TSV = TextFormat("\t")  # as data sets are published


def read_delimited(path: Path, columns: Sequence[str], text_format: TextFormat) -> Iterator[SourceRecord]:
    """Yield the records of delimited text with a header.

    Raises:
        ConfigError: The path is not a file.
        DamagedInputError: The file is empty, or its header is not text in the encoding.
        DataRefusedError: A column is missing or repeated, or gzip is a decompression bomb.
    """
    encoding = text_format.encoding
    with _open_text(path, encoding) as file:
        if text_format.quoting == "none":
            yield from _split_lines(_RecordLines(file, path), path, columns, text_format)
            return
        lines = _RecordLines(file, path, 1 if text_format.quoting == "line" else MAX_RECORD_LINES)
        # of the whole process: the default limit of csv is shorter than texts that the contract allows
        csv.field_size_limit(MAX_RECORD_CHARS)
        records = csv.reader(lines, delimiter=text_format.delimiter, strict=True)
        names = _read_header(lines, records, path, encoding)
        check_columns(names, columns, path)
        while True:
            lines.begin_record()
            try:
                fields = next(records, None)
            except csv.Error as error:
                yield lines.bad_record(_csv_defect(lines, error))
                continue
            if fields is None:
                return
            if fields and len(fields) != len(names):
                num_pushed_back = lines.push_back_rest()
                yield lines.bad_record("unclosed_quote" if num_pushed_back else "wrong_field_count")
            elif fields:
                yield _build_record(lines, names, fields, encoding)


def read_headerless_tsv(
    path: Path, columns: Sequence[str], encoding: str = "utf-8"
) -> Iterator[SourceRecord]:
    """Yield the lines of tab-separated text without header and quotes, with fields in the order of `columns`.

    Errors are those of `read_delimited`.
    """
    with _open_text(path, encoding) as file:
        for record in _plain_lines(_RecordLines(file, path)):
            yield _split_record(record, columns, "\t", encoding)


def read_json(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> Iterator[SourceRecord]:
    """Yield the objects of json lines, or of one array; columns missing in an object are null.

    Objects of an array are numbered from 1.

    Raises:
        ConfigError: The path is not a file.
        DamagedInputError: The file is empty, or it is an array with an error.
        DataRefusedError: Gzip is a decompression bomb.
    """
    with _open_text(path, encoding) as file, translate_text_errors(path, encoding):
        is_array = file.read(JSON_CHARS).lstrip().startswith("[")
    with _open_text(path, encoding) as file:
        for record in _array_items(file, path) if is_array else _plain_lines(_RecordLines(file, path)):
            repaired = _repair([record.text], encoding)
            if record.defect or not repaired:
                yield record._replace(defect=record.defect or "bad_encoding")
            else:
                yield _parse_json(record, repaired[0], columns)


class _RecordLines:
    """Iterator over the lines of a file that knows which lines belong to the current record."""

    def __init__(self, file: TextIO, path: Path, max_lines: int = MAX_RECORD_LINES) -> None:
        self._file, self._path, self._max_lines = file, path, max_lines
        self._pushed_back: deque[str] = deque()  # lines to return again
        self._record: list[str] = []  # lines of the current record
        self._num_chars = 0  # of the current record
        self.number = 1  # of the first line of the current record

    def begin_record(self) -> None:
        """Make the next line the first of a record."""
        self.number += len(self._record)
        self._record, self._num_chars = [], 0

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        """Return the next line. csv.Error: the record is too long with it."""
        line = self._pushed_back.popleft() if self._pushed_back else self._read()
        if not line:
            raise StopIteration
        self._record.append(line)
        self._num_chars += len(line)
        if self._num_chars > MAX_RECORD_CHARS or len(self._record) > self._max_lines:
            raise csv.Error("the record is too long")
        return line

    def _read(self) -> str:
        """Return the next line of the file, cut if it is longer than any record."""
        with translate_text_errors(self._path, self._file.encoding):
            line = rest = self._file.readline(MAX_RECORD_CHARS + 1)
            while len(rest) > MAX_RECORD_CHARS and not rest.endswith("\n"):
                rest = self._file.readline(MAX_RECORD_CHARS + 1)
        return line

    @property
    def text(self) -> str:
        """The text of the current record."""
        return "".join(self._record).rstrip("\r\n")

    def bad_record(self, defect: str) -> SourceRecord:
        """Return the current record with a defect."""
        return SourceRecord(self.number, {}, self.text, defect)

    def is_one_long_line(self) -> bool:
        """Return whether the record is a single line that is longer than any record."""
        return len(self._record) == 1 and self._num_chars > MAX_RECORD_CHARS

    def push_back_rest(self) -> int:
        """Make the lines after the first of the record the next ones; return their number."""
        rest = self._record[1:]
        self._pushed_back.extendleft(reversed(rest))
        self._record = self._record[:1]
        return len(rest)


def _open_text(path: Path, encoding: str) -> contextlib.AbstractContextManager[TextIO]:
    """Open the text of a source; bytes outside its encoding become lone surrogates, which `_repair` finds."""
    if not check_file(path).stat().st_size:
        raise DamagedInputError(f"{path} is empty; download it again")
    without_mark = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return open_text(path, without_mark)


def _read_header(lines: _RecordLines, records: Iterator[list[str]], path: Path, encoding: str) -> list[str]:
    """Return the names in the first record."""
    try:
        lines.begin_record()
        names = next(records, [])
    except csv.Error:
        names = []
    return _check_header(names, path, encoding)


def _check_header(names: list[str], path: Path, encoding: str) -> list[str]:
    repaired = _repair(names, encoding)
    if not repaired:
        raise DamagedInputError(
            f"{path} does not begin with a header line in {encoding}; check its format and encoding, or "
            "download it again"
        )
    return repaired


def _split_lines(
    lines: _RecordLines, path: Path, columns: Sequence[str], text_format: TextFormat
) -> Iterator[SourceRecord]:
    """Yield the lines below a header as records, cut at each delimiter."""
    records = _plain_lines(lines)
    header = next(records, SourceRecord(1, {}))
    delimiter, encoding = text_format.delimiter, text_format.encoding
    names = _check_header(header.text.split(delimiter) if header.text else [], path, encoding)
    check_columns(names, columns, path)
    for record in records:
        yield _split_record(record, names, delimiter, encoding)


def _split_record(record: SourceRecord, names: Sequence[str], delimiter: str, encoding: str) -> SourceRecord:
    fields = record.text.split(delimiter)
    if record.defect or len(fields) != len(names):
        return record._replace(defect=record.defect or "wrong_field_count")
    repaired = _repair(fields, encoding)
    if repaired is None:
        return record._replace(defect="bad_encoding")
    return record._replace(fields=dict(zip(names, repaired, strict=True)))


def _csv_defect(lines: _RecordLines, error: csv.Error) -> str:
    """Return the defect of a record that csv cannot read; lines after its first are read again."""
    if lines.is_one_long_line():
        return "line_too_long"
    num_pushed_back = lines.push_back_rest()
    is_open = num_pushed_back or str(error) == "unexpected end of data"
    return "unclosed_quote" if is_open else "misplaced_quote"


def _plain_lines(lines: _RecordLines) -> Iterator[SourceRecord]:
    """Yield each line that is not blank as a record without fields."""
    while True:
        lines.begin_record()
        try:
            if next(lines, None) is None:
                return
        except csv.Error:
            yield lines.bad_record("line_too_long")
            continue
        if lines.text.strip():
            yield SourceRecord(lines.number, {}, lines.text)


def _build_record(
    lines: _RecordLines, names: Sequence[str], fields: list[str], encoding: str
) -> SourceRecord:
    repaired = _repair(fields, encoding)
    if repaired is None:
        return lines.bad_record("bad_encoding")
    return SourceRecord(lines.number, dict(zip(names, repaired, strict=True)), lines.text)


def _array_items(file: TextIO, path: Path) -> Iterator[SourceRecord]:
    """Yield the items of a json array as records without fields, numbered from 1."""
    items = _JsonArray(file, path)
    number = 0
    while (text := items.read_item()) is not None:
        number += 1
        yield SourceRecord(number, {}, text)


class _JsonArray:
    """Reader of the items of a json array, with about one item and JSON_CHARS in memory."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._position, self._num_items = "", 0, 0
        self._take("[")

    def read_item(self) -> str | None:
        """Return the text of the next item; None at the end of the array."""
        if self._next() == "]":
            self._take("]")
            if self._next():
                raise self._error("goes on after its array")
            return None
        if self._num_items:
            self._take(",")
            self._next()
        self._num_items += 1
        while True:
            try:
                _, end = json.JSONDecoder().raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._position > MAX_RECORD_CHARS or not self._fill():
                    raise self._error(f"breaks off or is no json ({error})") from error
                continue
            text, self._position = self._text[self._position : end], end
            return text

    def _next(self) -> str:
        """Skip white space and return the next character; empty at the end of the file."""
        while True:
            space = _JSON_SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text) or not self._fill():
                return self._text[self._position : self._position + 1]

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise self._error(f"has no {character} where one must be")
        self._position += 1

    def _fill(self) -> bool:
        """Read more text; return False at the end of the file."""
        with translate_text_errors(self._path, self._file.encoding):
            more = self._file.read(JSON_CHARS)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)

    def _error(self, problem: str) -> DamagedInputError:
        return DamagedInputError(
            f"{self._path} {problem}, at item {self._num_items:,} of its array; write it again from "
            "its source"
        )


def _parse_json(record: SourceRecord, text: str, columns: Sequence[str]) -> SourceRecord:
    """Return a record with the fields of its json `text`, or with its defect."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return record._replace(defect="not_json")
    if not isinstance(value, dict):
        return record._replace(defect="not_an_object")
    chosen = {name: value.get(name) for name in columns}
    if any(isinstance(v, dict | list) for v in chosen.values()):
        return record._replace(defect="not_text")
    texts = {name: format_value(v) for name, v in chosen.items()}
    return record._replace(
        fields={
            name: pair_surrogates(text) if text and _SURROGATE.search(text) else text
            for name, text in texts.items()
        }
    )


def _repair(fields: list[str], encoding: str) -> list[str] | None:
    """Return the fields with separately encoded surrogates joined; None if bytes are damaged."""
    if not any(_SURROGATE.search(field) for field in fields if not field.isascii()):
        return fields
    if codecs.lookup(encoding).name != "utf-8":
        return None
    try:
        return [decode_text(field.encode("utf-8", "surrogateescape"), "a field") for field in fields]
    except (DamagedInputError, UnicodeEncodeError):
        return None
