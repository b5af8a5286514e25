"""`relevance demo`: the whole path on made-up ads, then what to look at and what to try next."""

from pathlib import Path
from typing import Any

from jobs.commands.run import run_all
from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.data.reader import read_split
from pipeline.data.synthetic.marketplace import NOISE_RATE, ceiling
from pipeline.scoring.label_store import read_published

DEMO_CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def run_demo(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run everything, then print the ceiling, examples, places and next commands."""
    result = run_all(config, console)
    console.result(ceilings(config))
    console.result(
        f"\nmodel      {result['model']} version {result['version']}, alias {result['alias']}, in "
        f"{result['tracking_uri']}"
    )
    console.result(f"Data Docs  {result['data_docs']}")
    console.result(f"labels     {result['scores']}")
    console.result(example_rows(Path(result["scores"])))
    console.result(next_commands(config))
    return result


def ceilings(config: RunConfig) -> str:
    """The PR-AUC that knowing every true grade would reach on the test rows, whose labels carry the
    annotators' noise.
    """
    import pyarrow.parquet as pq

    truth = pq.read_table(config.run_dir / "data" / "truth.parquet")
    test = read_split(config.accepted_dir, config.tasks, config.split, "test")
    reached = {
        task.name: ceiling(test[task.name], truth, task.relevant_from)
        for task in config.tasks
        if task.name in test
    }
    listed = ", ".join(f"{name} {value:.3f}" for name, value in reached.items())
    return (
        f"  ceiling set by {NOISE_RATE:.0%} annotator noise: macro PR-AUC "
        f"{sum(reached.values()) / len(reached):.3f} ({listed})"
    )


def example_rows(scores_dir: Path) -> str:
    """Five published labels."""
    rows = read_published(scores_dir)
    step = max(1, rows.num_rows // 5)
    shown = [rows.slice(i * step, 1).to_pylist()[0] for i in range(min(5, rows.num_rows))]
    return "\n".join(
        (
            f"  {r['row_id']:<32} {r['task']:<20} p {r['probability']:.3f}  {r['label_name']:<12} "
            f"{r['decision']}"
        )
        for r in shown
    )


def next_commands(config: RunConfig) -> str:
    """Three commands that make sense now."""
    return "\n".join(
        [
            "\nnext (with .venv/bin on the PATH):",
            (
                f"  relevance score --config {DEMO_CONFIG}    # again: every pair is labelled already, so "
                "it scores nothing"
            ),
            (
                f"  mlflow ui --backend-store-uri {config.tracking_uri}    # losses, figures, the "
                "registered version"
            ),
            "  relevance run --config jobs/configs/esci.yaml    # the same path on real judged data",
        ]
    )
