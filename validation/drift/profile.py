"""What a data set looks like, in a few kilobytes: the reference that later data are compared with (`drift`).

A `Tally` counts rows as they stream by. Every part of it is a sum or a maximum, so tallies of parts merge to
the tally of the whole, exactly and in any order. Rows, labels, markets and queries are counted of all rows,
texts of at most MAX_TEXT_ROWS a task, so memory stays bounded. A `Profile` is what is kept of a tally: the
same counts but for the words, of which the most frequent keep their names and all keep a place among hash
buckets. The same rows give the same bytes.
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

from pipeline.errors import DamagedInputError
from pipeline.schema import COLUMNS, MAX_LABELS, TEXT_COLUMNS
from pipeline.storage.filesystem import canonical_json, read_json, write_bytes
from validation.drift.seen_words import SeenWords, see_words, word_buckets
from validation.text.hashing import hash_column
from validation.text.scripts import SCRIPTS, main_scripts
from validation.text.words import Source, drawn, drawn_share, fold_texts, read_batches, shown, split_words

PROFILE_VERSION = 1

NULLABLE_TEXTS: tuple[str, ...] = tuple(c.name for c in COLUMNS if c.nullable and c.name in TEXT_COLUMNS)

# Lower ends of the length bins, in characters: each length up to 11, then eight bins an octave. Coarser ones
# are made of these when two are compared.
LENGTH_EDGES = np.unique([0, *(round(2 ** (k / 8)) for k in range(161))])

MAX_MARKETS = 100_000  # counted

MAX_NAMED = 64  # markets kept by name; the rest are "(other)"

OTHERS = "(other)"

MAX_WORD_CHARS = 24  # of a word kept by name

# kept by name over all tasks and columns; with the rest this keeps the file below 200 kB for 8 tasks and 5
# scripts
_TOP_WORDS = 1_000

_REGISTERS = 512  # of the count of distinct queries: HyperLogLog, standard error 1.04 / sqrt(512) = 5 %


@dataclass
class ColumnTally:
    """Counts of one text column of one task."""

    nulls: int = 0
    # texts by the lower end of their bin, in characters
    lengths: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)  # texts
    words: Counter[str] = field(default_factory=Counter)  # occurrences of each folded word

    def add(self, texts: pa.Array) -> None:
        """Take up a column of a batch."""
        self.nulls += texts.null_count
        present = texts.drop_null()
        edges = LENGTH_EDGES[
            np.searchsorted(
                LENGTH_EDGES, pc.utf8_length(present).to_numpy(zero_copy_only=False), side="right"
            )
            - 1
        ]
        self.lengths.update(edges.tolist())
        self.scripts.update(Counter(SCRIPTS[script] for script in main_scripts(present).tolist()))
        counts = pc.value_counts(split_words(fold_texts(present))[1].cast(pa.string()))
        self.words.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))

    def merge(self, other: ColumnTally) -> None:
        """Take up the rows of another tally."""
        self.nulls += other.nulls
        for mine, more in (
            (self.lengths, other.lengths),
            (self.scripts, other.scripts),
            (self.words, other.words),
        ):
            mine.update(more)  # type: ignore[arg-type]


@dataclass
class TaskTally:
    """Counts of one task."""

    rows: int = 0
    text_rows: int = 0  # of them, those drawn for `columns`
    labels: Counter[str] = field(default_factory=Counter)  # by index; rows without a label are in none
    markets: Counter[str] = field(default_factory=Counter)
    query_registers: np.ndarray = field(default_factory=lambda: np.zeros(_REGISTERS, dtype=np.uint8))
    columns: dict[str, ColumnTally] = field(
        default_factory=lambda: {name: ColumnTally() for name in TEXT_COLUMNS}
    )

    def add(self, batch: pa.RecordBatch, share: float = 1.0) -> None:
        """Take up a batch of contract rows, and the texts of a share of them."""
        self.rows += batch.num_rows
        for value, count in Counter(batch["label"].drop_null().to_pylist()).items():
            self.labels[str(value) if 0 <= value < MAX_LABELS else "off scale"] += count
        self._count_markets(batch["market"])
        hashes = hash_column(batch["query"])
        hashes = hashes[hashes != 0]  # null
        # leading zeros of the other 55 bits, and 1
        rank = (56 - np.ceil(np.log2(hashes // _REGISTERS + 1.0))).astype(np.uint8)
        np.maximum.at(self.query_registers, (hashes % _REGISTERS).astype(np.int64), rank)
        texts = drawn(batch, share)
        self.text_rows += texts.num_rows
        for name, column in self.columns.items():
            column.add(texts[name])

    def _count_markets(self, markets: pa.Array) -> None:
        counts = pc.value_counts(markets.fill_null("(null)"))
        self.markets.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))
        # no market, whatever the column is called: the rare ones lose their names
        if len(self.markets) > MAX_MARKETS:
            named = dict(_most_common(self.markets)[: MAX_MARKETS // 2])
            self.markets = Counter(
                named | {OTHERS: self.markets.total() - sum(n for name, n in named.items() if name != OTHERS)}
            )

    def merge(self, other: TaskTally) -> None:
        """Take up the rows of another tally."""
        self.rows += other.rows
        self.text_rows += other.text_rows
        self.labels.update(other.labels)
        self.markets.update(other.markets)
        self.query_registers = np.maximum(self.query_registers, other.query_registers)
        for name, column in self.columns.items():
            column.merge(other.columns[name])

    def num_queries(self) -> int:
        """About how many distinct queries (P. Flajolet et al., HyperLogLog, 2007; linear counting where
        registers are empty).
        """
        empty = int((self.query_registers == 0).sum())
        raw = (
            0.7213
            / (1 + 1.079 / _REGISTERS)
            * _REGISTERS**2
            / float((2.0 ** -self.query_registers.astype(np.float64)).sum())
        )
        return round(
            _REGISTERS * float(np.log(_REGISTERS / empty)) if empty and raw <= 2.5 * _REGISTERS else raw
        )


@dataclass
class Tally:
    """Counts of a data set, by task."""

    tasks: dict[str, TaskTally] = field(default_factory=dict)

    def merge(self, other: Tally) -> None:
        """Take up the rows of another tally."""
        for name, task in other.tasks.items():
            self.tasks.setdefault(name, TaskTally()).merge(task)

    def profile(self, max_markets: int = MAX_NAMED) -> Profile:
        """What is kept of these counts."""
        num_top = max(5, _TOP_WORDS // (len(TEXT_COLUMNS) * max(len(self.tasks), 1)))
        return Profile(
            {name: _task_profile(task, num_top, max_markets) for name, task in sorted(self.tasks.items())},
            {
                name: see_words([task.columns[name].words for task in self.tasks.values()])
                for name in TEXT_COLUMNS
            },
        )


@dataclass(frozen=True)
class ColumnProfile:
    """What is kept of one text column of one task."""

    nulls: int
    lengths: Mapping[str, int]
    scripts: Mapping[str, int]
    word_buckets: Mapping[str, list[int]]  # by script of the word: occurrences by hash bucket
    top_words: Mapping[str, int]


@dataclass(frozen=True)
class TaskProfile:
    """What is kept of one task."""

    rows: int
    text_rows: int  # of them, those whose texts were counted
    num_queries: int  # distinct, to 5 %
    labels: Mapping[str, int]
    markets: Mapping[str, int]
    columns: Mapping[str, ColumnProfile]


@dataclass(frozen=True)
class Profile:
    """The reference profile of a data set, by task; what holds for all is a sum over tasks."""

    tasks: Mapping[str, TaskProfile]
    seen_words: Mapping[str, SeenWords]  # by column

    def as_json(self) -> dict[str, Any]:
        """The profile as a json value."""
        return {"profile_version": PROFILE_VERSION, **asdict(self)}


def build_tally(sources: Mapping[str, Source]) -> Tally:
    """Count the rows of each task, a table or its parquet files. DamagedInputError: a file is not whole."""
    tally = Tally()
    for name, source in sources.items():
        task, share = tally.tasks.setdefault(name, TaskTally()), drawn_share(source)
        for batch in read_batches(source, ("row_id", *TEXT_COLUMNS, "market", "label")):
            task.add(batch, share)
    return tally


def write_profile(path: Path, profile: Profile, data_digest: str) -> None:
    """Replace `path` by the profile's json, with the digest of the data it is of
    (`pipeline.data.reader.data_digest`).
    """
    write_bytes(path, f"{canonical_json({**profile.as_json(), 'data_digest': data_digest})}\n".encode())


def read_profile(path: Path) -> Profile:
    """The profile in `path`; DamagedInputError if it is none of this version."""
    value = read_json(path)
    try:
        if value["profile_version"] != PROFILE_VERSION:
            raise ValueError(
                f"profile_version is {value['profile_version']!r}, this program reads {PROFILE_VERSION}"
            )
        tasks = {
            name: TaskProfile(
                **{**task, "columns": {c: ColumnProfile(**column) for c, column in task["columns"].items()}}
            )
            for name, task in value["tasks"].items()
        }
        return Profile(tasks, {name: SeenWords(**seen) for name, seen in value["seen_words"].items()})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DamagedInputError(
            f"{path} is not a data profile ({error}); profile the reference data again"
        ) from error


def _task_profile(task: TaskTally, num_top: int, max_markets: int) -> TaskProfile:
    columns = {}
    for name, column in task.columns.items():
        lengths = {str(edge): column.lengths[edge] for edge in sorted(column.lengths)}
        top = {shown(word)[:MAX_WORD_CHARS]: count for word, count in _most_common(column.words)[:num_top]}
        columns[name] = ColumnProfile(
            column.nulls, lengths, dict(sorted(column.scripts.items())), word_buckets(column.words), top
        )
    markets = _most_common(task.markets)
    named = dict(sorted(markets[:max_markets])) | (
        {OTHERS: sum(n for _, n in markets[max_markets:])} if len(markets) > max_markets else {}
    )
    return TaskProfile(
        task.rows, task.text_rows, task.num_queries(), dict(sorted(task.labels.items())), named, columns
    )


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """By falling count, ties by name, so that the order of the rows does not show."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
