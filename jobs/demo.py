"""`relevance demo`: the whole path on made-up ads, then what to look at and what to try next."""

from pathlib import Path
from typing import Any

from jobs.run import run_all
from pipeline.commit import read_published
from pipeline.config import RunConfig
from pipeline.logs import Console
from pipeline.sample import ceiling

DEMO_CONFIG = Path(__file__).with_name("configs") / "demo.yaml"


def run_demo(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run everything, then print examples, places and next commands."""
    result = run_all(config, console)
    console.result(f"\nmodel {result['model']} version {result['version']}, alias {result['alias']} ({result['tracking_uri']})")
    console.result(f"Data Docs  {result['data_docs']}")
    console.result(f"labels     {result['scores']}")
    console.result(example_rows(Path(result["scores"])))
    console.result(next_commands(config))
    return result


def example_rows(scores_dir: Path) -> str:
    """Five published labels."""
    rows = read_published(scores_dir)
    step = max(1, rows.num_rows // 5)
    shown = [rows.slice(i * step, 1).to_pylist()[0] for i in range(min(5, rows.num_rows))]
    lines = [f"  {r['row_id']:<28} {r['task']:<20} p {r['probability']:.3f}  {r['label_name']:<12} {r['decision']}" for r in shown]
    return "\n".join(lines)


def next_commands(config: RunConfig) -> str:
    """Three commands that make sense now."""
    return "\n".join(
        [
            "\nnext:",
            f"  relevance score --config {DEMO_CONFIG}     # again: scores nothing, every pair is labelled once",
            f"  mlflow ui --backend-store-uri {config.tracking_uri}",
            "  relevance run --config jobs/configs/esci.yaml     # the same path on real judged data",
        ]
    )
