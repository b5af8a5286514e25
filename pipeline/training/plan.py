"""Identity of a training: the settings and data that its weights depend on, and its folders."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models.adapters.injection import adapter_parameter_count
from models.backbone import folder_digest, resolve_folder
from models.config import AdapterConfig, BackboneConfig
from models.trunks import build_meta_trunk, trunk_width
from pipeline.config.run import RunConfig
from pipeline.config.tasks import Task
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import DamagedInputError
from pipeline.inference.bundle_description import read_described_bundle
from pipeline.storage.filesystem import json_sha256, safe_join
from pipeline.training.backbone_checks import check_backbone

# settings of `training` without effect on any number
FIELDS_WITHOUT_NUMERIC_EFFECT = {"checkpoint_every_steps", "hang_timeout_s"}

# settings of `training` that change only rounding
PARALLELISM_FIELDS = {
    "num_workers",
    "threads_per_worker",
    "use_gpu",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "compile_layers",
}

# names in messages for inputs that are not settings
FIELD_LABELS = {"data": "the digest of the accepted rows", "backbone_digest": "the digest of the backbone"}

BLOCKS = ("seed", "tasks", "split", "encode", "backbone", "adapter", "training", "optimizer")


@dataclass(frozen=True)
class TrainingPlan:
    """One training.

    Plans with equal inputs are the same training, however its work is divided among workers: their numbers
    differ by rounding only.
    """

    config: RunConfig
    inputs: dict[str, Any]  # JSON: every setting and digest that the trained weights depend on

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the inputs."""
        return json_sha256(self.inputs)

    @property
    def data_digest(self) -> str:
        """Digest of the accepted rows."""
        return str(self.inputs["data"])

    @property
    def dir(self) -> Path:
        """Folder of everything but the bundle."""
        return self.config.run_dir / "training"

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoints; ConfigError if it is or is below a link: old checkpoints are deleted."""
        return safe_join(self.config.run_dir, "training", "checkpoints")

    @property
    def event_log_path(self) -> Path:
        """Event log that workers write."""
        return self.dir / "live.jsonl"

    @property
    def bundle_dir(self) -> Path:
        """Folder of the trained bundle."""
        return self.config.run_dir / "trained"

    def is_finished(self) -> bool:
        """Return whether this training's bundle exists."""
        return trained_fingerprint(self.bundle_dir) == self.fingerprint


def plan_training(config: RunConfig) -> TrainingPlan:
    """Return the training that a config asks for on the accepted rows.

    Raises:
        ConfigError: The backbone is not available or does not fit the config.
    """
    backbone_dir = check_backbone(config.backbone, config.adapter, config.encode, config.tasks)
    plain = config.model_dump(mode="json")
    ignored = FIELDS_WITHOUT_NUMERIC_EFFECT
    # with dropout, what is dropped depends on which rank has a row
    if not config.adapter.lora_dropout:
        ignored = ignored | PARALLELISM_FIELDS
    plain["training"] = {key: value for key, value in plain["training"].items() if key not in ignored}
    inputs = {
        **{key: plain[key] for key in BLOCKS},
        "data": data_digest(find_partitions(config.accepted_dir, config.tasks)),
        "backbone_digest": folder_digest(backbone_dir),
    }
    return TrainingPlan(config, inputs)


def count_parameters(
    backbone: BackboneConfig, adapter: AdapterConfig, tasks: tuple[Task, ...]
) -> tuple[int, int]:
    """Return the numbers of (trainable, total) parameters of a model, from shapes alone."""
    trunk = build_meta_trunk(resolve_folder(backbone))
    heads = sum(len(task.labels) for task in tasks) * (trunk_width(trunk.config) + 1)
    trainable = adapter_parameter_count(trunk, adapter, len(tasks)) + heads
    return trainable, sum(parameter.numel() for parameter in trunk.parameters()) + trainable


def trained_fingerprint(bundle_dir: Path) -> str | None:
    """Return the fingerprint of the training that wrote a bundle; None if there is no whole bundle."""
    try:
        return read_described_bundle(bundle_dir)[1].training.fingerprint
    except DamagedInputError:
        return None


def describe_changes(before: Any, after: Any, path: str = "") -> list[str]:
    """Return a sentence for each input that differs, named by its path, such as "optimizer.learning_rate"."""
    if isinstance(before, dict) and isinstance(after, dict):
        sentences = []
        for key in sorted({*before, *after}):
            inner_path = f"{path}.{key}" if path else key
            sentences += describe_changes(before.get(key), after.get(key), inner_path)
        return sentences
    if before == after:
        return []
    return [f"{FIELD_LABELS.get(path, path)} was {json.dumps(before)}, is {json.dumps(after)}"]
