"""Words that give a label away. Legend of array suffixes: V distinct words, P pairs of a row and a word, N
rows, L labels.

A word is suspicious when the rows that hold it carry one label far more often than the task does, in size and
beyond chance (`WordRule`): G-test of presence against label, two-sided, over all words of the task with
Benjamini and Hochberg's correction (J. R. Stat. Soc. B 57, 1995); a share of one label that is far from its
base rate, and so high that even its Wilson lower bound is, for judges are not of one mind about an honest
word; and several queries, for rows of one query are judged alike. A mark is a cue such as "label" or "grade"
followed by a label's name or number; it is counted as a word of its own, "grade=2", its share is taken as it
is, and fewer rows suffice.

An ordinary word may truly decide the label ("poster", where posters are never what was asked for). Statistics
cannot tell it from a leak; a person can, so what is found is told and nothing is refused. How often that
happens is stated in `leakage`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.tasks import Task
from validation.text.words import (
    Source,
    drawn,
    drawn_share,
    fold_texts,
    hash_texts,
    read_batches,
    shown,
    split_words,
)

NUM_EXAMPLES = 3

# distinct words counted at once in a column; beyond it those in the fewest rows are dropped, and counted anew
# if they return
MAX_WORDS = 1 << 21

_CUES = (
    "label|grade|graded|rating|rated|relevance|relevant|judgement|judgment|judged|verdict|score|target"
    "|gold|truth|class"
)


@dataclass(frozen=True)
class WordRule:
    """When a word is suspicious."""

    # rows that hold the word; with fewer, even rows of one label leave the share's lower bound below 0.95
    min_rows: int = 100
    min_mark_rows: int = 5  # the same for a mark
    min_queries: int = 5  # distinct queries among these rows
    # share of these rows that carry one label: lower bound for a word, the share itself for a mark
    min_share: float = 0.95
    min_gap: float = 0.2  # distance of that share from the label's share in the task
    max_false_discovery: float = 0.001  # Benjamini-Hochberg level


@dataclass(frozen=True)
class LabelWord:
    """One suspicious word of one column."""

    task: str
    column: str
    word: str
    label: str
    num_rows: int
    num_queries: int  # counted up to 1,000
    share: float  # of the label among the rows that hold the word
    base_share: float  # of the label in the task
    p_value: float  # of the G-test, corrected
    row_ids: tuple[str, ...]


@dataclass
class _Counts:
    """Rows by word and label, of one column."""

    num_labels: int
    hash_V: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    count_VL: np.ndarray = field(init=False)
    new: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count_VL = np.empty((0, self.num_labels), np.int64)

    def add(self, hash_V: np.ndarray, count_VL: np.ndarray) -> None:
        self.new.append((hash_V, count_VL))
        if sum(len(hashes) for hashes, _ in self.new) > max(len(self.hash_V), 1 << 18):
            self.merge()
            if len(self.hash_V) > MAX_WORDS:
                keep = np.sort(np.argsort(-self.count_VL.sum(1), kind="stable")[: MAX_WORDS // 2])
                self.hash_V, self.count_VL = self.hash_V[keep], self.count_VL[keep]

    def merge(self) -> None:
        hashes = np.concatenate([self.hash_V, *(hash_V for hash_V, _ in self.new)])
        counts = np.concatenate([self.count_VL, *(count_VL for _, count_VL in self.new)])
        self.hash_V, code = np.unique(hashes, return_inverse=True)
        self.count_VL = np.zeros((len(self.hash_V), self.num_labels), np.int64)
        np.add.at(self.count_VL, code, counts)
        self.new = []


@dataclass
class _Suspect:
    """A word that passed the tests, and where it was met on the second reading."""

    index: int
    word: str = ""
    queries: set[str] = field(default_factory=set)
    row_ids: list[str] = field(default_factory=list)


def find_label_words(source: Source, task: Task, rule: WordRule) -> tuple[LabelWord, ...]:
    """The suspicious words of one task, the most frequent first, in at most MAX_TEXT_ROWS drawn rows. Reads
    `source` once, and again if a word passed the tests.
    """
    columns, num_labels = ("query", *task.ad_columns), len(task.labels)
    counts = {column: _Counts(num_labels) for column in columns}
    base_L = np.zeros(num_labels, np.int64)
    for batch, label_N in _judged(source, columns, num_labels):
        base_L += np.bincount(label_N, minlength=num_labels)
        for column in columns:
            row_P, words = _words_and_marks(batch[column], task)
            code_P, row_P = _distinct_pairs(row_P, words)
            table = np.bincount(
                code_P * num_labels + label_N[row_P], minlength=len(words.dictionary) * num_labels
            )
            counts[column].add(hash_texts(words.dictionary), table.reshape(-1, num_labels))
    for column_counts in counts.values():
        column_counts.merge()
    mark_hashes = hash_texts(pa.array(_marks(task), pa.string()))
    suspects, p_values = _suspects(counts, base_L, mark_hashes, rule)
    if any(suspects.values()):
        _meet_again(source, task, suspects)
    found = [
        _label_word(task, column, counts[column], suspect, base_L, p_values[column][suspect.index])
        for column in columns
        for suspect in suspects[column].values()
        if len(suspect.queries) >= rule.min_queries
    ]
    return tuple(sorted(found, key=lambda word: (-word.num_rows, word.column, word.word)))


def _judged(
    source: Source, columns: tuple[str, ...], num_labels: int
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Drawn rows with a label on the scale, and the labels (N,)."""
    share = drawn_share(source)
    for every in read_batches(source, ("row_id", *columns, "label")):
        batch = drawn(every, share)
        on_scale = pc.and_(pc.greater_equal(batch["label"], 0), pc.less(batch["label"], num_labels))
        rows = batch.filter(on_scale.fill_null(False))
        if rows.num_rows:
            yield rows, rows["label"].to_numpy(zero_copy_only=False)


