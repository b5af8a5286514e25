"""Encoding of rows as token ids: the only place, for training, evaluation and scoring.

A template such as "Query: {query}\\nAd: {ad_title}\\nRelevant?" consists of trusted text from the config and
of fields from the rows. Fields are truncated by characters, then by tokens, and never yield a control token.
Trusted text is never truncated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.encoding import EncodeConfig
from pipeline.config.tasks import Task
from pipeline.encoding.literal_tokenizer import LiteralTokenizer

ENCODER_VERSION = "2"  # change it when the same row would get other ids


@dataclass(frozen=True)
class Segment:
    """A part of a template: the ids of trusted text, or the name of a column."""

    ids: tuple[int, ...] = ()
    column: str | None = None
    # white space before the field, which vocabularies of language models include in the first token
    lead: str = ""


class Encoder:
    """Encoder of the rows of some tasks.

    Raises:
        ValueError: A template leaves too few tokens for fields, or has no words of its own.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[Task], config: EncodeConfig) -> None:
        self.tokenizer = tokenizer  # for trusted text
        self.literal_tokenizer = LiteralTokenizer(tokenizer)  # for the rows' texts
        self.config = config
        self.segments = {task.name: self._parse(task.template) for task in tasks}
        bare, wrapped = (self._trusted_ids("a", special) for special in (False, True))
        start = next(i for i in range(len(wrapped)) if wrapped[i : i + len(bare)] == bare)
        self.prefix, self.suffix = wrapped[:start], wrapped[start + len(bare) :]
        wordless = [name for name, segments in self.segments.items() if not any(s.ids for s in segments)]
        if wordless and not (self.prefix or self.suffix):
            raise ValueError(
                f"template of task {wordless[0]} has no words of its own, so a row of empty texts would have "
                "no token; add some words"
            )

    def encode(self, table: pa.Table, task_name: str) -> list[list[int]]:
        """Return the token ids of each row, between 1 and `max_tokens`.

        Args:
            table: Rows with the columns of the task's template.
            task_name: The task.
        """
        segments = self.segments[task_name]
        columns = {
            s.column: self._field_ids(table.column(s.column), s) for s in segments if s.column is not None
        }
        return [
            self._assemble(segments, {name: ids[row] for name, ids in columns.items()})
            for row in range(table.num_rows)
        ]

    def columns(self, task_name: str) -> list[str]:
        """Return the columns of the task's template, in its order."""
        names = [segment.column for segment in self.segments[task_name] if segment.column is not None]
        return list(dict.fromkeys(names))

    def _assemble(self, segments: Sequence[Segment], fields: Mapping[str, list[int]]) -> list[int]:
        fixed = len(self.prefix) + len(self.suffix) + sum(len(s.ids) for s in segments)
        kept = fit_fields(fields, self.config.max_tokens - fixed)
        body = [token for s in segments for token in (s.ids if s.column is None else kept[s.column])]
        return [*self.prefix, *body, *self.suffix]

    def _field_ids(self, column: pa.ChunkedArray, segment: Segment) -> list[list[int]]:
        """Return the ids of one column's texts; null is empty text. Equal texts are tokenized once."""
        limit = self.config.max_query_chars if segment.column == "query" else self.config.max_ad_chars
        # the tokenizer needs a second for a megabyte, even if 64 tokens are kept
        truncated = pc.utf8_slice_codeunits(column, 0, limit * 4)
        texts = [" ".join((text or "").split())[:limit] for text in truncated.to_pylist()]
        index_by_text = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        distinct_ids = self.literal_tokenizer.encode(
            [segment.lead + text if text else "" for text in index_by_text]
        )
        return [distinct_ids[index_by_text[text]] for text in texts]

    def _parse(self, template: str) -> tuple[Segment, ...]:
        segments = []
        for literal, column, _, _ in Formatter().parse(template):
            trimmed = literal.rstrip(" ") if column is not None else literal
            if trimmed:
                segments.append(Segment(ids=tuple(self._trusted_ids(trimmed, False))))
            if column is not None:
                segments.append(Segment(column=column, lead=literal[len(trimmed) :]))
        fixed = sum(len(s.ids) for s in segments)
        if fixed > self.config.max_tokens // 2:
            raise ValueError(
                f"trusted text of the template has {fixed} tokens, over half of encode.max_tokens = "
                f"{self.config.max_tokens}; shorten it"
            )
        return tuple(segments)

    def _trusted_ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, split_special_tokens=False)[
            "input_ids"
        ]
        return ids


def fit_fields(fields: Mapping[str, list[int]], budget: int) -> dict[str, list[int]]:
    """Truncate fields to `budget` tokens in total.

    The ad is truncated first, its longest column before the others. The query is truncated only if it takes
    more than half of the budget alone.
    """
    kept = dict(fields)
    if sum(map(len, kept.values())) <= budget:
        return kept
    ad_columns = [name for name in kept if name != "query"]
    ad_total = sum(len(kept[name]) for name in ad_columns)
    kept["query"] = kept["query"][: max(budget // 2, budget - ad_total)]
    remaining = budget - len(kept["query"])
    for position, name in enumerate(sorted(ad_columns, key=lambda n: len(kept[n]))):
        share = remaining // (len(ad_columns) - position)
        kept[name] = kept[name][:share]
        remaining -= len(kept[name])
    return kept
