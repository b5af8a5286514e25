"""Words that give a label away.

A word is suspicious when the rows that hold it carry one label far more often than the task does, in size and
beyond chance (`WordRule`):

- G-test of presence against label, two-sided, over all words of the task, with the correction of Y. Benjamini
  and Y. Hochberg (J. R. Stat. Soc. B 57, 1995).
- The share of one label is far from its base rate, and high: even its lower bound (E. B. Wilson, J. Am. Stat.
  Assoc. 22, 1927), because people disagree about the label of an honest word.
- Several queries hold the word, because rows of one query get similar labels.

A mark is a cue such as "label" or "grade" followed by a label's name or number. It is counted as a word of
its own, "grade=2". Its share is taken as it is, and fewer rows suffice.

An honest word may decide the label ("poster", where posters are never wanted). Statistics cannot tell it from
a leak; a person can. So findings are reported and nothing is refused. `report.py` states how often that
happens.

Shape legend: N rows, P pairs of a row and a word, V distinct words, L labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.tasks import Task
from pipeline.data.parallel_map import map_in_order
from validation.text.words import (
    RowSource,
    compose,
    fold_texts,
    hash_texts,
    read_columns,
    sample_rows,
    sampling_share,
    source_parts,
    split_words,
)

NUM_EXAMPLES = 3

MAX_QUERIES = 1_000  # counted for a suspicious word

# Distinct words counted in a column, ten for each sampled row. Beyond it words are sampled by their hash.
MAX_WORDS = 1 << 21

_MERGE_WORDS = 1 << 18  # new words that are merged at once

_CUES = (
    "label|grade|graded|rating|rated|relevance|relevant|judgement|judgment|judged|verdict|score|target"
    "|gold|truth|class"
)

_WILSON_CONFIDENCE = 0.9899907246591323  # one-sided; its normal quantile is 2.326


@dataclass(frozen=True)
class WordRule:
    """Limits from which a word is suspicious."""

    # rows that hold the word; with fewer, even rows of one label leave the share's lower bound below 0.95
    min_rows: int = 100
    min_mark_rows: int = 5  # rows that hold a mark
    min_queries: int = 5  # distinct queries among these rows
    # share of these rows that carry one label: lower bound for a word, the share itself for a mark
    min_share: float = 0.95
    min_gap: float = 0.2  # distance of that share from the label's share in the task
    max_false_discovery: float = 0.001  # corrected p-value


@dataclass(frozen=True)
class LabelWord:
    """One suspicious word of one column."""

    task: str
    column: str
    word: str
    label: str
    num_rows: int
    num_queries: int  # counted up to MAX_QUERIES
    share: float  # of the label among the rows that hold the word
    base_share: float  # of the label in the task
    p_value: float  # of the G-test, corrected
    row_ids: tuple[str, ...]


@dataclass
class WordCounts:
    """Numbers of rows of one column by word and label; `fold` includes the added counts.

    Counts of parts, merged, give exactly the counts of the whole, in any order.
    """

    num_labels: int
    hash_V: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # ascending
    count_VL: np.ndarray = field(init=False)
    new: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    limit: np.uint64 = np.uint64(2**64 - 1)  # words with a hash up to here are counted

    def __post_init__(self) -> None:
        self.count_VL = np.empty((0, self.num_labels), np.int64)

    def add(self, hash_V: np.ndarray, count_VL: np.ndarray) -> None:
        """Add the counts of distinct words."""
        self.new.append((hash_V, count_VL))
        if sum(len(hashes) for hashes, _ in self.new) > max(len(self.hash_V), _MERGE_WORDS):
            self.fold()

    def merge(self, other: WordCounts) -> None:
        """Add the counts of other rows."""
        other.fold()
        self.limit = min(self.limit, other.limit)
        self.add(other.hash_V, other.count_VL)

    def fold(self) -> None:
        """Sum the counts of equal words, and leave out those beyond the limit."""
        hashes = np.concatenate([self.hash_V, *(hash_V for hash_V, _ in self.new)])
        counts = np.concatenate([self.count_VL, *(count_VL for _, count_VL in self.new)])
        all_V, code = np.unique(hashes, return_inverse=True)
        count_VL = np.zeros((len(all_V), self.num_labels), np.int64)
        np.add.at(count_VL, code, counts)
        if len(all_V) > MAX_WORDS:
            self.limit = min(self.limit, all_V[MAX_WORDS] - np.uint64(1))
        num_kept = int(np.searchsorted(all_V, self.limit, side="right"))
        self.hash_V, self.count_VL, self.new = all_V[:num_kept], count_VL[:num_kept], []


@dataclass
class _Occurrences:
    """Rows of a word of which a few are shown."""

    word: str = ""
    queries: set[str] = field(default_factory=set)  # up to MAX_QUERIES
    row_ids: list[str] = field(default_factory=list)  # the first NUM_EXAMPLES

    def merge(self, other: _Occurrences) -> None:
        """Add the rows that follow."""
        self.word = self.word or other.word
        self.queries = set(sorted(self.queries | other.queries)[:MAX_QUERIES])
        self.row_ids = [*self.row_ids, *other.row_ids][:NUM_EXAMPLES]


@dataclass
class _Suspect:
    """A word that passed the tests; the second reading of the rows finds its occurrences."""

    p_value: float
    count_L: np.ndarray
    found: _Occurrences = field(default_factory=_Occurrences)


_Suspects = dict[int, _Suspect]  # of one column, by the hash of the word


@dataclass(frozen=True)
class _Part:
    """Part of a task's rows, plain enough to be sent to another machine."""

    source: RowSource
    task: Task
    share: float  # of the rows that are read
    hashes: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the suspects by column

    def rows(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield sampled rows with a label on the scale, and the labels (N,)."""
        for batch in read_columns(self.source, ("row_id", "query", *self.task.ad_columns, "label")):
            sample = sample_rows(batch, self.share)
            in_scale = pc.less(sample["label"], len(self.task.labels))
            on_scale = pc.and_(pc.greater_equal(sample["label"], 0), in_scale)
            rows = sample.filter(on_scale.fill_null(False))
            if rows.num_rows:
                yield rows, rows["label"].to_numpy(zero_copy_only=False)


def find_label_words(source: RowSource, task: Task, rule: WordRule) -> tuple[LabelWord, ...]:
    """Find the suspicious words of one task, in at most MAX_TEXT_ROWS sampled rows.

    Reads `source` once, and a second time if a word passed the tests. Files are read apart, as Ray tasks on a
    connected cluster, and their counts are merged.

    Returns:
        Suspicious words, the most frequent first.
    """
    share = sampling_share(source)
    parts = [_Part(part, task, share) for part in source_parts(source)]
    counts = {column: WordCounts(len(task.labels)) for column in ("query", *task.ad_columns)}
    base_L = np.zeros(len(task.labels), np.int64)
    for part_L, part_counts in map_in_order(_count_words, parts):
        base_L += part_L
        for column, column_counts in part_counts.items():
            counts[column].merge(column_counts)
    for column_counts in counts.values():
        column_counts.fold()
    mark_hashes = hash_texts(pa.array(_marks(task), pa.string()))
    suspects = _find_suspects(counts, base_L, mark_hashes, rule)
    if any(suspects.values()):
        hashes = {column: np.fromiter(found, np.uint64, len(found)) for column, found in suspects.items()}
        for occurrences in map_in_order(_find_occurrences, [replace(part, hashes=hashes) for part in parts]):
            for (column, word), found in occurrences.items():
                suspects[column][word].found.merge(found)
    words = [
        _label_word(task, column, suspect, base_L)
        for column, by_hash in suspects.items()
        for suspect in by_hash.values()
        if len(suspect.found.queries) >= rule.min_queries
    ]
    return tuple(sorted(words, key=lambda word: (-word.num_rows, word.column, word.word)))


def _count_words(part: _Part) -> tuple[np.ndarray, dict[str, WordCounts]]:
    """Return the number of rows by label (L,), and the word counts by column."""
    task, num_labels = part.task, len(part.task.labels)
    counts = {column: WordCounts(num_labels) for column in ("query", *task.ad_columns)}
    base_L = np.zeros(num_labels, np.int64)
    for batch, label_N in part.rows():
        base_L += np.bincount(label_N, minlength=num_labels)
        for column, column_counts in counts.items():
            row_P, words = _words_and_marks(batch[column], task)
            code_P, row_P = _distinct_pairs(row_P, words)
            table = np.bincount(
                code_P * num_labels + label_N[row_P], minlength=len(words.dictionary) * num_labels
            )
            column_counts.add(hash_texts(words.dictionary), table.reshape(-1, num_labels))
    for column_counts in counts.values():
        column_counts.fold()
    return base_L, counts


def _words_and_marks(texts: pa.Array, task: Task) -> tuple[np.ndarray, pa.DictionaryArray]:
    """Return the row (P,) and the text (P,) of each word and mark."""
    folded = fold_texts(texts)
    row_P, words = split_words(folded)
    values = sorted(filter(None, _label_values(task)), key=len, reverse=True)
    value_pattern = "|".join(re.escape(value).replace(r"\ ", " ") for value in values)
    marks = pc.extract_regex(folded, rf"\b(?P<cue>{_CUES}) ?(?:is|was|as|of)? ?(?P<value>{value_pattern})\b")
    has_mark = pc.is_valid(marks)
    if not pc.any(has_mark).as_py():
        return row_P, words
    present = marks.filter(has_mark)
    mark = pc.binary_join_element_wise(present.field(0), present.field(1), "=")
    texts = pa.concat_arrays([words.cast(pa.string()), mark.cast(pa.string())])
    mark_rows = np.flatnonzero(has_mark.to_numpy(zero_copy_only=False))
    return np.concatenate([row_P, mark_rows]), texts.dictionary_encode()


def _label_values(task: Task) -> list[str]:
    """Return the folded names of the labels, and their numbers counted from 0 and from 1."""
    return [*fold_texts(pa.array(task.labels)).to_pylist(), *map(str, range(len(task.labels) + 1))]


def _marks(task: Task) -> list[str]:
    return [f"{cue}={value}" for cue in _CUES.split("|") for value in _label_values(task)]


def _distinct_pairs(row_P: np.ndarray, words: pa.DictionaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the word's code and the row of each distinct pair."""
    num_words = max(len(words.dictionary), 1)
    pairs = np.unique(row_P.astype(np.int64) * num_words + words.indices.to_numpy())
    return pairs % num_words, pairs // num_words


def _find_suspects(
    counts: Mapping[str, WordCounts], base_L: np.ndarray, mark_hashes: np.ndarray, rule: WordRule
) -> dict[str, _Suspects]:
    """Return the words that pass all tests but the minimum of queries, by column."""
    from scipy.stats import false_discovery_control

    tested: dict[str, np.ndarray] = {}  # by column: indices of the words that enough rows hold
    is_mark: dict[str, np.ndarray] = {}  # by column, of the tested words
    for column, c in counts.items():
        mark_V = np.isin(c.hash_V, mark_hashes)
        min_rows_V = np.where(mark_V, rule.min_mark_rows, rule.min_rows)
        tested[column] = np.flatnonzero(c.count_VL.sum(1) >= min_rows_V)
        is_mark[column] = mark_V[tested[column]]
    raw = [_g_test(c.count_VL[tested[column]], base_L) for column, c in counts.items()]
    corrected = false_discovery_control(np.concatenate(raw), method="bh")
    by_column = np.split(corrected, np.cumsum([len(p) for p in raw])[:-1])
    suspects: dict[str, _Suspects] = {}
    for (column, c), p_V in zip(counts.items(), by_column, strict=True):
        count_VL = c.count_VL[tested[column]]
        passed = _passing_words(count_VL, p_V, is_mark[column], base_L, rule)
        suspects[column] = {
            int(c.hash_V[tested[column][i]]): _Suspect(float(p_V[i]), count_VL[i]) for i in passed
        }
    return suspects


def _passing_words(
    count_VL: np.ndarray, p_V: np.ndarray, is_mark_V: np.ndarray, base_L: np.ndarray, rule: WordRule
) -> Sequence[int]:
    """Return the indices of the words whose share, gap and p-value pass the rule."""
    num_rows_V = np.maximum(count_VL.sum(1), 1)
    num_label_V = count_VL.max(1, initial=0)
    base_share_V = (base_L / max(base_L.sum(), 1))[count_VL.argmax(1)]

    def passes(share: np.ndarray | float, base_share: np.ndarray | float) -> np.ndarray | bool:
        return (share >= rule.min_share) & (share - base_share >= rule.min_gap)

    candidate_V = passes(num_label_V / num_rows_V, base_share_V) & (p_V <= rule.max_false_discovery)
    # a share is never below its lower bound, so the slow bound is computed for candidates only
    return [
        i
        for i in np.flatnonzero(candidate_V).tolist()
        if is_mark_V[i]
        or passes(_wilson_lower_bound(int(num_label_V[i]), int(num_rows_V[i])), base_share_V[i])
    ]


def _wilson_lower_bound(num_hits: int, num_rows: int) -> float:
    """Return the lower bound of a share with a confidence of 99 %."""
    from scipy.stats import binomtest

    test = binomtest(num_hits, num_rows, alternative="greater")
    return float(test.proportion_ci(_WILSON_CONFIDENCE, method="wilson").low)


def _g_test(count_VL: np.ndarray, base_L: np.ndarray) -> np.ndarray:
    """Return the p-values (V,) of presence against label.

    G = 2 sum O ln(O / E) over the 2 x L table, chi-square with L - 1 degrees of freedom.
    """
    # not scipy's power_divergence, which gives NaN for a word that is in every row
    from scipy.stats import chi2

    total, present_V = max(base_L.sum(), 1), count_VL.sum(1, keepdims=True)
    g_V = np.zeros(len(count_VL))
    for observed, rows in ((count_VL, present_V), (base_L - count_VL, total - present_V)):
        expected = np.where(observed > 0, rows * base_L / total, 1)
        g_V += 2 * (observed * np.log(np.where(observed > 0, observed, 1) / expected)).sum(1)
    return chi2.sf(g_V, max(np.count_nonzero(base_L) - 1, 1))


def _find_occurrences(part: _Part) -> dict[tuple[str, int], _Occurrences]:
    """Return the rows of the suspects in a part, by column and hash."""
    occurrences: defaultdict[tuple[str, int], _Occurrences] = defaultdict(_Occurrences)
    for batch, _ in part.rows():
        for column, suspects in part.hashes.items():
            row_P, words = _words_and_marks(batch[column], part.task)
            hash_V = hash_texts(words.dictionary)
            code_P, row_P = _distinct_pairs(row_P, words)
            is_suspect_P = np.isin(hash_V, suspects)[code_P]
            for code, row in zip(code_P[is_suspect_P], row_P[is_suspect_P], strict=True):
                found = occurrences[column, int(hash_V[code])]
                if len(found.queries) < MAX_QUERIES:
                    found.word = found.word or words.dictionary[int(code)].as_py()
                    found.queries.add(batch["query"][int(row)].as_py())
                    if len(found.row_ids) < NUM_EXAMPLES:
                        found.row_ids.append(batch["row_id"][int(row)].as_py())
    return dict(occurrences)


def _label_word(task: Task, column: str, suspect: _Suspect, base_L: np.ndarray) -> LabelWord:
    label, num_rows = int(suspect.count_L.argmax()), int(suspect.count_L.sum())
    return LabelWord(
        task=task.name,
        column=column,
        word=compose(suspect.found.word),
        label=task.labels[label],
        num_rows=num_rows,
        num_queries=len(suspect.found.queries),
        share=float(suspect.count_L[label] / num_rows),
        base_share=float(base_L[label] / base_L.sum()),
        p_value=suspect.p_value,
        row_ids=tuple(suspect.found.row_ids),
    )
