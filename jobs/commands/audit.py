"""`relevance sample-labels` and `relevance audit`: a sample of published labels that people judge."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.command_run import CommandRun
from jobs.commands.labels import count_decisions, decision_table, open_labels
from pipeline.escaping import guard_formula
from pipeline.evaluation.stratified import Proportion
from pipeline.scoring.label_audit import JUDGEMENTS, read_audit
from pipeline.scoring.label_sample import SAMPLE_SCHEMA, LabelSampler
from pipeline.scoring.published_labels import LabelSelection
from pipeline.scoring.table_files import check_new_file, open_table_writer

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # inputs that a message names


def run_sample_labels(
    place: str, out: Path, selection: LabelSelection, rows: int, seed: int, run: CommandRun
) -> dict[str, Any]:
    """Write a stratified sample of published labels, for people to judge.

    Args:
        place: The location of all scores.
        out: The file to write: csv, csv.gz or parquet.
        selection: Labels to draw from.
        rows: Rows of the sample.
        seed: Seed of the draw.
        run: The command's run.

    Raises:
        ConfigError: The place does not exist or has no labels, there is no such run or task, there are too
            few rows for the tasks and decisions, or the file exists already.
        DamagedInputError: A manifest or a file that it names is missing or altered.
    """
    check_new_file(out)
    sampler = LabelSampler(open_labels(place, selection, out), rows, seed)
    sample = sampler.draw()
    with open_table_writer(out, SAMPLE_SCHEMA) as write:
        write(sample if out.name.endswith(".parquet") else guard_formulas(sample))
    counts: Counter[tuple[str, str]] = Counter()
    count_decisions(sample, counts)
    run.table(decision_table(counts))
    num_missing = pc.sum(pc.is_null(sample["query"])).as_py() or 0
    if sampler.missing:
        places = [f"{path}: {reason}" for (path, _), reason in sampler.missing.items()]
        logger.warning(
            "  texts missing of %d rows, and markets of all rows of %d inputs: %s; restore them for a sample "
            "with texts and by market", num_missing, len(places), "; ".join(places[:MAX_NAMED]),
        )  # fmt: skip
    run.result(f"write {' or '.join(JUDGEMENTS)} into column judgement of each row: {out}")
    return {
        "sample": str(out),
        "rows": sample.num_rows,
        "strata": len(pc.unique(sample["stratum"])),
        "rows_without_texts": num_missing,
        "next": run.suggest("audit", str(out)),
    }


def guard_formulas(sample: pa.Table) -> pa.Table:
    """Put an apostrophe before texts that a spreadsheet would compute as a formula."""
    for number, field in enumerate(sample.schema):
        if pa.types.is_string(field.type):
            texts = sample.column(number).to_pylist()
            guarded = [text if text is None else guard_formula(text) for text in texts]
            sample = sample.set_column(number, field, pa.array(guarded, field.type))
    return sample


def run_audit(path: Path, run: CommandRun) -> dict[str, Any]:
    """Print precision and defect rate of each task, from a sample that people have judged.

    Raises:
        ConfigError: The file does not exist or has an unknown suffix.
        DamagedInputError: It cannot be read as what its suffix says.
        DataRefusedError: A column or row is missing, or a cell is empty or altered.
    """
    results = read_audit(path).results()
    table: list[tuple[str, ...]] = [("task", "judged", "precision of relevant", "judged", "defect rate")]
    for result in results:
        precision = result.precision
        table.append(
            (
                result.task,
                str(precision.drawn) if precision else "0",
                _shown(precision) if precision else "no row was decided relevant",
                str(result.defect_rate.drawn),
                _shown(result.defect_rate),
            )
        )
    run.table(table)
    tasks = {
        result.task: {
            "precision": vars(result.precision) if result.precision else None,
            "defect_rate": vars(result.defect_rate),
        }
        for result in results
    }
    return {"tasks": tasks, "confidence": 0.95, "next": run.suggest("status")}


def _shown(share: Proportion) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
