"""Sizes of parquet columns and pages, read from a file's footer and from the headers before its pages.

pyarrow gives the metadata of a column too, but ends the process where a damaged footer holds an impossible
one. References: https://parquet.apache.org/docs/file-format/metadata, Thrift's compact protocol.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FIRST_READ_BYTES = 4_096  # more than a header without statistics takes

MAX_HEADER_BYTES = 16 * 2**20  # Arrow's own limit

MAX_DEPTH = 12  # of structs and lists; a footer has eight

_FOOTER_END = struct.Struct("<I4s")  # length of the footer, and the magic bytes

# fields of FileMetaData, RowGroup and ColumnChunk
_ROW_GROUPS, _COLUMNS, _COLUMN_METADATA = 4, 1, 3

# fields of ColumnMetaData
_ENCODINGS, _PATH, _COLUMN_VALUES, _COLUMN_BYTES = 2, 3, 5, 6
_STORED_BYTES, _FIRST_PAGE, _DICTIONARY = 7, 9, 11

_PREFIX_ENCODING = 7  # DELTA_BYTE_ARRAY of enum Encoding

# fields of PageHeader
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _DATA_HEADER, _DATA_HEADER_V2 = 2, 3, 5, 8

_NUM_VALUES = 1  # of both headers of data pages


@dataclass(frozen=True)
class Page:
    """A page of a column; a dictionary has no rows."""

    rows: int
    bytes: int  # decompressed


@dataclass(frozen=True)
class ColumnChunk:
    """A column of one row group."""

    column: str  # dotted path where it is nested
    bytes: int  # decompressed, by the footer
    has_prefixes: bool  # some texts are stored as a length of the text before and what follows
    values: int
    start: int  # offset of its first page
    end: int


def read_column_chunks(source: Any) -> list[list[ColumnChunk]]:
    """Return the columns of each row group, by the footer of a file.

    Args:
        source: File object.

    Raises:
        ValueError: The footer is damaged.
    """
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - _FOOTER_END.size))
    end = source.read(_FOOTER_END.size)
    length = _FOOTER_END.unpack(end)[0] if len(end) == _FOOTER_END.size else size
    if length + _FOOTER_END.size > size:
        raise ValueError("the footer is cut")
    source.seek(size - _FOOTER_END.size - length)
    try:
        groups = _CompactReader(source.read(length)).struct()[_ROW_GROUPS]
        return [[_parse_chunk(column[_COLUMN_METADATA]) for column in group[_COLUMNS]] for group in groups]
    except (EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the footer holds no columns ({error!r})") from error


def _parse_chunk(fields: dict[int, Any]) -> ColumnChunk:
    start = min(fields[_FIRST_PAGE], fields.get(_DICTIONARY, fields[_FIRST_PAGE]))
    return ColumnChunk(
        b".".join(fields[_PATH]).decode(errors="replace"),
        fields[_COLUMN_BYTES],
        _PREFIX_ENCODING in fields[_ENCODINGS],
        fields[_COLUMN_VALUES],
        start,
        start + fields[_STORED_BYTES],
    )


def read_pages(source: Any, chunk: ColumnChunk) -> Iterator[Page]:
    """Yield the pages of a column without nesting.

    Args:
        source: File object.
        chunk: The column in one row group.

    Raises:
        ValueError: A header is damaged.
    """
    position, rows = chunk.start, 0
    while position < chunk.end and rows < chunk.values:
        header, header_bytes = _read_header(source, position)
        values = header.get(_DATA_HEADER) or header.get(_DATA_HEADER_V2) or {}
        try:
            page = Page(int(values.get(_NUM_VALUES, 0)), int(header[_UNCOMPRESSED_SIZE]))
        except (TypeError, AttributeError) as error:
            raise ValueError("the header of a page has values of other types") from error
        if header[_COMPRESSED_SIZE] < 0 or page.rows < 0 or page.bytes < 0:
            raise ValueError("a page has a negative size")
        yield page
        position += header_bytes + header[_COMPRESSED_SIZE]
        rows += page.rows


def largest_window(pages: Sequence[Page], max_bytes: int) -> int:
    """Return the most rows that, wherever they begin, lie in adjacent pages of `max_bytes` together.

    It is 0 if one page is larger than that.
    """
    if any(page.bytes > max_bytes for page in pages):
        return 0
    pages = [page for page in pages if page.rows]  # without the dictionary, which stays
    window = max(1, sum(page.rows for page in pages))
    first = window_bytes = rows_between = 0  # between the first page of the window and the current one
    for number, page in enumerate(pages):
        window_bytes += page.bytes
        while window_bytes > max_bytes:
            window = min(window, rows_between + 1)
            window_bytes -= pages[first].bytes
            first += 1
            rows_between -= pages[first].rows if first < number else 0
        rows_between += page.rows if number > first else 0
    return window


def _read_header(source: Any, position: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header at a position, and its size."""
    size = FIRST_READ_BYTES
    while True:
        source.seek(position)
        content = source.read(size)
        header = _CompactReader(content)
        try:
            fields = header.struct()
        except EOFError as error:
            if size >= MAX_HEADER_BYTES or len(content) < size:
                raise ValueError("the header of a page is cut") from error
            size *= 16
            continue
        if _UNCOMPRESSED_SIZE not in fields or _COMPRESSED_SIZE not in fields:
            raise ValueError("the header of a page has no size")
        return fields, header.position


class _CompactReader:
    """Reader of structs in Thrift's compact protocol; EOFError where the bytes end too early."""

    def __init__(self, content: bytes) -> None:
        self._content, self._size = io.BytesIO(content), len(content)

    @property
    def position(self) -> int:
        """Number of bytes read."""
        return self._content.tell()

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the values of a struct by the numbers of its fields."""
        self._check_depth(depth)
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._bytes(1)[0]:
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            fields[number] = self._value(kind & 15, depth)
        return fields

    @staticmethod
    def _check_depth(depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("its metadata are nested too deeply")

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # true and false
            return kind == 1
        if kind in (9, 10):
            return self._list(depth + 1)
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 12:
            return self.struct(depth + 1)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (3, 7):
            return self._bytes(1 if kind == 3 else 8)
        raise ValueError(f"its metadata have a field of kind {kind}")

    def _list(self, depth: int) -> list[Any]:
        self._check_depth(depth)
        start = self._bytes(1)[0]
        count, kind = start >> 4, start & 15
        if count == 15:
            count = self._varint()
        if kind in (1, 2):
            return [flag == 1 for flag in self._bytes(count)]
        return [self._value(kind, depth) for _ in range(count)]

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._bytes(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("its metadata have a number of too many bytes")

    def _bytes(self, count: int) -> bytes:
        if count > self._size:
            raise EOFError
        content = self._content.read(count)
        if len(content) < count:
            raise EOFError
        return content
