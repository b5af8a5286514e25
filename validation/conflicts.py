"""The same pair judged twice, with different labels. People disagree, so this is told and not refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import MAX_LABELS, TEXT_COLUMNS
from pipeline.split import normalise_query

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Conflicts:
    """Pairs of one task that carry more than one label."""

    num_pairs: int
    num_rows: int
    examples: tuple[tuple[tuple[str, int], ...], ...]  # for each of the first few pairs: a row_id and its label, for each label


def find_conflicts(table: pa.Table, num_labels: int) -> Conflicts:
    """Pairs of one task whose query and ad texts are equal, once normalised as the split does it, and whose labels differ.

    Columns are compared one after the other, and rows that stand alone or agree are dropped before the next: long texts are
    normalised only where all before them were equal.
    """
    # Labels off the scale are refused by the suite; here they would break the arithmetic.
    on_scale = pc.and_(pc.greater_equal(table["label"], 0), pc.less(table["label"], num_labels))
    rows = table.filter(on_scale)
    group_N = np.zeros(rows.num_rows, dtype=np.int64)
    for column in TEXT_COLUMNS:
        code_N = _codes(rows[column])
        group_N = np.unique(group_N * (rows.num_rows + 1) + code_N, return_inverse=True)[1]
        keep_N = _disagrees(group_N, rows["label"].to_numpy())
        rows, group_N = rows.filter(pa.array(keep_N)), group_N[keep_N]
    groups, first_N = np.unique(group_N, return_index=True)
    examples = [_example(rows, np.flatnonzero(group_N == group_N[row])) for row in sorted(first_N)[:NUM_EXAMPLES]]
    return Conflicts(len(groups), rows.num_rows, tuple(examples))


def _codes(texts: pa.ChunkedArray) -> np.ndarray:
    """A number for each text (N,), equal where the normalised texts are equal; null counts as empty."""
    filled = texts.fill_null("")
    distinct = pc.unique(filled)
    known: dict[str, int] = {}
    codes = [known.setdefault(normalise_query(text), len(known)) for text in distinct.to_pylist()]
    return np.asarray(codes, dtype=np.int64)[pc.index_in(filled, value_set=distinct).to_numpy()]


def _disagrees(group_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Whether each row's group holds more than one label (N,)."""
    pairs = np.unique(group_N * MAX_LABELS + label_N)
    return np.bincount(pairs // MAX_LABELS)[group_N] > 1


def _example(rows: pa.Table, members: np.ndarray) -> tuple[tuple[str, int], ...]:
    labels, first = np.unique(rows["label"].to_numpy()[members], return_index=True)
    return tuple((rows["row_id"][int(members[i])].as_py(), int(label)) for label, i in zip(labels, first, strict=True))
