"""Text to token ids, in exactly one place: training, evaluation and scoring all pass through here.

A template such as "Query: {query}\\nAd: {ad_title}\\nRelevant?" is cut into trusted text (the config's) and
fields (the rows'). Fields are cut by characters first, then by tokens, and never yield a control token; the
trusted text is never cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.encoding import EncodeConfig
from pipeline.config.tasks import Task
from pipeline.encoding.literal_tokenizer import PlainTokenizer

ENCODER_VERSION = "2"  # changes whenever the same row would give other ids


@dataclass(frozen=True)
class Segment:
    """A stretch of a template: trusted text as ids, or the name of the column whose text stands here."""

    ids: tuple[int, ...] = ()
    column: str | None = None
    # white space that belongs to the field's first token, as language models' vocabularies have it
    lead: str = ""


class Encoder:
    """Turns rows of one task into token ids. Built once a process; the tokenizer sees each distinct text once
    a call.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[Task], config: EncodeConfig) -> None:
        self.tokenizer = tokenizer  # of trusted text
        self.plain = PlainTokenizer(tokenizer)  # of the rows' texts
        self.config = config
        self.segments = {task.name: self._parse(task.template) for task in tasks}
        bare, wrapped = (self._trusted_ids("a", special) for special in (False, True))
        start = next(i for i in range(len(wrapped)) if wrapped[i : i + len(bare)] == bare)
        self.prefix, self.suffix = wrapped[:start], wrapped[start + len(bare) :]
        wordless = [name for name, segments in self.segments.items() if not any(s.ids for s in segments)]
        if wordless and not (self.prefix or self.suffix):
            raise ValueError(
                f"the template of task {wordless[0]} has no words of its own, so a row of empty texts "
                "would have no token; add some"
            )

    def encode(self, table: pa.Table, task_name: str) -> list[list[int]]:
        """Token ids of each row of `table`, which holds the columns the task's template names. No id list is
        empty or over max_tokens.
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
        """The columns that the task's template names, in its order."""
        return list(
            dict.fromkeys(
                segment.column for segment in self.segments[task_name] if segment.column is not None
            )
        )

    def _assemble(self, segments: Sequence[Segment], fields: Mapping[str, list[int]]) -> list[int]:
        fixed = len(self.prefix) + len(self.suffix) + sum(len(s.ids) for s in segments)
        kept = fit_fields(fields, self.config.max_tokens - fixed)
        body = [token for s in segments for token in (s.ids if s.column is None else kept[s.column])]
        return [*self.prefix, *body, *self.suffix]

    def _field_ids(self, column: pa.ChunkedArray, segment: Segment) -> list[list[int]]:
        """Ids of one column's texts; null reads as empty text."""
        limit = self.config.max_query_chars if segment.column == "query" else self.config.max_ad_chars
        # characters first: the tokenizer would take a second for a megabyte, even to keep 64 tokens of it
        cut = pc.utf8_slice_codeunits(column, 0, limit * 4)
        texts = [" ".join((text or "").split())[:limit] for text in cut.to_pylist()]
        known = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        batch = [segment.lead + text if text else "" for text in known]
        ids = self.plain.ids(batch)
        return [ids[known[text]] for text in texts]

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
                f"the template's own text is {fixed} tokens, over half of encode.max_tokens = "
                f"{self.config.max_tokens}; shorten it"
            )
        return tuple(segments)

    def _trusted_ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, split_special_tokens=False)[
            "input_ids"
        ]
        return ids


def fit_fields(fields: Mapping[str, list[int]], budget: int) -> dict[str, list[int]]:
    """Cut fields so that together they take at most `budget` tokens: the ad gives way first, its longest
    column before others; the query is cut only where it alone takes more than half.
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
