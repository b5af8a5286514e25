"""Bring in the rows that a config names: `relevance sample`, `relevance import`, and the first stage of `relevance run`."""

from pathlib import Path
from typing import Any

from pipeline.config import ChorusSource, EsciSource, RunConfig, SampleSource
from pipeline.logs import Console


def bring_in(config: RunConfig, console: Console) -> dict[str, Any]:
    """Write the rows of every source of the config into the run's data folder."""
    for source in config.sources:
        if isinstance(source, SampleSource):
            sample(config.run_dir / "data", source.rows_per_task, source.unlabelled_rows_per_task, config.seed, console)
        elif isinstance(source, EsciSource):
            import_source("esci", source.path, config.judged_dir, console)
        elif isinstance(source, ChorusSource):
            import_source("chorus", source.path, config.judged_dir, console)
    return {"judged": str(config.judged_dir)}


def sample(out_dir: Path, rows_per_task: int, unlabelled_rows_per_task: int, seed: int, console: Console) -> dict[str, Any]:
    """Write the made-up ads marketplace."""
    from pipeline.sample import build_marketplace, write_marketplace

    marketplace = build_marketplace(rows_per_task, unlabelled_rows_per_task, seed)
    write_marketplace(marketplace, out_dir)
    rows = {name: table.num_rows for name, table in marketplace.rows.items()}
    console.say(f"  made up {sum(rows.values()):,} judged pairs of {len(rows)} tasks in {out_dir / 'judged'}")
    return {"judged": str(out_dir / "judged"), "unlabelled": str(out_dir / "unlabelled"), "rows": rows}


def import_source(kind: str, path: Path, out_dir: Path, console: Console) -> dict[str, Any]:
    """Import one outside source into contract rows."""
    from pipeline.sources import import_chorus, import_esci

    counts = import_esci(path, out_dir) if kind == "esci" else import_chorus(path, out_dir)
    console.say(f"  imported {sum(counts.rows.values()):,} judged pairs from {path}: " + ", ".join(f"{t} {n:,}" for t, n in counts.rows.items()))
    skipped = {reason: number for reason, number in counts.skipped.items() if number}
    if skipped:
        console.say("  left out: " + ", ".join(f"{number:,} {reason}" for reason, number in skipped.items()))
    return {"judged": str(out_dir), "rows": dict(counts.rows), "skipped": skipped}
