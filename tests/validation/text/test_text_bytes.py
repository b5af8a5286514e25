"""What is told of a whole column's bytes is what is true of each text."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import normalise_query
from validation.text import text_bytes
from validation.text.text_bytes import holds_nul, is_unlike_plain, normalise_texts

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


@pytest.fixture(params=[4, text_bytes.BYTES_AT_ONCE])
def bytes_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every text is cut, too."""
    monkeypatch.setattr(text_bytes, "BYTES_AT_ONCE", request.param)


@pytest.mark.usefixtures("bytes_at_once")
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_plain_is_printable_ascii_in_single_spaces(kind: pa.DataType) -> None:
    expected = [
        any(not 32 <= ord(c) <= 126 for c in text or "") or (text or "") != " ".join((text or "").split())
        for text in TEXTS
    ]
    assert is_unlike_plain(pa.array(TEXTS, kind)).tolist() == expected
    assert is_unlike_plain(pa.array(["  ", *TEXTS, "  "], kind).slice(1, len(TEXTS))).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=12), st.text("aB \t", max_size=9)), max_size=8))
def test_a_column_is_normalised_as_its_texts_are(texts: list[str | None]) -> None:
    texts = [None if text is None else text.encode("utf-8", "replace").decode() for text in texts]
    assert normalise_texts(pa.array(texts, pa.string())).to_pylist() == [
        normalise_query(text or "") for text in texts
    ]


def test_nul_is_found_in_the_slice_and_not_beside_it() -> None:
    texts = pa.array(["a\0b", "c", "d"])
    assert holds_nul(texts)
    assert not holds_nul(texts.slice(1))
    assert not holds_nul(pa.array([], pa.string()))
    assert not holds_nul(pa.nulls(2, pa.string()))
