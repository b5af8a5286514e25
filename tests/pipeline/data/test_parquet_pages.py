"""Sizes of parquet pages agree with what was written."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.parquet_pages import Page, largest_window, read_pages

ROWS = 1_000

TEXTS = pa.table({"a": [f"text {n}".ljust(200, "x") for n in range(ROWS)]})

WRITERS: list[dict[str, Any]] = [
    {"use_dictionary": False, "data_page_size": 1_000, "write_batch_size": 10},
    {"use_dictionary": False, "data_page_version": "2.0", "max_rows_per_page": 300},
    {"data_page_size": 500, "write_batch_size": 10, "write_page_checksum": True},
    {"use_dictionary": False, "compression": "none"},
    {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}, "write_page_index": True},
]


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_pages_hold_all_rows_and_bytes(writer: dict[str, Any]) -> None:
    file = io.BytesIO()
    pq.write_table(TEXTS, file, **writer)
    chunk = pq.read_metadata(file).row_group(0).column(0)
    pages = list(read_pages(file, chunk))
    assert sum(page.rows for page in pages) == ROWS
    headers = chunk.total_uncompressed_size - sum(page.bytes for page in pages)
    assert 0 < headers < 600 * len(pages)


def test_damaged_headers_are_refused() -> None:
    file = io.BytesIO()
    pq.write_table(TEXTS, file, use_dictionary=False)
    chunk, whole = pq.read_metadata(file).row_group(0).column(0), file.getvalue()
    for noise in (b"\xff", b"\x15\xff", b"\x1c", b"\x00", b"\x15\x00"):
        damaged = whole[: chunk.data_page_offset] + (noise * 60)[:60]
        with pytest.raises(ValueError, match="page"):
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
