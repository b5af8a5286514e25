"""Readers of delimited text; memory is bounded for any size of a file and of its lines.

- The encoding is stated, never guessed; a byte order mark is dropped. Gzip is known by its first bytes.
- Lines are numbered as in an editor; a header is line 1. Blank lines are skipped.
- A quote that is never closed costs only its own line: the lines after it are read again.
- No row is half of a record, or two of them: where quotes can be read in two ways, their lines are rejects.
- A carriage return inside a line is white space, unless the lines end with it.
"""

import codecs
import contextlib
import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from pipeline.data.importers.gzip_text import open_text, translate_text_errors
from pipeline.data.importers.records import SourceRecord, check_columns, check_file
from pipeline.data.importers.text_cleaning import decode_text
from pipeline.errors import DamagedInputError

MAX_RECORD_CHARS = 8 * 2**20  # more than four texts of the contract's maximum length

MAX_RECORD_LINES = 1_000  # a quote that is never closed is detected after this many lines

# line: a quoted field ends in its line; csv: it may hold line breaks; none: a quote is a plain character
Quoting = Literal["line", "csv", "none"]

SURROGATE = re.compile(r"[\ud800-\udfff]")

_LINE_BREAK = re.compile(r"\r\n|\r|\n")

_BREAK_INSIDE = re.compile(r"[\r\n](?![\r\n]*\Z)")  # not at the end of a line


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
    with open_source(path, encoding) as file:
        if text_format.quoting == "none":
            yield from _split_lines(RecordLines(file, path), path, columns, text_format)
            return
        lines = RecordLines(file, path)
        # of the whole process: the default limit of csv is shorter than texts that the contract allows
        csv.field_size_limit(MAX_RECORD_CHARS)
        records = csv.reader(lines, delimiter=text_format.delimiter, strict=True)
        names = _read_header(lines, records, path, encoding)
        check_columns(names, columns, path)
        yield from _reject_quote_ends(_csv_records(lines, records, names, text_format))


def read_headerless_tsv(
    path: Path, columns: Sequence[str], encoding: str = "utf-8"
) -> Iterator[SourceRecord]:
    """Yield the lines of tab-separated text without header and quotes, with fields in the order of `columns`.

    Errors are those of `read_delimited`.
    """
    with open_source(path, encoding) as file:
        for record in plain_lines(RecordLines(file, path)):
            yield _split_record(record, columns, "\t", encoding)


