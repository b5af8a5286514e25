"""`relevance score`: label every pair once with the champion."""

from typing import Any

from jobs.cluster import ray_cluster
from pipeline.config import RunConfig
from pipeline.errors import RelevanceError
from pipeline.logs import Console
from pipeline.registry import resolve_champion
from pipeline.score import plan_units, run_scoring


def run_score(config: RunConfig, console: Console) -> dict[str, Any]:
    """Score what is not scored yet. RelevanceError at the end if some units failed; the others are published."""
    champion = resolve_champion(config)
    to_do, published = plan_units(config, champion.bundle_sha256)
    console.say(f"  {len(to_do)} partitions to score with version {champion.version}, {published} published before")
    if not to_do:
        return {"scores": str(config.run_dir / "scores"), "units_scored": 0, "units_already_published": published, "rows_scored": 0}
    with ray_cluster(config.scoring.num_actors * config.scoring.threads_per_actor), console.progress("score", len(to_do), "partitions") as progress:

        def show(done: int, _: int, rows: int) -> None:
            progress.update(done, f"{rows:,} pairs")

        result = run_scoring(config, champion.bundle_dir, champion.bundle_sha256, champion.version, show)
    errors = result.pop("errors")
    if errors:
        raise RelevanceError(f"{len(errors)} of {len(to_do)} partitions were not scored, the others are published: " + "; ".join(errors[:5]))
    return dict(result)
