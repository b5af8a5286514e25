"""Ray metrics, which every Ray node exports for Prometheus."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricTags:
    """Tags of all metrics of a command."""

    run: str  # the config's name
    run_id: str = ""  # of the command


def create_metric(kind: str, common_tags: MetricTags, name: str, description: str, *tags: str) -> Any:
    """Return a metric `relevance_<name>` of Ray, tagged with its run. Ray must be connected.

    Args:
        kind: Class of `ray.util.metrics`: "Gauge" or "Counter".
        common_tags: Values of the tags `run` and `run_id`.
        name: Name without the prefix.
        description: Help text for Prometheus.
        tags: Names of further tags, whose values come with each observation.
    """
    from ray.util import metrics

    ray_metric = getattr(metrics, kind)(
        f"relevance_{name}", description=description, tag_keys=("run", "run_id", *tags)
    )
    ray_metric.set_default_tags({"run": common_tags.run, "run_id": common_tags.run_id})
    return ray_metric
