"""Readers of delimited text and json lines; memory is bounded for any size of a file and of its lines.

- The encoding is stated, never guessed; a byte order mark is dropped.
- Lines are numbered as in an editor; a header is line 1. Blank lines are skipped.
- A quote that is never closed costs only its own line: the lines after it are read again.
"""

import codecs
import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.data.importers.records import SourceRecord, check_columns, check_file, format_value
from pipeline.data.importers.text_cleaning import decode_text, pair_surrogates
from pipeline.errors import DamagedInputError

MAX_RECORD_CHARS = 8 * 2**20  # more than four texts of the contract's maximum length

MAX_RECORD_LINES = 1_000  # a quote that is never closed is detected after this many lines

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_delimited(
    path: Path, columns: Sequence[str], delimiter: str, encoding: str = "utf-8"
) -> Iterator[SourceRecord]:
    """Yield the records of delimited text with a header and csv quoting.

    Raises:
        ConfigError: The path is not a file.
        DamagedInputError: The file is empty, or its header is not text in the encoding.
        DataRefusedError: A column is missing or repeated.
    """
    with _open_text(path, encoding) as file:
        lines = _RecordLines(file)
        # of the whole process: the default limit of csv is shorter than texts that the contract allows
        csv.field_size_limit(MAX_RECORD_CHARS)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        names = _read_header(lines, records, path, encoding)
        check_columns(names, columns, path)
        while True:
            lines.begin_record()
            try:
                fields = next(records, None)
            except csv.Error:
                yield lines.bad_record(_csv_defect(lines))
                continue
            if fields is None:
                return
            if fields and len(fields) != len(names):
                yield lines.bad_record("unclosed_quote" if lines.unread_rest() else "wrong_field_count")
            elif fields:
                yield _build_record(lines, names, fields, encoding)


def read_headerless_tsv(
    path: Path, columns: Sequence[str], encoding: str = "utf-8"
) -> Iterator[SourceRecord]:
    """Yield the lines of tab-separated text without header and quotes, with fields in the order of `columns`.

    Errors are those of `read_delimited`.
    """
    with _open_text(path, encoding) as file:
        for record in _plain_lines(_RecordLines(file)):
            fields = record.text.split("\t")
            if record.defect or len(fields) != len(columns):
                yield record._replace(defect=record.defect or "wrong_field_count")
                continue
            repaired = _repair(fields, encoding)
            if repaired is None:
                yield record._replace(defect="bad_encoding")
            else:
                yield record._replace(fields=dict(zip(columns, repaired, strict=True)))


def read_json_lines(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> Iterator[SourceRecord]:
    """Yield the objects of a file of json lines; columns missing in a line are null.

    Raises:
        ConfigError: The path is not a file.
        DamagedInputError: The file is empty.
    """
    with _open_text(path, encoding) as file:
        for record in _plain_lines(_RecordLines(file)):
            repaired = _repair([record.text], encoding)
            if record.defect or not repaired:
                yield record._replace(defect=record.defect or "bad_encoding")
            else:
                yield _parse_json(record, repaired[0], columns)


class _RecordLines:
    """Iterator over the lines of a file that knows which lines belong to the current record."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._unread: deque[str] = deque()  # lines to return again
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
        line = self._unread.popleft() if self._unread else self._read()
        if not line:
            raise StopIteration
        self._record.append(line)
        self._num_chars += len(line)
        if self._num_chars > MAX_RECORD_CHARS or len(self._record) > MAX_RECORD_LINES:
            raise csv.Error("the record is too long")
        return line

    def _read(self) -> str:
        """Return the next line of the file, cut if it is longer than any record."""
        try:
            line = rest = self._file.readline(MAX_RECORD_CHARS + 1)
            while len(rest) > MAX_RECORD_CHARS and not rest.endswith("\n"):
                rest = self._file.readline(MAX_RECORD_CHARS + 1)
        except UnicodeError as error:  # encodings such as utf-16 cannot be decoded after damage
            raise DamagedInputError(
                f"{self._file.name} is not in {self._file.encoding} ({error}); state its encoding or "
                "convert it"
            ) from error
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

    def unread_rest(self) -> bool:
        """Read all but the first line of the record again; return whether there are any."""
        rest = self._record[1:]
        self._unread.extendleft(reversed(rest))
        self._record = self._record[:1]
        return bool(rest)


def _open_text(path: Path, encoding: str) -> TextIO:
    """Open the text of a source; bytes outside its encoding become lone surrogates, which `_repair` finds."""
    if not check_file(path).stat().st_size:
        raise DamagedInputError(f"{path} is empty; download it again")
    without_mark = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return path.open(encoding=without_mark, errors="surrogateescape", newline="")


def _read_header(lines: _RecordLines, records: Iterator[list[str]], path: Path, encoding: str) -> list[str]:
    """Return the names in the first record."""
    names = None
    try:
        lines.begin_record()
        names = _repair(next(records, []), encoding)
    except csv.Error:
        pass
    if not names:
        raise DamagedInputError(
            f"{path} does not begin with a header line in {encoding}; check its format and encoding, or "
            "download it again"
        )
    return names


def _csv_defect(lines: _RecordLines) -> str:
    """Return the defect of a record that csv cannot read; lines after its first are read again."""
    if lines.is_one_long_line():
        return "line_too_long"
    return "unclosed_quote" if lines.unread_rest() else "misplaced_quote"


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
