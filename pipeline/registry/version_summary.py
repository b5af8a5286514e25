"""A registered version in words: its standing, its origin and its cost."""

from collections.abc import Sequence
from typing import Any

from pipeline.inference.bundle_description import BundleDescription

ORIGIN_TAGS = ("bundle_sha256", "data_digest", "fingerprint", "backbone_digest", "code_version")


def describe_standing(client: Any, model: str, champions: Sequence[str], version: str) -> str:
    """Return whether a version is champion, previous champion, challenger or none of them.

    Args:
        client: An MLflow client.
        model: Name of the registered model.
        champions: Versions that a rollback would return to, the champion last.
        version: The version.
    """
    if list(champions[-1:]) == [version]:
        return "champion"
    if version in champions[-2:]:
        return "the previous champion"
    challenger = client.get_registered_model(model).aliases.get("challenger")
    return "challenger" if str(challenger) == version else "neither champion nor challenger"


def describe_origin(record: Any) -> dict[str, str]:
    """Return digests and run id of a version's MLflow record, by the name shown to people."""
    digests = {name.replace("_", " "): record.tags[name] for name in ORIGIN_TAGS if name in record.tags}
    return {**digests, "MLflow run": str(record.run_id)}


def describe_cost(description: BundleDescription) -> dict[str, str]:
    """Return what a version's size and training depend on, by the name shown to people."""
    backbone, training = description.backbone, description.training
    return {
        "backbone": f"{backbone.source}, {backbone.quantization or backbone.dtype}",
        "adapter": f"{description.adapter['method']}, {training.trainable_parameters:,} trained numbers",
        "training": f"{training.steps:,} steps, {training.rows:,} rows",
        "longest text": f"{description.encode.max_tokens:,} tokens",
    }
