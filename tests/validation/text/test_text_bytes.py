"""Checks and normalization of text columns, compared with text-by-text Python."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import normalize_query
from validation.text import text_bytes
from validation.text.text_bytes import contains_nul, is_not_plain, normalize_texts

TEXTS = [
    "",
    None,
    "red shoes",
    " red",
    "red ",
    "red  shoes",
    "a",
    " ",
    "tab\there",
    "Größe",
    "ＡＢ",
    "a\x7fb",
    "~!",
    "a\nb",
    "x" * 300 + "  y",
    "é",
]


@pytest.fixture(params=[4, text_bytes.BLOCK_BYTES])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also use blocks so small that they cut every text."""
    monkeypatch.setattr(text_bytes, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_plain_text_is_printable_ascii_with_single_spaces(kind: pa.DataType) -> None:
    expected = [
        any(not 32 <= ord(c) <= 126 for c in text or "") or (text or "") != " ".join((text or "").split())
        for text in TEXTS
    ]
    assert is_not_plain(pa.array(TEXTS, kind)).tolist() == expected
    assert is_not_plain(pa.array(["  ", *TEXTS, "  "], kind).slice(1, len(TEXTS))).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=12), st.text("aB \t", max_size=9)), max_size=8))
def test_column_is_normalized_like_its_texts(texts: list[str | None]) -> None:
    texts = [None if text is None else text.encode("utf-8", "replace").decode() for text in texts]
    assert normalize_texts(pa.array(texts, pa.string())).to_pylist() == [
        normalize_query(text or "") for text in texts
    ]


def test_nul_outside_a_slice_is_not_found() -> None:
    texts = pa.array(["a\0b", "c", "d"])
    assert contains_nul(texts)
    assert not contains_nul(texts.slice(1))
    assert not contains_nul(pa.array([], pa.string()))
    assert not contains_nul(pa.nulls(2, pa.string()))
