"""Stratified sample of published labels, for people to audit.

Strata are task, market, decision and a fifth of the probabilities. Within a stratum each label has the same
chance; a label's weight is 1 / that chance. The draw follows from the seed, row_id, task and model alone, in
any order of the files.

Shape legend: C labels of a batch, N labels of the pool, H strata.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.reader import check_schema, read_rows
from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.escaping import escape_invisible
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import TEXT_COLUMNS
from pipeline.scoring.inputs import open_input
from pipeline.scoring.key_digests import row_id_digests
from pipeline.scoring.published_labels import LabelUnit, PublishedLabels

SAMPLE_SCHEMA = pa.schema(
    [
        *(SCORE_SCHEMA.field(name) for name in ("row_id", "task")),
        *(pa.field(name, pa.string()) for name in ("market", *TEXT_COLUMNS)),
        pa.field("judgement", pa.string()),  # empty, for people
        *(SCORE_SCHEMA.field(name) for name in ("decision", "label_name", "probability")),
        pa.field("stratum", pa.string()),
        pa.field("stratum_rows", pa.int64()),  # published labels of the stratum
        pa.field("stratum_drawn", pa.int64()),
        pa.field("weight", pa.float64()),  # stratum_rows / stratum_drawn
        *(SCORE_SCHEMA.field(name) for name in ("model_version", "bundle_sha256")),
    ]
)

NUM_BANDS = 5  # of the probability, equally wide

MIN_DRAWN = 2  # of a stratum, for the variance within it

Stratum = tuple[str, str | None, str, int | None]  # task, market, decision, band; None: all together

_LABEL_COLUMNS = ("row_id", "task", "probability", "label_name", "decision", "model_version", "bundle_sha256")


class LabelSampler:
    """Draws a sample in bounded memory: the rows of one unit, and the sample.

    Attributes:
        missing: Why inputs could not be read, by path and digest.
    """

    def __init__(self, labels: PublishedLabels, rows: int, seed: int) -> None:
        self.labels, self.rows, self.seed = labels, rows, seed
        self.missing: dict[tuple[str, str], str] = {}

    def draw(self) -> pa.Table:
        """Return the sample in SAMPLE_SCHEMA, in random order.

        Raises:
            ConfigError: There are fewer rows than tasks and decisions.
            DamagedInputError: A manifest or a file that it names is missing or altered.
        """
        counts: Counter[Stratum] = Counter()
        for batch in self._batches():
            counts.update(batch.strata)
        plan = plan_sample(counts, self.rows)
        pool: list[dict[str, Any]] = []
        highest: dict[Stratum, int] = {}
        for batch in self._batches():
            pool = plan.keep_first([*pool, *batch.candidates(plan, self.seed, highest)], highest)
        texts = self._read_texts(pool)
        rows = []
        for row in pool:
            size, drawn = plan.sizes[row["stratum"]], plan.to_draw[row["stratum"]]
            rows.append(
                {
                    **row["label"],
                    **texts.get((row["unit"].unit_id, row["label"]["row_id"]), {}),
                    "market": row["market"],
                    "stratum": _stratum_name(row["stratum"]),
                    "stratum_rows": size,
                    "stratum_drawn": drawn,
                    "weight": size / drawn,
                }
            )
        return pa.Table.from_pylist(rows, SAMPLE_SCHEMA)

    def _batches(self) -> Iterator["_Batch"]:
        """Yield all labels with their markets."""
        markets: pa.Table | None = None
        unit_id = ""
        for unit, table in self.labels.batches(_LABEL_COLUMNS):
            if unit.unit_id != unit_id:
                unit_id, markets = unit.unit_id, self._read_rows(unit, ("market",))
            yield _Batch(
                unit, table.cast(_plain_schema(table)), _find_values(markets, table["row_id"], "market")
            )

    def _read_texts(self, pool: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, str | None]]:
        """Return the texts of drawn rows by unit and row_id."""
        drawn_ids: dict[str, set[str]] = {}
        for row in pool:
            drawn_ids.setdefault(row["unit"].unit_id, set()).add(row["label"]["row_id"])
        texts: dict[tuple[str, str], dict[str, str | None]] = {}
        for unit in {row["unit"].unit_id: row["unit"] for row in pool}.values():
            rows = self._read_rows(unit, TEXT_COLUMNS, pa.array(sorted(drawn_ids[unit.unit_id])))
            for row in rows.to_pylist() if rows is not None else []:
                texts.setdefault((unit.unit_id, row.pop("row_id")), row)
        return texts

    def _read_rows(
        self, unit: LabelUnit, columns: Sequence[str], row_ids: pa.Array | None = None
    ) -> pa.Table | None:
        """Return columns of a unit's input rows by row_id; None if the input is not there as it was."""
        source = unit.input
        if (source.path, source.digest) in self.missing:
            return None
        tables = []
        try:
            with open_input(source.path, source.digest) as file:
                check_schema(file, source.path)
                for table in read_rows(file, source.path, ("row_id", *columns), source.part):
                    is_wanted = pc.is_in(table["row_id"], row_ids) if row_ids is not None else None
                    tables.append(table if is_wanted is None else table.filter(is_wanted))
        except RetryableError:
            self.missing[source.path, source.digest] = "changed or removed since its rows were labeled"
            return None
        except (OSError, RelevanceError) as error:
            self.missing[source.path, source.digest] = str(error)
            return None
        return pa.concat_tables(tables) if tables else None


