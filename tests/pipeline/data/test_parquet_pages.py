"""Sizes of parquet pages agree with what was written."""

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.parquet_pages import Page, largest_window, read_column_chunks, read_pages

ROWS = 1_000

TEXTS = pa.table({"a": [f"text {n}".ljust(200, "x") for n in range(ROWS)]})

WRITERS: list[dict[str, Any]] = [
    {"use_dictionary": False, "data_page_size": 1_000, "write_batch_size": 10},
    {"use_dictionary": False, "data_page_version": "2.0", "max_rows_per_page": 300},
    {"data_page_size": 500, "write_batch_size": 10, "write_page_checksum": True},
    {"use_dictionary": False, "compression": "none"},
    {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}, "write_page_index": True},
]


NESTED = pa.table({"a": ["x", "y"] * 500, "n.m": range(ROWS), "l": [[{"k": 1.5, "s": "t"}]] * ROWS})


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_columns_agree_with_those_of_pyarrow(writer: dict[str, Any]) -> None:
    file = io.BytesIO()
    options = {**writer, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}, "use_dictionary": ["l.list.element.s"]}
    pq.write_table(NESTED, file, row_group_size=130, **options)
    metadata = pq.read_metadata(file)
    groups = read_column_chunks(file)
    assert len(groups) == metadata.num_row_groups > 7
    for number, chunks in enumerate(groups):
        expected = metadata.row_group(number)
        assert len(chunks) == expected.num_columns
        for chunk, other in zip(chunks, map(expected.column, range(expected.num_columns)), strict=True):
            assert chunk.column == other.path_in_schema
            assert chunk.bytes == other.total_uncompressed_size
            assert chunk.values == other.num_values
            assert chunk.has_prefixes == ("DELTA_BYTE_ARRAY" in other.encodings)
            first = other.dictionary_page_offset or other.data_page_offset
            assert (chunk.start, chunk.end) == (first, first + other.total_compressed_size)


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_pages_hold_all_rows_and_bytes(writer: dict[str, Any]) -> None:
    file = io.BytesIO()
    pq.write_table(TEXTS, file, **writer)
    ((chunk,),) = read_column_chunks(file)
    pages = list(read_pages(file, chunk))
    assert sum(page.rows for page in pages) == ROWS
    headers = chunk.bytes - sum(page.bytes for page in pages)
    assert 0 < headers < 600 * len(pages)


def test_damaged_footers_are_refused_or_hold_columns() -> None:
    file, draw = io.BytesIO(), random.Random(0)
    pq.write_table(NESTED, file, row_group_size=130)
    whole = file.getvalue()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for number in range(600):
        content = bytearray(whole)
        if number % 3 == 0:
            del content[draw.randrange(len(whole)) :]
        else:
            content[draw.randrange(footer, len(whole))] ^= 1 << draw.randrange(8)
        try:
            read_column_chunks(io.BytesIO(content))
        except ValueError:
            refused += 1
    assert 200 < refused < 600


@pytest.mark.parametrize(
    "footer", [b"\x19" * 5_000, b"\x19\xf1\xff\xff\xff\xff\xff\xff\x7f", b"\x49\x0c"], ids=str
)
def test_endless_lists_are_refused(footer: bytes) -> None:
    with pytest.raises(ValueError, match="footer|metadata"):
        read_column_chunks(io.BytesIO(footer + len(footer).to_bytes(4, "little") + b"PAR1"))


def test_damaged_headers_are_refused() -> None:
    file = io.BytesIO()
    pq.write_table(TEXTS, file, use_dictionary=False)
    ((chunk,),), whole = read_column_chunks(file), file.getvalue()
    for noise in (b"\xff", b"\x15\xff", b"\x1c", b"\x00", b"\x15\x00"):
        damaged = whole[: chunk.start] + (noise * 60)[:60]
        with pytest.raises(ValueError, match="page|metadata"):
            list(read_pages(io.BytesIO(damaged), chunk))


def test_window_is_the_largest_that_fits_everywhere() -> None:
    cases = [[(5, 10)] * 6, [(3, 4), (1, 19), (2, 6), (7, 15), (1, 1)], [(1, 20)] * 3, [(0, 9), (4, 20)], []]
    for sizes in cases:
        pages = [Page(*size) for size in sizes]
        place = [number for number, page in enumerate(pages) for _ in range(page.rows)]
        expected = max(1, len(place))
        for rows in range(len(place), 0, -1):
            starts = range(len(place) - rows + 1)
            windows = [pages[place[s] : place[s + rows - 1] + 1] for s in starts]
            if any(sum(page.bytes for page in window) > 20 for window in windows):
                expected = rows - 1
        assert largest_window(pages, 20) == expected, sizes
    assert largest_window([Page(1, 21)], 20) == 0
