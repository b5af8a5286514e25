"""Leakage: what the test tells of the answer, and of the training data. Told, never refused: a person
decides.

Two ways are looked at, in batches of the columns needed: queries of one split that nearly stand in another
(`near_queries`), and words in a task's text that give the label away (`label_words`).

False alarms measured, made-up marketplace, seeds 0 to 49, 4 tasks of 2,000 rows: no label word in the 200
tables, nor in the same 200 with their labels shuffled (so below 1.5 % of tables at 95 % confidence). 2,818
rows of ESCI, 4 grades: none. No near query but those of one word, of which 36 % of the marketplace's test
queries have a neighbour and 0.7 % of ESCI's. In 10,000 rows a task the marketplace itself asks in two word
orders: 0.3 % of test queries. Found of what the tests plant: all, 40 label words in 120 rows each, 8 forms of
mark in 12 rows each, 10 queries of each kind. A word in fewer than 100 rows, a label told by two words
together, or by a text's length, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config.splits import SplitConfig
from pipeline.config.tasks import Task, check_known_task
from validation.leakage.label_words import LabelWord, WordRule, find_label_words
from validation.leakage.near_queries import DrawnQueries, NearQueries, find_near_queries
from validation.text.words import Source, read_batches


@dataclass(frozen=True)
class LeakageReport:
    """What was found in one data set. The same rows in the same order give the same report, however they lie
    in files.
    """

    num_queries: Mapping[str, int]  # distinct normalised queries compared, by split, over all tasks
    # about which share of all queries these are; neighbours by one word are found at about this rate, the
    # other kinds fully
    drawn_share: float
    near_queries: tuple[NearQueries, ...]  # one a kind
    label_words: tuple[LabelWord, ...]
    rule: WordRule

    def as_json(self) -> dict[str, Any]:
        """The report as a json value."""
        return asdict(self)

    def sentences(self) -> Iterator[str]:
        """What a person should look at, the gravest first; one-word neighbours are a figure and no
        finding.
        """
        for near in self.near_queries:
            if near.kind != "one_word" and near.num_test + near.num_valid:
                shown = "; ".join(
                    f"{query!r} ({side}) and {other!r} ({other_side})"
                    for query, side, other, other_side in near.examples[:3]
                )
                yield (
                    f"{near.num_test:,} test queries ({near.share_of_test:.1%}) and {near.num_valid:,} "
                    "valid queries also stand in an earlier "
                    f"split, alike in {near.kind}: {shown}"
                )
        for word in self.label_words:
            yield (
                f"task={word.task}: {word.share:.0%} of {word.num_rows:,} rows with {word.word!r} in "
                f"{word.column} are {word.label} "
                f"({word.base_share:.0%} of all rows are), such as {', '.join(word.row_ids)}; if "
                "the word was put there by the judging, remove it"
            )


def find_leakage(
    sources: Mapping[str, Source], tasks: Sequence[Task], config: SplitConfig, rule: WordRule | None = None
) -> LeakageReport:
    """Look through the rows of each task, a table or its parquet files
    (`pipeline.data.reader.find_partitions`).

    Queries are taken of all tasks together, for one model trains on all. Of many rows some are drawn
    (`drawn_share`, `DrawnQueries`), so memory stays bounded. DamagedInputError: a file is not whole.
    ConfigError: a task that is not configured.
    """
    rule, queries, words = rule or WordRule(), DrawnQueries(), list[LabelWord]()
    for name, source in sources.items():
        task = check_known_task(name, tasks, "the data")
        for batch in read_batches(source, ("query",)):
            queries.add(batch["query"])
        words += find_label_words(source, task, rule)
    compared, share = queries.queries()
    num_queries, near = find_near_queries(compared, config)
    return LeakageReport(num_queries, share, near, tuple(words), rule)