@dataclass(frozen=True)
class SamplePlan:
    """Strata of a sample and the rows to draw of each."""

    sizes: Mapping[Stratum, int]
    to_draw: Mapping[Stratum, int]
    level: int

    def stratum_of(self, finest: Stratum) -> Stratum:
        """Return the stratum that a label of task, market, decision and band belongs to."""
        return merge_stratum(finest, self.level)

    def keep_first(self, rows: Sequence[dict[str, Any]], highest: dict[Stratum, int]) -> list[dict[str, Any]]:
        """Keep the rows of each stratum with the lowest priorities; note the highest of full strata."""
        kept = []
        num_kept: Counter[Stratum] = Counter()
        for row in sorted(rows, key=lambda row: row["priority"]):
            stratum = row["stratum"]
            if num_kept[stratum] < self.to_draw[stratum]:
                num_kept[stratum] += 1
                kept.append(row)
                if num_kept[stratum] == self.to_draw[stratum]:
                    highest[stratum] = row["priority"]
        return kept


@dataclass(frozen=True)
class _Batch:
    """Labels of one unit, with the market of each."""

    unit: LabelUnit
    table: pa.Table
    markets: list[str | None]

    @property
    def strata(self) -> list[Stratum]:
        """Finest stratum of each label."""
        probability_C = self.table["probability"].to_numpy()
        bands = np.clip((probability_C * NUM_BANDS).astype(int), 0, NUM_BANDS - 1).tolist()
        names = zip(
            self.table["task"].to_pylist(),
            self.markets,
            self.table["decision"].to_pylist(),
            bands,
            strict=True,
        )
        return [(task, market or "", decision, band) for task, market, decision, band in names]

    def candidates(
        self, plan: SamplePlan, seed: int, highest: Mapping[Stratum, int]
    ) -> Iterator[dict[str, Any]]:
        """Yield the labels whose priority is low enough for the sample so far."""
        tasks = self.table["task"].to_numpy(zero_copy_only=False)
        priority_C = np.zeros(self.table.num_rows, "<u8")
        for task in set(tasks):
            rows = np.flatnonzero(tasks == task)
            ids = self.table["row_id"].take(pa.array(rows)).to_pylist()
            salt = f"{seed}\0{self.unit.bundle_sha256}\0{task}".encode()
            priority_C[rows] = row_id_digests(ids, salt)[:, 0]
        strata, num_found = self.strata, Counter[Stratum]()
        for number in np.argsort(priority_C, kind="stable").tolist():
            stratum, priority = plan.stratum_of(strata[number]), int(priority_C[number])
            if priority < highest.get(stratum, 2**64) and num_found[stratum] < plan.to_draw[stratum]:
                num_found[stratum] += 1
                yield {
                    "unit": self.unit,
                    "label": self.table.slice(number, 1).to_pylist()[0],
                    "market": self.markets[number],
                    "stratum": stratum,
                    "priority": priority,
                }


