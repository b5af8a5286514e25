"""`relevance score`: label every pair once with the champion."""

from typing import Any

from jobs.cluster import ray_cluster
from pipeline.config import RunConfig
from pipeline.errors import RelevanceError
from pipeline.logs import Console
from pipeline.registry import FetchedVersion, resolve_champion
from pipeline.score import Unit, plan_units, run_scoring


def run_score(config: RunConfig, console: Console) -> dict[str, Any]:
    """Score what is not scored yet. RelevanceError at the end if some units failed; the others are published."""
    champion = resolve_champion(config)
    to_do, published = plan_units(config, champion.bundle_sha256)
    console.say(f"  {len(to_do)} partitions to score with version {champion.version}, {published} published before")
    rows = run_units(config, champion, to_do, console) if to_do else 0
    scores_dir = str(config.run_dir / "scores")
    return {"scores": scores_dir, "units_scored": len(to_do), "units_already_published": published, "rows_scored": rows}


def run_units(config: RunConfig, champion: FetchedVersion, to_do: list[Unit], console: Console) -> int:
    """Score units on Ray; returns the rows scored. RelevanceError as above."""
    with ray_cluster(config.scoring.num_actors * config.scoring.threads_per_actor), console.progress("score", len(to_do), "partitions") as progress:

        def show(done: int, rows: int) -> None:
            progress.update(done, f"{rows:,} pairs")

        rows, errors = run_scoring(config, to_do, champion.bundle_dir, champion.bundle_sha256, champion.version, show)
    if errors:
        raise RelevanceError(f"{len(errors)} of {len(to_do)} partitions were not scored, the others are published: " + "; ".join(errors[:5]))
    return rows
