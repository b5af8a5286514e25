"""Rejects: source records that could not become rows, with their reasons.

They are stored in <data folder>/quarantine/<source>.parquet.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.data_files import QUARANTINE, SUFFIX
from pipeline.data.importers.records import SourceRecord
from pipeline.errors import DataRefusedError
from pipeline.escaping import INVISIBLE, SHORT_ESCAPES
from pipeline.storage.filesystem import canonical_json

# A wrong encoding, delimiter or mapping damages nearly every record, other damage a few of a hundred. Between
# them a person must decide.
MAX_BAD_SHARE = 0.2

MAX_TEXT_CHARS = 4_096

FLUSH_LINES = 4_096

REASONS = {
    "wrong_field_count": "has more or fewer fields than the header",
    "unclosed_quote": "opens a quote that its line does not close, or may close that of the line above; in a "
    "table's mapping, quoting: none takes quotes as plain characters, and quoting: csv allows line "
    "breaks between quotes",
    "misplaced_quote": "has text behind a closing quote; in a table's mapping, quoting: none takes quotes as "
    "plain characters",
    "line_break_in_quotes": "is part of a quoted field of several lines; in a table's mapping, quoting: csv "
    "allows line breaks between quotes, and quoting: none takes quotes as plain characters",
    "ambiguous_quotes": "is part of a quoted field whose lines are whole if quotes are plain characters; "
    "in a table's mapping, quoting: none takes them so",
    "line_too_long": "is too long",
    "bad_encoding": "holds bytes that are not in the stated encoding",
    "not_json": "is not json",
    "repeated_key": "gives a key twice",
    "not_an_object": "is json but not an object",
    "not_text": "has a list or an object in place of a text",
    "unknown_label": "has a label that is not in the source's scale or the mapping",
    "unknown_market": "has an unknown locale",
    "unknown_query": "names a query that is not in the source",
    "unknown_product": "names a product that is not in the source",
    "empty_id": "has no id",
    "empty_query": "has no query",
    "empty_title": "has no title",
    "empty_market": "has no market",
    "bad_weight": "has a weight that is not a finite number, or is 0 or infinite as float32",
    "repeated_id": "has an id of an earlier line",
}

SCHEMA = pa.schema(
    [
        pa.field("line", pa.int64(), False),
        pa.field("reason", pa.string(), False),
        pa.field("text", pa.string(), False),
    ]
)


def rejects_path(name: str) -> str:
    """Return the path of the rejects of a source, relative to its data folder."""
    return f"{QUARANTINE}/{name}{SUFFIX}"


Built = TypeVar("Built")


class BadRecordError(Exception):
    """Record that cannot become a row; its argument is one of REASONS."""


class Rejects:
    """Writer of the rejects of one source file. Without rejects there is no file.

    Use it as a context: the file is whole at its end.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source = path, source
        self.num_records = 0  # read, with the rejects
        self.reasons: Counter[str] = Counter()  # number of rejects by reason
        self._examples: dict[str, SourceRecord] = {}  # first one by reason
        self._waiting: list[tuple[int, str, str]] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
        finally:
            if self._writer:
                self._writer.close()

    def build_all(
        self, records: Iterable[SourceRecord], build: Callable[[SourceRecord], Built]
    ) -> Iterator[Built]:
        """Yield what `build` returns for each record; store those with a defect or a BadRecordError."""
        for record in records:
            self.num_records += 1
            try:
                if record.defect:
                    raise BadRecordError(record.defect)
                built = build(record)
            except BadRecordError as error:
                self._add(record, str(error))
            else:
                yield built

    def check_share(self) -> None:
        """Raise DataRefusedError if more than MAX_BAD_SHARE of the records are rejects."""
        num_bad = self.reasons.total()
        if num_bad > MAX_BAD_SHARE * self.num_records:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.reasons.most_common())
            examples = "; ".join(self._describe_example(reason) for reason, _ in self.reasons.most_common(3))
            raise DataRefusedError(
                f"{num_bad:,} of {self.num_records:,} lines of {self.source} are bad ({reasons}), more than "
                f"{MAX_BAD_SHARE:.0%}, and nothing was imported: {examples}; check format, encoding and "
                "mapping, or repair these lines"
            )

    def _add(self, record: SourceRecord, reason: str) -> None:
        assert reason in REASONS, reason
        self.reasons[reason] += 1
        self._examples.setdefault(reason, record)
        self._waiting.append((record.number, reason, _shown_text(record)))
        if len(self._waiting) >= FLUSH_LINES:
            self._flush()

    def _describe_example(self, reason: str) -> str:
        record = self._examples[reason]
        return f"line {record.number} {REASONS[reason]}: {_shown_text(record)[:120]!r}"

    def _flush(self) -> None:
        if self._waiting:
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(
                    self.path, SCHEMA, compression="zstd", write_page_checksum=True
                )
            self._writer.write_table(
                pa.table([pa.array(values) for values in zip(*self._waiting, strict=True)], schema=SCHEMA)
            )
            self._waiting = []


def escape_source_text(text: str) -> str:
    r"""Escape control characters, direction marks and undecoded bytes; cut to MAX_TEXT_CHARS.

    Undecoded bytes are spelled \xff, which `pipeline.escaping` cannot: its texts may be JSON.
    """
    return INVISIBLE.sub(_escape, text[:MAX_TEXT_CHARS])[:MAX_TEXT_CHARS]


def _shown_text(record: SourceRecord) -> str:
    """Return the text of a record as rejects show it."""
    text = record.text or canonical_json(record.fields)
    return escape_source_text(f"{record.part}: {text}" if record.part else text)


def _escape(match: re.Match[str]) -> str:
    if match[0] in SHORT_ESCAPES:
        return SHORT_ESCAPES[match[0]]
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # surrogate of an undecoded byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