def plan_sample(counts: Mapping[Stratum, int], rows: int) -> SamplePlan:
    """Choose the strata of a sample and share its rows out.

    If there are too few rows to draw MIN_DRAWN of each stratum, or all of a smaller one, bands are merged,
    then markets. Tasks and decisions stay apart, and of each at least one row is drawn.

    Args:
        counts: Labels by task, market, decision and band.
        rows: Rows of the sample.

    Raises:
        ConfigError: There are fewer rows than tasks and decisions.
    """
    for level, least in ((0, MIN_DRAWN), (1, MIN_DRAWN), (2, MIN_DRAWN), (2, 1)):
        sizes: Counter[Stratum] = Counter()
        for stratum, count in counts.items():
            sizes[merge_stratum(stratum, level)] += count
        if sum(min(least, size) for size in sizes.values()) <= rows:
            strata = sorted(sizes, key=str)
            to_draw = share_out([sizes[stratum] for stratum in strata], rows, least)
            return SamplePlan(sizes, dict(zip(strata, to_draw, strict=True)), level)
    raise ConfigError(
        f"rows too few: {rows}; give --rows {len(sizes)} or more, one for each task and decision"
    )


def share_out(sizes: Sequence[int], rows: int, least: int) -> list[int]:
    """Return the rows to draw of each stratum: at least `least`, or all of a smaller stratum.

    Shares follow the square roots of the sizes (power allocation; Bankier, The American Statistician 42,
    1988): small strata get more than their part of the rows, so that each task and market has an estimate.
    """
    size_H = np.array(sizes, float)
    rows = min(rows, sum(sizes))

    def shares(factor: float) -> np.ndarray:
        return np.clip(factor * np.sqrt(size_H), np.minimum(least, size_H), size_H)

    low, high = 0.0, float(np.sqrt(size_H.max(initial=0)))  # at the high one all rows are drawn
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle).sum() <= rows else (low, middle)
    share_H = shares(high) if rows == sum(sizes) else shares(low)
    drawn_H = np.floor(share_H + 1e-9).astype(int)
    largest_remainder = np.argsort(drawn_H - share_H, kind="stable")
    can_grow = [stratum for stratum in largest_remainder if drawn_H[stratum] < sizes[stratum]]
    drawn_H[can_grow[: rows - int(drawn_H.sum())]] += 1
    return [int(count) for count in drawn_H]


def merge_stratum(stratum: Stratum, level: int) -> Stratum:
    """Return the stratum that one of task, market, decision and band is part of.

    Args:
        stratum: The stratum.
        level: 0: itself; 1: bands together; 2: markets together too.
    """
    task, market, decision, band = stratum
    return (task, market if level < 2 else None, decision, band if level < 1 else None)


def _stratum_name(stratum: Stratum) -> str:
    task, market, decision, band = stratum
    parts = [task] if market is None else [task, escape_invisible(market) or "market unknown"]
    parts.append(decision)
    if band is not None:
        parts.append(f"{band / NUM_BANDS:.1f} to {(band + 1) / NUM_BANDS:.1f}")
    return " | ".join(parts)


def _plain_schema(table: pa.Table) -> pa.Schema:
    return pa.schema([SCORE_SCHEMA.field(name) for name in table.column_names])


def _find_values(rows: pa.Table | None, row_ids: pa.ChunkedArray, column: str) -> list[str | None]:
    """Return a column's value of each row_id; None for all if there are no rows."""
    if rows is None:
        return [None] * len(row_ids)
    places = pc.index_in(row_ids, value_set=rows["row_id"].combine_chunks())
    return rows[column].combine_chunks().take(places.combine_chunks()).to_pylist()
