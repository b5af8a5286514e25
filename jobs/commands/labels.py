"""`relevance labels`: published labels as one file."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.command_run import CommandRun
from pipeline.errors import ConfigError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.names import is_bucket
from pipeline.scoring.label_audit import DECISIONS
from pipeline.scoring.published_labels import LabelSelection, PublishedLabels
from pipeline.scoring.table_files import check_new_file, open_table_writer


def run_labels(place: str, out: Path, selection: LabelSelection, run: CommandRun) -> dict[str, Any]:
    """Write published labels as one table.

    Args:
        place: The location of all scores.
        out: The file to write: parquet, csv or csv.gz.
        selection: Labels to write.
        run: The command's run.

    Raises:
        ConfigError: The place does not exist or has no labels, there is no such run or task, or the file
            exists already.
        DamagedInputError: A manifest or a file that it names is missing or altered.
    """
    check_new_file(out)
    labels = open_labels(place, selection, out)
    counts: Counter[tuple[str, str]] = Counter()
    with (
        open_table_writer(out, SCORE_SCHEMA) as write,
        run.track("labels", labels.num_labels, "labels") as bar,
    ):
        done, current = 0, None
        for unit, table in labels.batches():
            if current is not None and current is not unit:
                done += current.num_labels
                bar.update(done)
            current = unit
            write(table.cast(SCORE_SCHEMA))
            count_decisions(table, counts)
        bar.update(labels.num_labels)
    run.table(decision_table(counts))
    return {
        "labels": str(out),
        "rows": counts.total(),
        "next": run.suggest("sample-labels", place, "audit.csv", "--rows", "400"),
    }


def open_labels(place: str, selection: LabelSelection, out: Path) -> PublishedLabels:
    """Return the labels of a place; temporary files are beside the file that is written.

    Raises:
        ConfigError: The place does not exist or has no labels, or there is no such run or task.
    """
    if not is_bucket(place) and not Path(place).is_dir():
        raise ConfigError(f"place does not exist: {place}; name the location of `scoring.scores`")
    out.parent.mkdir(parents=True, exist_ok=True)
    labels = PublishedLabels(place, selection, out.parent)
    if not labels.num_published:
        raise ConfigError(
            f"place has no labels: {place}; name the location of `scoring.scores`, or run `relevance score`"
        )
    return labels


def count_decisions(table: pa.Table, counts: Counter[tuple[str, str]]) -> None:
    """Add the numbers of labels by task and decision."""
    grouped = table.select(["task", "decision"]).cast(
        pa.schema([SCORE_SCHEMA.field("task"), SCORE_SCHEMA.field("decision")])
    )
    for group in grouped.group_by(["task", "decision"]).aggregate([([], "count_all")]).to_pylist():
        counts[group["task"], group["decision"]] += group["count_all"]


def decision_table(counts: Counter[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Return a table of labels by task and decision."""
    rows: list[tuple[str, ...]] = [("task", "labels", *DECISIONS)]
    for task in sorted({task for task, _ in counts}):
        numbers = [counts[task, decision] for decision in DECISIONS]
        rows.append((task, *(f"{number:,}" for number in (sum(numbers), *numbers))))
    return rows
