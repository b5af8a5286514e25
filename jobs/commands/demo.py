"""`relevance demo`: the whole path on synthetic ads, then labels to look at and commands to try next."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.command_run import CommandRun
from jobs.commands.run import run_all
from jobs.options import DEMO_CONFIG
from pipeline.config.run import RunConfig
from pipeline.data.reader import find_partitions, read_partition, read_split
from pipeline.data.synthetic.marketplace import NOISE_RATE, average_precision_ceiling
from pipeline.scoring.scoring_record import read_run

SHOWN_PER_DECISION = 2

EXAMPLE_HEADINGS = ("decision", "p", "label", "task", "query", "ad")


def run_demo(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Run the whole path; print the PR-AUC ceiling, example labels of each decision, and next commands."""
    result = run_all(config, run)
    run.result(ceiling_line(config))
    run.result(
        "",
        f"model      {result['model']} version {result['version']}, alias {result['alias']}, in "
        f"{result['tracking_uri']}",
        f"Data Docs  {result['data_docs']}",
        f"labels     {result['scores']}",
        "",
    )
    # the folder may hold labels of an earlier demo, of other texts under the same row ids
    run.table(example_cells(read_run(result["scores"], run.id), read_pairs(config)))
    run.result(*next_commands(config))
    return {**result, "next": f"relevance score --config {DEMO_CONFIG}"}


def ceiling_line(config: RunConfig) -> str:
    """Return a line on the best possible PR-AUC, which annotator noise keeps below 1."""
    import pyarrow.parquet as pq

    truth = pq.read_table(config.run_dir / "data" / "truth.parquet")
    test = read_split(config.accepted_dir, config.tasks, config.split, "test")
    reached = {
        task.name: average_precision_ceiling(test[task.name], truth, task.relevant_from)
        for task in config.tasks
        if task.name in test
    }
    by_task = ", ".join(f"{name} {value:.3f}" for name, value in reached.items())
    mean = sum(reached.values()) / len(reached)
    return f"  ceiling set by {NOISE_RATE:.0%} annotator noise: macro PR-AUC {mean:.3f} ({by_task})"


def read_pairs(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the pairs to score by row id."""
    partitions = find_partitions(Path(config.to_score_location), config.tasks)
    paths = [path for task_paths in partitions.values() for path in task_paths]
    return {row["row_id"]: row for path in paths for row in read_partition(path).to_pylist()}


def example_cells(labels: pa.Table, pairs: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return table rows: for each decision a few labels, from different tasks, with their texts."""
    cells: list[tuple[str, ...]] = [EXAMPLE_HEADINGS]
    rows = labels.to_pylist()
    for decision in ("relevant", "irrelevant", "abstain"):
        shown: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["decision"] == decision:
                shown.setdefault(row["task"], row)
        for row in list(shown.values())[:SHOWN_PER_DECISION]:
            pair = pairs[row["row_id"]]
            ad = pair["ad_keyword"] if row["task"] == "query-keyword" else pair["ad_title"]
            probability = f"{row['probability']:.3f}"
            cells.append((decision, probability, row["label_name"], row["task"], pair["query"], ad or ""))
    return cells


def next_commands(config: RunConfig) -> list[str]:
    """Return lines with commands to try."""
    store = config.tracking_uri
    return [
        "\nnext (with .venv/bin on the PATH):",
        f"  relevance score --config {DEMO_CONFIG}    # every pair is labelled already: scores nothing",
        f"  relevance report --config {DEMO_CONFIG}    # one HTML page about the version",
        f"  mlflow ui --backend-store-uri {store}    # losses, metrics, the registered version",
        "  relevance runs    # the history of commands",
        "  relevance run --config jobs/configs/esci.yaml    # the same on real judged data, which it names",
    ]
