"""Writing systems of texts, by Unicode block.

Shape legend: C characters, N texts, S scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# han holds Chinese text and the Chinese characters of Japanese text
_BLOCKS: dict[str, str] = {
    "latin": "41-5A 61-7A AA-AA BA-BA C0-D6 D8-F6 F8-24F 1E00-1EFF 2C60-2C7F A720-A7FF FF21-FF3A FF41-FF5A",
    "greek": "370-3FF 1F00-1FFF",
    "cyrillic": "400-52F 1C80-1C8F 2DE0-2DFF A640-A69F",
    "hebrew": "590-5FF FB1D-FB4F",
    "arabic": "600-6FF 750-77F 8A0-8FF FB50-FDFF FE70-FEFC",
    "indic": "900-DFF",
    "thai": "E00-E7F",
    "hangul": "1100-11FF 3130-318F A960-A97F AC00-D7FF",
    "kana": "3041-30FF 31F0-31FF FF66-FF9D",
    "han": "3400-4DBF 4E00-9FFF F900-FAFF 20000-323AF",
    "other": "530-58F 700-74F 780-89F E80-10FF 1200-1C7F A800-A95F A980-ABFF 10000-1BCAF",
}

NO_LETTERS = "none"  # script of digits, punctuation, pictures and empty text

SCRIPTS: tuple[str, ...] = (NO_LETTERS, *_BLOCKS)

SCRIPT_COLUMNS = ("query", "ad_title")  # columns whose scripts a task may restrict


@cache
def _script_of_code() -> np.ndarray:
    """Return the index into SCRIPTS of every code point."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for index, blocks in enumerate(_BLOCKS.values(), 1):
        for block in blocks.split():
            first, last = (int(end, 16) for end in block.split("-"))
            table[first : last + 1] = index
    return table


def dominant_scripts(texts: pa.Array) -> np.ndarray:
    """Return the index into SCRIPTS of the script of most letters of each text (N,); null has no letters."""
    ascii_N = pc.string_is_ascii(texts).fill_null(True).to_numpy(zero_copy_only=False)
    latin_N = pc.match_substring_regex(texts, "[A-Za-z]").fill_null(False).to_numpy(zero_copy_only=False)
    script_N = np.where(latin_N, SCRIPTS.index("latin"), 0)
    if not ascii_N.all():
        script_N[~ascii_N] = _scripts_by_letter(texts.filter(pa.array(~ascii_N)).to_pylist())
    return script_N


def count_foreign_texts(table: pa.Table, scripts: Sequence[str]) -> dict[str, int]:
    """Count the texts of each of SCRIPT_COLUMNS whose dominant script is not one of `scripts`.

    A text without letters is never foreign.
    """
    expected = [SCRIPTS.index(name) for name in (NO_LETTERS, *scripts)]
    return {
        name: int((~np.isin(dominant_scripts(table[name].combine_chunks()), expected)).sum())
        for name in SCRIPT_COLUMNS
    }


def _scripts_by_letter(texts: list[str]) -> np.ndarray:
    code_C = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    row_C = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    count_NS = np.bincount(
        row_C * len(SCRIPTS) + _script_of_code()[code_C], minlength=len(texts) * len(SCRIPTS)
    ).reshape(-1, len(SCRIPTS))
    count_NS[:, 0] = 0
    return count_NS.argmax(1)
