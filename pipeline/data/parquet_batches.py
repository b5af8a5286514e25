"""Parquet files in batches of bounded decoded size, whatever their compression and encodings.

The sizes in a parquet footer are those of encoded pages: 65,536 rows of one long text take a few hundred
bytes there and gigabytes in memory. So encoded texts are read as dictionaries, which stay as small as the
file; the length of each row is computed from them, and only batches of a bounded length are decoded.

Texts without a dictionary have a length only after reading. So the pages of a column that are read at a
time decompress to at most MAX_PAGE_BYTES, by the sizes in footer and page headers; a larger page is refused.
A text in DELTA_BYTE_ARRAY repeats a part of the text before it, so one page can decode to any size: few such
rows are read at a time, and one of a large page.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.parquet_pages import ColumnChunk, largest_window, read_column_chunks, read_pages
from pipeline.errors import (
    ConfigError,
    DamagedInputError,
    DataRefusedError,
    RelevanceError,
    summarize_error,
)

MAX_ROW_BYTES = 32 * 2**20  # more than three times the longest row that the contract allows

# A file may decode to this much, or to MAX_EXPANSION times its size if that is more.
MAX_DECODED_BYTES = 16 * 2**30

MAX_EXPANSION = 1_000

READ_ROWS = 8_192  # read at a time, before they are decoded

PLAIN_READ_ROWS = 128  # of texts whose decoded length is known only after reading

# decompressed pages of one column that are read at a time; four times the longest row
MAX_PAGE_BYTES = 128 * 2**20

_BUFFER_BYTES = 2**20

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


@dataclass(frozen=True)
class BatchLimits:
    """Largest batch; a row of more bytes is a batch of its own."""

    rows: int = 65_536
    bytes: int = 64 * 2**20  # decoded


DEFAULT_LIMITS = BatchLimits()

NOT_PARQUET = "is not whole parquet"


@contextlib.contextmanager
def translate_read_errors(path: Path | str, problem: str = "is damaged") -> Iterator[None]:
    """Raise DamagedInputError for a file that cannot be read, whatever the reading raises.

    Besides pyarrow's own errors, these are the errors of extension types that a library has registered.

    Args:
        path: The file.
        problem: Begin of the message.
    """
    try:
        yield
    except (MemoryError, RelevanceError):  # pyarrow's MemoryError is also an ArrowException
        raise
    except UnicodeEncodeError as error:
        raise ConfigError(f"name of {path} is not UTF-8, which parquet needs; rename the file") from error
    except Exception as error:
        raise DamagedInputError(
            f"{path} {problem} ({summarize_error(error)}); write it again from its source"
        ) from error


class BatchFile:
    """An open parquet file that `read_batches` reads; it verifies page checksums.

    Args:
        source: Path, or file object.
        pre_buffer: Fetch all pages at the first read, which saves requests to a bucket.
    """

    def __init__(self, source: Any, pre_buffer: bool = False) -> None:
        self._source = source
        self._options = {"pre_buffer": pre_buffer, "buffer_size": 0 if pre_buffer else _BUFFER_BYTES}
        self.metadata = pq.read_metadata(source)
        schema = self.metadata.schema
        columns = range(len(schema))
        texts = [index for index in columns if schema.column(index).physical_type == "BYTE_ARRAY"]
        self._encoded = self._open(texts)
        self._plain: pq.ParquetFile | None = None
        self.schema_arrow: pa.Schema = self._encoded.schema_arrow
        self.row_counts = [
            self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)
        ]

    def __enter__(self) -> "BatchFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._encoded.close()
        if self._plain is not None:
            self._plain.close()

    @property
    def num_rows(self) -> int:
        """Number of rows by the footer."""
        return int(self.metadata.num_rows)

    @property
    def stored_bytes(self) -> int:
        """Size of the file."""
        if isinstance(self._source, str | Path):
            return Path(self._source).stat().st_size
        return int(self._source.seek(0, io.SEEK_END))

    def page_rows(self, groups: Sequence[int], columns: list[str] | None) -> int:
        """Return the most rows that can be read at a time; 0 if a page is larger than MAX_PAGE_BYTES.

        Raises:
            ValueError: Footer or page headers are damaged.
        """
        large = [g for g in groups if self.metadata.row_group(g).total_byte_size > MAX_PAGE_BYTES]
        if not large:  # the usual case, without a further look at the file
            return READ_ROWS
        with self._bytes() as source:
            chunks = [c for c in self._chunks(source, large, columns) if c.bytes > MAX_PAGE_BYTES]
            windows = [largest_window(list(read_pages(source, chunk)), MAX_PAGE_BYTES) for chunk in chunks]
        return min([READ_ROWS, *windows])

    def encoded_batches(
        self, groups: Sequence[int], columns: list[str] | None, max_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some row groups, at most `max_rows` at a time; texts are dictionaries."""
        num_rows = max_rows
        for group in map(self.metadata.row_group, groups):
            bytes_per_row = max(1.0, group.total_byte_size / max(group.num_rows, 1))
            num_rows = min(num_rows, max(1, int(DEFAULT_LIMITS.bytes / bytes_per_row)))
        return self._batches(self._encoded, num_rows, groups, columns)

    def plain_batches(
        self, groups: Sequence[int], columns: list[str] | None, max_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some row groups, few at a time, with decoded texts.

        Raises:
            ValueError: Footer or page headers are damaged.
        """
        if self._plain is None:
            self._plain = self._open([])
        num_rows = min(PLAIN_READ_ROWS, max_rows)
        with self._bytes() as source:
            for chunk in self._chunks(source, groups, columns):
                if chunk.has_prefixes:  # no text is longer than its page
                    longest = max((page.bytes for page in read_pages(source, chunk)), default=0)
                    num_rows = min(num_rows, max(1, DEFAULT_LIMITS.bytes // max(longest, 1)))
        return self._batches(self._plain, num_rows, groups, columns)

    @contextlib.contextmanager
    def _bytes(self) -> Iterator[Any]:
        """Open the file as bytes."""
        if isinstance(self._source, str | Path):
            with Path(self._source).open("rb") as source:
                yield source
        else:
            yield self._source

    @staticmethod
    def _chunks(source: Any, groups: Sequence[int], columns: list[str] | None) -> Iterator[ColumnChunk]:
        """Yield the columns that are read, of each row group."""
        all_chunks = read_column_chunks(source)
        for chunk in (chunk for group in groups for chunk in all_chunks[group]):
            if columns is None or {chunk.column, chunk.column.partition(".")[0]} & set(columns):
                yield chunk

    def _open(self, dictionaries: list[int]) -> pq.ParquetFile:
        return pq.ParquetFile(
            self._source,
            metadata=self.metadata,
            read_dictionary=dictionaries,
            page_checksum_verification=True,
            **self._options,
        )

    def _batches(
        self, file: pq.ParquetFile, num_rows: int, groups: Sequence[int], columns: list[str] | None
    ) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = file.iter_batches(
            num_rows, row_groups=list(groups), columns=columns, use_threads=False
        )
        return batches


def read_batches(
    file: BatchFile,
    path: Path | str,
    columns: Sequence[str] | None = None,
    rows: tuple[int, int] | None = None,
    limits: BatchLimits = DEFAULT_LIMITS,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in batches within `limits`, without dictionaries.

    Args:
        file: The open file.
        path: Its name in messages.
        columns: Columns to read, in this order; None: all.
        rows: (first row, one past the last); None: all.
        limits: Of each batch.

    Raises:
        DamagedInputError: A page does not match its checksum, or cannot be decoded.
        DataRefusedError: A page, a row, or the whole file, decodes to more than its limit.
    """
    first, last = rows or (0, file.num_rows)
    waiting = _Waiting(limits)
    max_bytes = max(MAX_DECODED_BYTES, MAX_EXPANSION * file.stored_bytes)
    decoded_bytes = 0
    for start, batch in _read_encoded(file, path, columns, (first, last)):
        with translate_read_errors(path):
            row_bytes = _row_bytes(batch)
        longest = int(row_bytes.max(initial=0))
        if longest > MAX_ROW_BYTES:
            raise DataRefusedError(
                f"{path}: row {start + int(row_bytes.argmax()):,} decodes to {longest:,} bytes, "
                f"over the limit of {MAX_ROW_BYTES:,}; shorten its texts or remove it"
            )
        decoded_bytes += int(row_bytes.sum())
        if decoded_bytes > max_bytes:
            raise DataRefusedError(
                f"{path} decodes to over {max_bytes:,} bytes, {MAX_EXPANSION:,} times its size: a "
                "decompression bomb; write it again from its source with shorter texts or fewer rows"
            )
        yield from waiting.add(batch, row_bytes, path)
    yield from waiting.flush()


class _Waiting:
    """Decoded pieces that wait for a full batch."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._pieces: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch, row_bytes: np.ndarray, path: Path | str) -> Iterator[pa.RecordBatch]:
        """Decode a batch piece by piece, and yield each batch that is full."""
        ends = np.cumsum(row_bytes)
        start = 0
        while start < batch.num_rows:
            before = int(ends[start - 1]) if start else 0
            end = int(np.searchsorted(ends, before + self._limits.bytes - self._bytes, side="right"))
            end = min(end, start + self._limits.rows - self._rows)
            if end <= start and self._rows:
                yield from self.flush()
                continue
            end = max(end, start + 1)
            with translate_read_errors(path):
                self._pieces.append(_decode(batch.slice(start, end - start)))
            self._rows += end - start
            self._bytes += int(ends[end - 1]) - before
            start = end
            if self._rows >= self._limits.rows:
                yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield the waiting rows, if any, as one batch."""
        pieces = self._pieces
        self._pieces, self._rows, self._bytes = [], 0, 0
        if len(pieces) == 1:
            yield pieces.pop()
        elif pieces:
            yield pa.concat_batches(pieces)


def _read_encoded(
    file: BatchFile, path: Path | str, columns: Sequence[str] | None, rows: tuple[int, int]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of the first row, batch) for a range of rows, texts not yet decoded where possible."""
    first, last = rows
    starts = np.cumsum([0, *file.row_counts])
    if starts[-1] != file.num_rows:
        raise DamagedInputError(
            f"{path} is damaged (its footer counts {file.num_rows:,} and {starts[-1]:,} rows); write it "
            "again from its source"
        )
    groups = [g for g in range(len(file.row_counts)) if starts[g] < last and starts[g + 1] > first]
    if not groups:
        return
    begin = position = int(starts[groups[0]])
    names = None if columns is None else list(columns)
    with translate_read_errors(path):
        max_rows = file.page_rows(groups, names)
    if not max_rows:
        raise DataRefusedError(
            f"{path} has a page of over {MAX_PAGE_BYTES:,} bytes when decompressed; write it again from its "
            "source with smaller pages or shorter texts"
        )
    batches, is_plain = file.encoded_batches(groups, names, max_rows), False
    while position < last:
        with translate_read_errors(path):  # around the read alone: errors of the caller are not the file's
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                if is_plain or isinstance(error, MemoryError):
                    raise
                # Arrow reads no dictionaries of delta encodings; rows that were read already are skipped
                first, position = max(first, position), begin
                batches, is_plain = file.plain_batches(groups, names, max_rows), True
                continue
            if batch is not None:
                batch = _without_views(batch)
        if batch is None:
            raise DamagedInputError(
                f"{path} is damaged (it ends after row {position:,} of {last:,}); write it again from "
                "its source"
            )
        skipped = max(0, first - position)
        chosen = batch.slice(skipped, max(0, last - position - skipped))
        if chosen.num_rows:
            yield position + skipped, chosen if names is None else chosen.select(names)
        position += batch.num_rows


def _row_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Return the decoded bytes of the texts of each row; a value of another type counts as 8."""
    total = np.full(batch.num_rows, 8 * batch.num_columns, np.int64)
    for column in batch.columns:
        lengths = None
        if pa.types.is_dictionary(column.type):
            if _is_text(column.type.value_type):
                lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
        elif _is_text(column.type):
            lengths = pc.binary_length(column)
        if lengths is not None:
            total += lengths.fill_null(0).to_numpy(zero_copy_only=False)
    return total


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _TEXT)


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with plain texts in place of views, which few functions of Arrow take."""
    columns = []
    for column in batch.columns:
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        elif pa.types.is_binary_view(column.type):
            column = column.cast(pa.large_binary())
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _decode(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with values in place of dictionaries."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