def _words_and_marks(texts: pa.Array, task: Task) -> tuple[np.ndarray, pa.DictionaryArray]:
    """The row (P,) and text (P,) of each word and mark."""
    folded = fold_texts(texts)
    row_P, words = split_words(folded)
    # numbers stand for labels too, counted from 0 or from 1
    values = [*(fold_texts(pa.array(task.labels)).to_pylist()), *map(str, range(len(task.labels) + 1))]
    spelt = "|".join(
        re.escape(value).replace(r"\ ", " ") for value in sorted(filter(None, values), key=len, reverse=True)
    )
    marks = pc.extract_regex(folded, rf"\b(?P<cue>{_CUES}) ?(?:is|was|as|of)? ?(?P<value>{spelt})\b")
    marked = pc.is_valid(marks)
    if not pc.any(marked).as_py():
        return row_P, words
    present = marks.filter(marked)
    mark = pc.binary_join_element_wise(present.field(0), present.field(1), "=")
    every = pa.concat_arrays([words.cast(pa.string()), mark.cast(pa.string())])
    return np.concatenate(
        [row_P, np.flatnonzero(marked.to_numpy(zero_copy_only=False))]
    ), every.dictionary_encode()


def _marks(task: Task) -> list[str]:
    values = [*fold_texts(pa.array(task.labels)).to_pylist(), *map(str, range(len(task.labels) + 1))]
    return [f"{cue}={value}" for cue in _CUES.split("|") for value in values]


def _distinct_pairs(row_P: np.ndarray, words: pa.DictionaryArray) -> tuple[np.ndarray, np.ndarray]:
    """The word's code and the row of each pair, once however often the row repeats the word."""
    num_words = max(len(words.dictionary), 1)
    pairs = np.unique(row_P.astype(np.int64) * num_words + words.indices.to_numpy())
    return pairs % num_words, pairs // num_words