class RecordLines:
    """Iterator over the lines of a file that knows which lines belong to the current record."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._pushed_back: deque[str] = deque()  # lines to return again
        self._record: list[str] = []  # lines of the current record
        self._num_chars = 0  # of the current record
        self.number = 1  # of the first line of the current record

    def begin_record(self) -> None:
        """Make the next line the first of a record."""
        self.number += len(self._record)
        self._record, self._num_chars = [], 0

    def __iter__(self) -> "RecordLines":
        return self

    def __next__(self) -> str:
        """Return the next line. csv.Error: the record is too long with it."""
        line = self._pushed_back.popleft() if self._pushed_back else self._read()
        if not line:
            raise StopIteration
        self._record.append(line)
        self._num_chars += len(line)
        if self._num_chars > MAX_RECORD_CHARS or len(self._record) > MAX_RECORD_LINES:
            raise csv.Error("the record is too long")
        # csv takes every \r as the end of a line; cleaning treats both characters alike
        return _BREAK_INSIDE.sub("\v", line)

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

    def bad_lines(self, defect: str) -> Iterator[SourceRecord]:
        """Yield each line of the current record with a defect."""
        for offset, line in enumerate(self._record):
            yield SourceRecord(self.number + offset, {}, line.rstrip("\r\n"), defect)

    @property
    def num_lines(self) -> int:
        """Number of lines of the current record."""
        return len(self._record)

    def is_one_long_line(self) -> bool:
        """Return whether the record is a single line that is longer than any record."""
        return len(self._record) == 1 and self._num_chars > MAX_RECORD_CHARS

    def push_back_rest(self) -> int:
        """Make the lines after the first of the record the next ones; return their number."""
        rest = self._record[1:]
        self._pushed_back.extendleft(reversed(rest))
        self._record = self._record[:1]
        return len(rest)


def open_source(path: Path, encoding: str) -> contextlib.AbstractContextManager[TextIO]:
    """Open the text of a source; undecoded bytes become lone surrogates, which `repair_fields` finds."""
    if not check_file(path).stat().st_size:
        raise DamagedInputError(f"{path} is empty; download it again")
    without_mark = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return open_text(path, without_mark)


def _read_header(lines: RecordLines, records: Iterator[list[str]], path: Path, encoding: str) -> list[str]:
    """Return the names in the first record."""
    try:
        lines.begin_record()
        names = next(records, [])
    except csv.Error:
        names = []
    return _check_header(names, path, encoding)


def _check_header(names: list[str], path: Path, encoding: str) -> list[str]:
    repaired = repair_fields(names, encoding)
    if not repaired:
        raise DamagedInputError(
            f"{path} does not begin with a header line in {encoding}; check its format and encoding, or "
            "download it again"
        )
    return repaired


def _split_lines(
    lines: RecordLines, path: Path, columns: Sequence[str], text_format: TextFormat
) -> Iterator[SourceRecord]:
    """Yield the lines below a header as records, cut at each delimiter."""
    records = plain_lines(lines)
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
    repaired = repair_fields(fields, encoding)
    if repaired is None:
        return record._replace(defect="bad_encoding")
    return record._replace(fields=dict(zip(names, repaired, strict=True)))


def _csv_records(
    lines: RecordLines, records: Iterator[list[str]], names: list[str], text_format: TextFormat
) -> Iterator[SourceRecord]:
    """Yield the records below a header."""
    while True:
        lines.begin_record()
        try:
            fields = next(records, None)
        except csv.Error as error:
            yield lines.bad_record(_csv_defect(lines, error))
            continue
        if fields is None:
            return
        if not fields:
            continue
        if len(fields) != len(names):
            num_pushed_back = lines.push_back_rest()
            yield lines.bad_record("unclosed_quote" if num_pushed_back else "wrong_field_count")
        elif lines.num_lines > 1 and text_format.quoting == "line":
            yield from lines.bad_lines("line_break_in_quotes")
        elif lines.num_lines > 1 and _may_be_several(fields, text_format.delimiter):
            yield from lines.bad_lines("ambiguous_quotes")
        else:
            yield _build_record(lines, names, fields, text_format.encoding)


def _may_be_several(fields: Sequence[str], delimiter: str) -> bool:
    """Return whether the first and the last line of a record are records too, with plain quotes."""
    counts = [1]  # fields of each line, if quotes around line breaks are plain
    for index, field in enumerate(fields):
        counts[-1] += index > 0
        pieces = _LINE_BREAK.split(field)
        if len(pieces) > 1:
            counts[-1] += pieces[0].count(delimiter)
            counts += [1 + piece.count(delimiter) for piece in pieces[1:]]
    return counts[0] == counts[-1] == len(fields)


def _reject_quote_ends(records: Iterable[SourceRecord]) -> Iterator[SourceRecord]:
    """Reject lines below one with a wrong quote that may hold the end of its field."""
    is_open = False
    for record in records:
        if is_open and not record.defect and record.text.count('"') % 2:
            record = record._replace(fields={}, defect="unclosed_quote")
        is_open = record.defect in ("unclosed_quote", "misplaced_quote") or (is_open and bool(record.defect))
        yield record


def _csv_defect(lines: RecordLines, error: csv.Error) -> str:
    """Return the defect of a record that csv cannot read; lines after its first are read again."""
    if lines.is_one_long_line():
        return "line_too_long"
    num_pushed_back = lines.push_back_rest()
    is_open = num_pushed_back or str(error) == "unexpected end of data"
    return "unclosed_quote" if is_open else "misplaced_quote"


def plain_lines(lines: RecordLines) -> Iterator[SourceRecord]:
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


def _build_record(lines: RecordLines, names: Sequence[str], fields: list[str], encoding: str) -> SourceRecord:
    repaired = repair_fields(fields, encoding)
    if repaired is None:
        return lines.bad_record("bad_encoding")
    return SourceRecord(lines.number, dict(zip(names, repaired, strict=True)), lines.text)


def repair_fields(fields: list[str], encoding: str) -> list[str] | None:
    """Return the fields with separately encoded surrogates joined; None if bytes are damaged."""
    if not any(SURROGATE.search(field) for field in fields if not field.isascii()):
        return fields
    if codecs.lookup(encoding).name != "utf-8":
        return None
    try:
        return [decode_text(field.encode("utf-8", "surrogateescape"), "a field") for field in fields]
    except (DamagedInputError, UnicodeEncodeError):
        return None
