"""What a training is: the settings and data that its weights follow from, and where it lies."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models.adapters.injection import adapter_parameter_count, targets
from models.backbone import BackboneUnavailableError, empty_trunk, folder_digest, resolve_folder
from models.serialization.bundle import BundleRefusedError, read_bundle
from pipeline.config.run import RunConfig
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import ConfigError
from pipeline.storage.filesystem import json_sha256

NO_NUMBERS = {"checkpoint_every_steps", "hang_timeout_s"}  # settings of training that no number follows from

# and those that only rounding follows from
SPREAD = {
    "num_workers",
    "threads_per_worker",
    "use_gpu",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "compile_layers",
}

# facts by what people call them
TOLD = {"data": "the digest of the accepted rows", "backbone_digest": "the digest of the backbone"}

BLOCKS = ("seed", "tasks", "split", "encode", "backbone", "adapter", "training", "optimizer")


@dataclass(frozen=True)
class TrainingPlan:
    """One training. Two plans with equal facts are one training, however its work is spread over workers:
    their numbers differ by rounding.
    """

    config: RunConfig
    facts: dict[str, Any]  # all that the trained weights follow from, setting by setting

    @cached_property
    def fingerprint(self) -> str:
        """Moves when a fact does."""
        return json_sha256(self.facts)

    @property
    def data_digest(self) -> str:
        return str(self.facts["data"])

    @property
    def dir(self) -> Path:
        return self.config.run_dir / "training"

    @property
    def checkpoint_dir(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def bundle_dir(self) -> Path:
        """Where the trained bundle comes to lie."""
        return self.config.run_dir / "trained"

    def is_finished(self) -> bool:
        """Whether the bundle of this very training is there."""
        return trained_fingerprint(self.bundle_dir) == self.fingerprint


def plan_training(config: RunConfig) -> TrainingPlan:
    """The training a config asks for on the accepted rows. ConfigError: the backbone is not to be had or
    lacks a target module.
    """
    backbone = checked_backbone(config)
    plain = config.model_dump(mode="json")
    # what dropout draws depends on which rank has a row
    free = NO_NUMBERS if config.adapter.lora_dropout else NO_NUMBERS | SPREAD
    plain["training"] = {key: value for key, value in plain["training"].items() if key not in free}
    digest = data_digest(find_partitions(config.accepted_dir, config.tasks))
    return TrainingPlan(
        config,
        {**{key: plain[key] for key in BLOCKS}, "data": digest, "backbone_digest": folder_digest(backbone)},
    )


def checked_backbone(config: RunConfig) -> Path:
    """The backbone's folder; ConfigError if it is not to be had or lacks a target module, before any worker
    is started.
    """
    try:
        folder = resolve_folder(config.backbone)
        targets(empty_trunk(folder), config.adapter)
    except (BackboneUnavailableError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return folder


def planned_parameters(config: RunConfig) -> tuple[int, int]:
    """(trainable, total) numbers of the model that a checked config describes, from shapes alone."""
    trunk = empty_trunk(resolve_folder(config.backbone))
    heads = sum(len(task.labels) for task in config.tasks) * (trunk.config.get_text_config().hidden_size + 1)
    trainable = adapter_parameter_count(trunk, config.adapter, len(config.tasks)) + heads
    return trainable, sum(parameter.numel() for parameter in trunk.parameters()) + trainable


def trained_fingerprint(bundle_dir: Path) -> str | None:
    """The fingerprint of the training that wrote a bundle; None if there is no whole bundle."""
    try:
        return str(read_bundle(bundle_dir).description["training"]["fingerprint"])
    except BundleRefusedError:
        return None


def changes(before: Any, now: Any, where: str = "") -> list[str]:
    """Each fact that differs, as sentences."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for key in sorted({*before, *now})
            for text in changes(before.get(key), now.get(key), f"{where}.{key}" if where else key)
        ]
    where = TOLD.get(where, where)
    return [] if before == now else [f"{where} was {json.dumps(before)}, is {json.dumps(now)}"]