def _suspects(
    counts: dict[str, _Counts], base_L: np.ndarray, mark_hashes: np.ndarray, rule: WordRule
) -> tuple[dict[str, dict[int, _Suspect]], dict[str, np.ndarray]]:
    """By column: suspects by the hash of their word, and the corrected p-value of every word (V,)."""
    mark_V = {column: np.isin(c.hash_V, mark_hashes) for column, c in counts.items()}
    tested_V = {
        column: c.count_VL.sum(1) >= np.where(mark_V[column], rule.min_mark_rows, rule.min_rows)
        for column, c in counts.items()
    }
    raw = [_g_test(c.count_VL[tested_V[column]], base_L) for column, c in counts.items()]
    corrected = np.split(_benjamini_hochberg(np.concatenate(raw)), np.cumsum([len(p) for p in raw])[:-1])
    suspects: dict[str, dict[int, _Suspect]] = {}
    p_values: dict[str, np.ndarray] = {}
    for (column, c), p_tested in zip(counts.items(), corrected, strict=True):
        p_V = np.ones(len(c.hash_V))
        p_V[tested_V[column]] = p_tested
        rows_V = np.maximum(c.count_VL.sum(1), 1)
        share_V = c.count_VL.max(1, initial=0) / rows_V
        share_V = np.where(mark_V[column], share_V, _wilson_lower_bound(share_V, rows_V))
        gap_V = share_V - (base_L / max(base_L.sum(), 1))[c.count_VL.argmax(1)]
        passed_V = (share_V >= rule.min_share) & (gap_V >= rule.min_gap) & (p_V <= rule.max_false_discovery)
        suspects[column] = {int(c.hash_V[i]): _Suspect(int(i)) for i in np.flatnonzero(passed_V)}
        p_values[column] = p_V
    return suspects, p_values


def _wilson_lower_bound(share_V: np.ndarray, rows_V: np.ndarray, z: float = 2.326) -> np.ndarray:
    """What the true share exceeds with a confidence of 99 % (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    spread = z * np.sqrt(share_V * (1 - share_V) / rows_V + (z / (2 * rows_V)) ** 2)
    return (share_V + z * z / (2 * rows_V) - spread) / (1 + z * z / rows_V)


def _g_test(count_VL: np.ndarray, base_L: np.ndarray) -> np.ndarray:
    """p-values (V,) of presence against label: G = 2 sum O ln(O / E) over the 2 x L table, chi-square with L
    - 1 degrees of freedom.
    """
    from scipy.stats import chi2

    total, present_V = max(base_L.sum(), 1), count_VL.sum(1, keepdims=True)
    g_V = np.zeros(len(count_VL))
    for observed, rows in ((count_VL, present_V), (base_L - count_VL, total - present_V)):
        expected = np.where(observed > 0, rows * base_L / total, 1)
        g_V += 2 * (observed * np.log(np.where(observed > 0, observed, 1) / expected)).sum(1)
    return chi2.sf(g_V, max(np.count_nonzero(base_L) - 1, 1))


def _benjamini_hochberg(p_V: np.ndarray) -> np.ndarray:
    """Corrected p-values: the smallest false discovery rate at which each would be called."""
    order = np.argsort(p_V)[::-1]
    corrected = np.empty_like(p_V)
    corrected[order] = np.minimum.accumulate(p_V[order] * len(p_V) / np.arange(len(p_V), 0, -1))
    return np.minimum(corrected, 1)


def _meet_again(source: Source, task: Task, suspects: dict[str, dict[int, _Suspect]]) -> None:
    """Read the rows once more for the suspects' words, queries and first rows."""
    columns = ("query", *(column for column in task.ad_columns))
    for batch, _ in _judged(source, columns, len(task.labels)):
        for column, of_column in suspects.items():
            row_P, words = _words_and_marks(batch[column], task)
            hash_V = hash_texts(words.dictionary)
            code_P, row_P = _distinct_pairs(row_P, words)
            wanted_P = np.isin(hash_V, np.fromiter(of_column, np.uint64, len(of_column)))[code_P]
            for code, row in zip(code_P[wanted_P], row_P[wanted_P], strict=True):
                suspect = of_column[int(hash_V[code])]
                if len(suspect.queries) < 1_000:
                    suspect.word = suspect.word or words.dictionary[int(code)].as_py()
                    suspect.queries.add(batch["query"][int(row)].as_py())
                    if len(suspect.row_ids) < NUM_EXAMPLES:
                        suspect.row_ids.append(batch["row_id"][int(row)].as_py())


def _label_word(
    task: Task, column: str, counts: _Counts, suspect: _Suspect, base_L: np.ndarray, p_value: float
) -> LabelWord:
    count_L = counts.count_VL[suspect.index]
    label, num_rows = int(count_L.argmax()), int(count_L.sum())
    return LabelWord(
        task.name,
        column,
        shown(suspect.word),
        task.labels[label],
        num_rows,
        len(suspect.queries),
        float(count_L[label] / num_rows),
        float(base_L[label] / base_L.sum()),
        float(p_value),
        tuple(suspect.row_ids),
    )
