"""Profile of a data set in a few kilobytes: the reference that later data are compared with.

A `Tally` counts rows as they stream by. Every part of it is a sum or a maximum, so tallies of parts merge to
the exact tally of the whole, in any order. Rows, labels, markets and queries are counted over all rows, texts
over at most MAX_TEXT_ROWS per task, so memory stays bounded.

A `Profile` is the part of a tally that is kept. Only the most frequent words keep their names; all words are
counted in hash buckets. Equal rows give equal bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.parallel_map import map_in_order
from pipeline.errors import DamagedInputError
from pipeline.schema import COLUMNS, MAX_LABELS, TEXT_COLUMNS
from pipeline.storage.filesystem import canonical_json, read_json, write_bytes
from validation.drift.seen_words import SeenWords, build_seen_words, count_word_buckets
from validation.text.hashing import hash_column
from validation.text.scripts import SCRIPTS, dominant_scripts
from validation.text.words import (
    RowSource,
    compose,
    fold_texts,
    read_columns,
    sample_rows,
    sampling_share,
    source_parts,
    split_words,
)

PROFILE_VERSION = 1

NULLABLE_TEXTS: tuple[str, ...] = tuple(c.name for c in COLUMNS if c.nullable and c.name in TEXT_COLUMNS)

# Lower ends of the length bins, in characters: each length up to 11, then eight bins per octave. A comparison
# groups them into coarser bins.
LENGTH_EDGES = np.unique([0, *(round(2 ** (k / 8)) for k in range(161))])

MAX_MARKETS = 100_000  # of a task; so many more values are not markets, and all are counted under OTHERS

MAX_NAMED = 64  # markets kept by name; the others are summed under OTHERS

OTHERS = "(other)"

MAX_WORD_CHARS = 24  # of a word kept by name

# words kept by name over all tasks and columns: the file stays below 200 kB for 8 tasks and 5 scripts
_TOP_WORDS = 1_000

# Registers of the HyperLogLog count of distinct queries: standard error 1.04 / sqrt(512) = 5 %. No declared
# dependency has a HyperLogLog.
_REGISTERS = 512


@dataclass
class ColumnTally:
    """Counts of one text column of one task."""

    nulls: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # texts by the lower end of their length bin
    scripts: Counter[str] = field(default_factory=Counter)  # texts by script
    words: Counter[str] = field(default_factory=Counter)  # occurrences by folded word

    def add(self, texts: pa.Array) -> None:
        """Count the texts of a batch."""
        self.nulls += texts.null_count
        present = texts.drop_null()
        lengths = pc.utf8_length(present).to_numpy(zero_copy_only=False)
        bins = np.searchsorted(LENGTH_EDGES, lengths, side="right") - 1
        self.lengths.update(LENGTH_EDGES[bins].tolist())
        self.scripts.update(SCRIPTS[script] for script in dominant_scripts(present).tolist())
        _, words = split_words(fold_texts(present))
        self.words.update(_value_counts(words.cast(pa.string())))

    def merge(self, other: ColumnTally) -> None:
        """Add the counts of another tally."""
        self.nulls += other.nulls
        self.lengths.update(other.lengths)
        self.scripts.update(other.scripts)
        self.words.update(other.words)


@dataclass
class TaskTally:
    """Counts of one task."""

    rows: int = 0
    text_rows: int = 0  # rows whose texts are counted in `columns`
    labels: Counter[str] = field(default_factory=Counter)  # by index; rows without a label are left out
    markets: Counter[str] = field(default_factory=Counter)
    has_markets: bool = True  # False with more than MAX_MARKETS values
    query_registers: np.ndarray = field(default_factory=lambda: np.zeros(_REGISTERS, dtype=np.uint8))
    columns: dict[str, ColumnTally] = field(
        default_factory=lambda: {name: ColumnTally() for name in TEXT_COLUMNS}
    )

    def add(self, batch: pa.RecordBatch, share: float = 1.0) -> None:
        """Count a batch of contract rows, and the texts of a share of them."""
        self.rows += batch.num_rows
        for value, count in Counter(batch["label"].drop_null().to_pylist()).items():
            self.labels[str(value) if 0 <= value < MAX_LABELS else "off scale"] += count
        self._count_markets(_value_counts(batch["market"].fill_null("(null)")))
        self._count_queries(batch["query"])
        texts = sample_rows(batch, share)
        self.text_rows += texts.num_rows
        for name, column in self.columns.items():
            column.add(texts[name])

    def _count_markets(self, markets: Mapping[str, int]) -> None:
        self.markets.update(markets)
        self.has_markets &= len(self.markets) <= MAX_MARKETS
        if not self.has_markets:
            self.markets = Counter({OTHERS: self.markets.total()})

    def _count_queries(self, queries: pa.Array) -> None:
        hashes = hash_column(queries)
        hashes = hashes[hashes != 0]  # null
        # the lowest 9 bits choose the register; the rank is 1 + the leading zeros of the other 55 bits
        rank = (56 - np.ceil(np.log2(hashes // _REGISTERS + 1.0))).astype(np.uint8)
        np.maximum.at(self.query_registers, (hashes % _REGISTERS).astype(np.int64), rank)

    def merge(self, other: TaskTally) -> None:
        """Add the counts of another tally."""
        self.rows += other.rows
        self.text_rows += other.text_rows
        self.labels.update(other.labels)
        self.has_markets &= other.has_markets
        self._count_markets(other.markets)
        self.query_registers = np.maximum(self.query_registers, other.query_registers)
        for name, column in self.columns.items():
            column.merge(other.columns[name])

    def num_queries(self) -> int:
        """Estimate the number of distinct queries, to 5 %.

        Reference: HyperLogLog, P. Flajolet et al., AofA 2007; linear counting for few queries.
        """
        num_empty = int((self.query_registers == 0).sum())
        bias_correction = 0.7213 / (1 + 1.079 / _REGISTERS)
        harmonic_sum = float((2.0 ** -self.query_registers.astype(np.float64)).sum())
        estimate = bias_correction * _REGISTERS**2 / harmonic_sum
        if num_empty and estimate <= 2.5 * _REGISTERS:
            estimate = _REGISTERS * float(np.log(_REGISTERS / num_empty))
        return round(estimate)


@dataclass
class Tally:
    """Counts of a data set, by task."""

    tasks: dict[str, TaskTally] = field(default_factory=dict)

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally."""
        for name, task in other.tasks.items():
            self.tasks.setdefault(name, TaskTally()).merge(task)

    def profile(self, max_markets: int = MAX_NAMED) -> Profile:
        """Build the profile of these counts.

        Args:
            max_markets: Markets per task that keep their names.
        """
        num_top = max(5, _TOP_WORDS // (len(TEXT_COLUMNS) * max(len(self.tasks), 1)))
        tasks = {name: _task_profile(task, num_top, max_markets) for name, task in sorted(self.tasks.items())}
        seen_words = {
            name: build_seen_words([task.columns[name].words for task in self.tasks.values()])
            for name in TEXT_COLUMNS
        }
        return Profile(tasks, seen_words)


@dataclass(frozen=True)
class ColumnProfile:
    """Profile of one text column of one task."""

    nulls: int
    lengths: Mapping[str, int]
    scripts: Mapping[str, int]
    word_buckets: Mapping[str, list[int]]  # by script of the word: occurrences by hash bucket
    top_words: Mapping[str, int]


@dataclass(frozen=True)
class TaskProfile:
    """Profile of one task."""

    rows: int
    text_rows: int  # rows whose texts were counted
    num_queries: int  # distinct, to 5 %
    labels: Mapping[str, int]
    markets: Mapping[str, int]
    columns: Mapping[str, ColumnProfile]


@dataclass(frozen=True)
class Profile:
    """Profile of a data set."""

    tasks: Mapping[str, TaskProfile]
    seen_words: Mapping[str, SeenWords]  # by column

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON value."""
        return {"profile_version": PROFILE_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Profile:
        """Build a profile from its JSON value.

        Raises:
            ValueError: The value has another version.
            TypeError, KeyError, AttributeError: The value is not a profile.
        """
        if value["profile_version"] != PROFILE_VERSION:
            raise ValueError(
                f"profile_version is {value['profile_version']!r}, this program reads {PROFILE_VERSION}"
            )
        tasks = {}
        for name, task in value["tasks"].items():
            columns = {column: ColumnProfile(**counts) for column, counts in task["columns"].items()}
            tasks[name] = TaskProfile(**{**task, "columns": columns})
        return cls(tasks, {column: SeenWords(**seen) for column, seen in value["seen_words"].items()})


def build_tally(sources: Mapping[str, RowSource]) -> Tally:
    """Count the rows of each task, file by file: as Ray tasks on a connected cluster.

    Raises:
        DamagedInputError: A file is not whole parquet.
    """
    tally = Tally()
    for name, source in sources.items():
        task, share = tally.tasks.setdefault(name, TaskTally()), sampling_share(source)
        for part in map_in_order(_tally_part, [(part, share) for part in source_parts(source)]):
            task.merge(part)
    return tally


def _tally_part(part: tuple[RowSource, float]) -> TaskTally:
    """Count a part of a task's rows, and the texts of a share of them."""
    source, share = part
    tally = TaskTally()
    for batch in read_columns(source, ("row_id", *TEXT_COLUMNS, "market", "label")):
        tally.add(batch, share)
    return tally


def write_profile(path: Path, profile: Profile, data_digest: str) -> None:
    """Write a profile as JSON, with the digest of its data (`pipeline.data.reader.data_digest`)."""
    write_bytes(path, f"{canonical_json({**profile.to_json(), 'data_digest': data_digest})}\n".encode())


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        DamagedInputError: The file is not a profile of this version.
    """
    value = read_json(path)
    try:
        return Profile.from_json(value)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DamagedInputError(
            f"{path} is not a data profile ({error}); profile the reference data again"
        ) from error


def _task_profile(task: TaskTally, num_top: int, max_markets: int) -> TaskProfile:
    markets = _most_common(task.markets)
    named = dict(sorted(markets[:max_markets]))
    if len(markets) > max_markets:
        named[OTHERS] = sum(count for _, count in markets[max_markets:])
    return TaskProfile(
        rows=task.rows,
        text_rows=task.text_rows,
        num_queries=task.num_queries(),
        labels=dict(sorted(task.labels.items())),
        markets=named,
        columns={name: _column_profile(column, num_top) for name, column in task.columns.items()},
    )


def _column_profile(column: ColumnTally, num_top: int) -> ColumnProfile:
    top = _most_common(column.words)[:num_top]
    return ColumnProfile(
        nulls=column.nulls,
        lengths={str(edge): column.lengths[edge] for edge in sorted(column.lengths)},
        scripts=dict(sorted(column.scripts.items())),
        word_buckets=count_word_buckets(column.words),
        top_words={compose(word)[:MAX_WORD_CHARS]: count for word, count in top},
    )


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """Sort by descending count, then by name, so that the order of the rows has no effect."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _value_counts(values: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(values)
    return dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
