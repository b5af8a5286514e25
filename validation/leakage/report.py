"""Leakage: test queries that training has seen, and words that give a label away.

It is reported and never refuses data: a person decides. Near queries are found by `near_queries`, label words
by `label_words`, in batches of the columns that they need.

False alarms, measured on a synthetic marketplace (seeds 0 to 49, 4 tasks of 2,000 rows): no label word in the
200 tables, nor in the same 200 with their labels shuffled (below 1.5 % of tables at 95 % confidence). 2,818
rows of ESCI with 4 grades: none. No near query but those of one word: 36 % of the marketplace's test queries
have one, and 0.7 % of ESCI's. In 10,000 rows per task the marketplace itself asks in two word orders: 0.3 %
of test queries.

Detection: everything that the tests plant is found (40 label words in 120 rows each, 8 forms of mark in 12
rows each, 10 queries of each kind). Not found: a word in fewer than 100 rows, and a label that two words
together or the length of a text give away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config.splits import SplitConfig
from pipeline.config.tasks import Task, check_known_task
from pipeline.data.parallel_map import map_in_order
from validation.leakage.label_words import LabelWord, WordRule, find_label_words
from validation.leakage.near_queries import NearQueries, QuerySample, find_near_queries
from validation.text.words import RowSource, read_columns, source_parts

NUM_SHOWN_EXAMPLES = 3  # near queries in a message

# recorded names do not change: keys of leakage.json that differ from the field's name
_JSON_KEYS = {"sampled_share": "drawn_share"}


@dataclass(frozen=True)
class LeakageReport:
    """Leakage of one data set; equal rows in equal order give an equal report, however they lie in files."""

    num_queries: Mapping[str, int]  # distinct normalized queries compared, by split, over all tasks
    # Share of all queries that were compared. Near queries of kind one_word are found at about this rate,
    # those of the other kinds at full rate.
    sampled_share: float
    near_queries: tuple[NearQueries, ...]  # one for each kind
    label_words: tuple[LabelWord, ...]
    rule: WordRule

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    def messages(self) -> Iterator[str]:
        """Yield the findings that a person should look at, leaks of queries first.

        Near queries of kind one_word are a statistic and not a finding.
        """
        for near in self.near_queries:
            if near.kind != "one_word" and near.num_test + near.num_valid:
                shown = "; ".join(
                    f"{example.query!r} ({example.split}) and {example.other!r} ({example.other_split})"
                    for example in near.examples[:NUM_SHOWN_EXAMPLES]
                )
                yield (
                    f"{near.num_test:,} test queries ({near.share_of_test:.1%}) and {near.num_valid:,} valid "
                    f"queries also occur in an earlier split, equal up to {near.kind}: {shown}"
                )
        for word in self.label_words:
            yield (
                f"task={word.task}: {word.share:.0%} of {word.num_rows:,} rows with {word.word!r} in "
                f"{word.column} are {word.label} ({word.base_share:.0%} of all rows are), such as "
                f"{', '.join(word.row_ids)}; remove the word if the labeling put it there"
            )


def find_leakage(
    sources: Mapping[str, RowSource],
    tasks: Sequence[Task],
    config: SplitConfig,
    rule: WordRule | None = None,
) -> LeakageReport:
    """Search the rows of each task for leakage.

    Queries of all tasks are compared together, for one model trains on all. Large inputs are sampled, so
    memory stays bounded. Files are counted apart, as Ray tasks on a connected cluster, and merged.

    Args:
        sources: Rows by task.
        tasks: Configured tasks.
        config: Split of the queries.
        rule: Limits for label words.

    Raises:
        DamagedInputError: A file is not whole parquet.
        ConfigError: A task is not configured.
    """
    rule, queries, words = rule or WordRule(), QuerySample(), list[LabelWord]()
    for name, source in sources.items():
        task = check_known_task(name, tasks, "the data")
        # made as results are taken: a later part knows the limit that earlier ones led to
        parts = ((part, queries.limit) for part in source_parts(source))
        for sample in map_in_order(_sample_queries, parts):
            queries.merge(sample)
        words += find_label_words(source, task, rule)
    compared, share = queries.queries()
    num_queries, near = find_near_queries(compared, config)
    return LeakageReport(num_queries, share, near, tuple(words), rule)


def _sample_queries(part: tuple[RowSource, np.uint64]) -> QuerySample:
    """Return the queries of a part of the rows, up to a limit of their letter keys."""
    source, limit = part
    queries = QuerySample(limit)
    for batch in read_columns(source, ("query",)):
        queries.add(batch["query"])
    return queries
