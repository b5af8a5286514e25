"""Lines of a source that could not become rows, kept with the reason: <data
folder>/quarantine/<source>.parquet.
"""

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.importers.records import Line
from pipeline.errors import DataRefusedError
from pipeline.storage.filesystem import canonical_json

# A wrong encoding, delimiter or mapping spoils nearly every line, honest damage a few of a hundred: what lies
# between is for a person to judge.
MAX_BAD_SHARE = 0.2

MAX_TEXT_CHARS = 4_096

FLUSH_LINES = 4_096

REASONS = {
    "wrong_field_count": "has more or fewer fields than the header",
    "unclosed_quote": "opens a quote that is not closed where the record should end",
    "misplaced_quote": "has text behind a closing quote",
    "line_too_long": "is longer than any record",
    "bad_encoding": "holds bytes that are not in the stated encoding",
    "not_json": "is not json",
    "not_an_object": "is json, but no object",
    "not_text": "has a list or an object where a text is wanted",
    "unknown_label": "has a label that the source or the mapping does not know",
    "unknown_market": "has a locale that the source does not know",
    "unknown_query": "names a query that the source does not hold",
    "unknown_product": "names a product that the source does not hold",
    "empty_id": "has no id",
    "empty_query": "has no query",
    "empty_title": "has no title",
    "empty_market": "has no market",
    "bad_weight": "has a weight that is no number",
    "repeated_id": "has an id that an earlier line has",
}

SCHEMA = pa.schema(
    [
        pa.field("line", pa.int64(), False),
        pa.field("reason", pa.string(), False),
        pa.field("text", pa.string(), False),
    ]
)

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def quarantine_file(name: str) -> str:
    """Where the bad lines of a source lie, below its data folder."""
    return f"quarantine/{name}.parquet"


class BadLineError(Exception):
    """A line that cannot become a row; its argument is one of REASONS."""


class Quarantine:
    """The bad lines of one file, written as they come; nothing is written while there is none."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source = path, source
        self.num_lines = 0  # read, bad ones included
        self.reasons: Counter[str] = Counter()  # bad lines by reason
        self._examples: dict[str, Line] = {}
        self._waiting: list[tuple[int, str, str]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, line: Line, reason: str) -> None:
        """Keep a bad line."""
        assert reason in REASONS, reason
        self.reasons[reason] += 1
        self._examples.setdefault(reason, line)
        self._waiting.append((line.number, reason, visible(line.text or canonical_json(line.fields))))
        if len(self._waiting) >= FLUSH_LINES:
            self._flush()

    def close(self) -> None:
        """Finish the file. DataRefusedError if more than MAX_BAD_SHARE of the lines are bad."""
        self._flush()
        if self._writer:
            self._writer.close()
        num_bad = self.reasons.total()
        if num_bad > MAX_BAD_SHARE * self.num_lines:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.reasons.most_common())
            examples = "; ".join(self._told(reason) for reason, _ in self.reasons.most_common(3))
            share = (
                f"{num_bad:,} of {self.num_lines:,} lines of {self.source} are bad ({reasons}), more than "
                f"{MAX_BAD_SHARE:.0%}"
            )
            raise DataRefusedError(
                f"{share}, and nothing was imported: {examples}; check format, encoding and mapping, or "
                "repair these lines"
            )

    def _told(self, reason: str) -> str:
        line = self._examples[reason]
        return (
            f"line {line.number} {REASONS[reason]}: "
            f"{visible(line.text or canonical_json(line.fields))[:120]!r}"
        )

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


def visible(text: str) -> str:
    """The first MAX_TEXT_CHARS of `text`, with control characters, marks of direction and undecoded bytes
    spelled out.
    """
    return _UNSEEN.sub(_spelled, text[:MAX_TEXT_CHARS])[:MAX_TEXT_CHARS]


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that the encoding does not know
        code -= 0xDC00
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )
