"""The one definition of text that shows something: a text without it counts as empty.

Control characters, white space, format characters and combining marks alone show nothing. The pattern is
written in ranges of code points, because RE2 (pyarrow) and Python disagree on \\s and Python has no \\p{M}.

Shape legend: N texts.
"""

import functools
import itertools
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_INVISIBLE_CATEGORIES = frozenset(("Cc", "Cf", "Mc", "Me", "Mn", "Zl", "Zp", "Zs"))

# empty letters and symbols (Hangul fillers, blank Braille, notehead and hieroglyphs), the mark of an embedded
# object, and code points that Unicode reserves for characters to ignore
_INVISIBLE_RANGES = (
    "115F-1160 2060-206F 2800-2800 3164-3164 FFA0-FFA0 FFF0-FFFC 13441-13442 1D159-1D159 E0000-E0FFF"
)

_SCANNED = range(0x20000)  # no other plane has code points of these categories beside the ranges

_ASCII_ALPHANUMERIC = pa.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))


@functools.cache
def visible_pattern() -> str:
    """Return a regular expression of one visible character, equal in RE2 and Python."""
    invisible = {code for code in _SCANNED if unicodedata.category(chr(code)) in _INVISIBLE_CATEGORIES}
    for ends in _INVISIBLE_RANGES.split():
        first, last = (int(end, 16) for end in ends.split("-"))
        invisible.update(range(first, last + 1))
    ranges = []
    for _, group in itertools.groupby(enumerate(sorted(invisible)), lambda item: item[1] - item[0]):
        codes = [code for _, code in group]
        ranges.append(f"{_literal(codes[0])}-{_literal(codes[-1])}")
    return f"[^{''.join(ranges)}]"


def is_blank(text: str) -> bool:
    """Return True if no character of a text is visible."""
    return _compiled_pattern().search(text) is None


def mark_blank(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Mark the texts without a visible character (N,); null is not blank."""
    # nearly every text starts with a letter or digit; the slower regular expression is for the others
    starts_plain = pc.is_in(pc.utf8_slice_codeunits(texts, 0, 1), value_set=_ASCII_ALPHANUMERIC)
    others = np.flatnonzero(pc.invert(starts_plain).to_numpy(zero_copy_only=False))
    blank_N = np.zeros(len(texts), dtype=bool)
    if len(others):
        is_visible = pc.match_substring_regex(texts.take(pa.array(others)), visible_pattern())
        blank_N[others] = pc.invert(is_visible).fill_null(False).to_numpy(zero_copy_only=False)
    return blank_N


@functools.cache
def _compiled_pattern() -> re.Pattern[str]:
    return re.compile(visible_pattern())


def _literal(code: int) -> str:
    # characters above \xff are literal, because RE2 has no \u
    return f"\\x{code:02x}" if code <= 0xFF else chr(code)
