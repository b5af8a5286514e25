"""Ray metrics, which every Ray node exports for Prometheus.

Each metric carries its run's name as its tag `run`. Ray must be connected.
"""

from typing import Any


def metric(kind: str, run: str, name: str, description: str, *tags: str) -> Any:
    """A Gauge or Counter of Ray, with tags beside `run`."""
    from ray.util import metrics

    made = getattr(metrics, kind)(f"relevance_{name}", description=description, tag_keys=("run", *tags))
    made.set_default_tags({"run": run})
    return made
