"""A loaded model with its encoder and calibration: one path for the actors and for MLflow.

Shape legend: N rows, C labels of the task with the most labels.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.backbone import (
    Backbone,
    BackboneUnavailableError,
    load_backbone,
    load_tokenizer,
    word_token_ids,
)
from models.config import ModelConfig
from models.padding import check_padding
from models.relevance import RelevanceModel, build_model
from models.serialization.bundle import Bundle
from pipeline.config.run import RunConfig
from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows, encode_rows
from pipeline.encoding.encoder import Encoder
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.bundle_description import (
    BackboneRecord,
    BundleDescription,
    TrainingRecord,
    read_described_bundle,
)
from pipeline.inference.calibration import Calibration
from pipeline.inference.step_plan import Step, planned
from pipeline.inference.task_predictor import TaskPredictor, TokenUsage

PADDED_TOKENS = 16  # length to which the check of a loaded model pads a row of a quarter of it


@dataclass(frozen=True)
class Predictor:
    """A loaded model that turns contract rows of its tasks into logits."""

    model: RelevanceModel
    encoder: Encoder
    tasks: tuple[Task, ...]
    calibration: dict[str, Calibration]
    backbone: Backbone
    device: torch.device
    task_predictors: dict[int, TaskPredictor] = field(default_factory=dict)  # built on first use

    def encode(self, tables: dict[str, pa.Table]) -> EncodedRows:
        """Tokenize the rows of each task."""
        return encode_rows(tables, self.tasks, self.encoder)

    @planned
    def plan_logits(self, encoded: EncodedRows, batch_tokens: int) -> Generator[Step[Any], None, np.ndarray]:
        """Plan the logits of encoded rows. The weights must not change after the first call.

        Args:
            encoded: Rows of one or more tasks.
            batch_tokens: Largest number of tokens of a forward pass, padding included.

        Returns:
            A plan of one step per forward pass, each row in one step. Its result is (N, C) float64 in the
            order of `encoded`, -inf beyond a task's labels.
        """
        logits_NC = np.full((len(encoded), max(len(task.labels) for task in self.tasks)), -np.inf)
        for index in np.unique(encoded.task_N).tolist():
            rows = np.flatnonzero(encoded.task_N == index)
            id_lists = [encoded.ids_of(row) for row in rows]
            plan = self.task_predictor(index).plan_logits(id_lists, batch_tokens)
            task_logits = yield from plan.renumbered(rows)
            logits_NC[rows, : task_logits.shape[1]] = task_logits
        return logits_NC

    def logits(self, encoded: EncodedRows, batch_tokens: int) -> np.ndarray:
        """Return the result of `plan_logits`."""
        return self.plan_logits(encoded, batch_tokens).run()

    def task_usage(self, task: Task) -> TokenUsage:
        """Return the work done so far for rows of a task."""
        return self.task_predictor([known.name for known in self.tasks].index(task.name)).usage

    def task_predictor(self, index: int) -> TaskPredictor:
        """Return the predictor of the task with this number."""
        if index not in self.task_predictors:
            self.task_predictors[index] = TaskPredictor(self.model, index, self.pad_id, self.device)
        return self.task_predictors[index]

    @property
    def pad_id(self) -> int:
        """Token id of the padding; the mask hides it."""
        return self.encoder.tokenizer.pad_token_id or 0


def build_predictor(config: RunConfig, device: torch.device | None = None) -> Predictor:
    """Build an untrained predictor: identity adapters, heads from the language model's yes and no tokens.

    Raises:
        ConfigError: The backbone is not available, a target module or template does not fit it, or its rows
            depend on their padding.
    """
    try:
        backbone = load_backbone(config.backbone)
        model = build_model(
            ModelConfig(config.backbone, config.adapter, label_counts(config.tasks)), backbone, config.seed
        )
        encoder = Encoder(load_tokenizer(backbone.folder), config.tasks, config.encode)
        device = device or torch.device("cpu")
        calibration = {task.name: Calibration() for task in config.tasks}
        predictor = Predictor(model.to(device), encoder, config.tasks, calibration, backbone, device)
        _check_padding(predictor)
    except (BackboneUnavailableError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return predictor


def bundle_description(predictor: Predictor, config: RunConfig, training: TrainingRecord) -> dict[str, Any]:
    """Return the content of bundle.json."""
    description = BundleDescription(
        tasks=predictor.tasks,
        encode=config.encode,
        adapter=asdict(config.adapter),
        backbone=BackboneRecord.model_validate(
            {
                "source": config.backbone.source,
                "revision": config.backbone.revision,
                "dtype": str(predictor.backbone.dtype).removeprefix("torch."),
                "quantization": config.backbone.quantization,
                "digest": predictor.backbone.digest,
            }
        ),
        seed=config.seed,
        split=config.split,
        calibration=predictor.calibration,
        training=training,
    )
    return description.to_json()


def load_encoder(bundle: Bundle, description: BundleDescription) -> Encoder:
    """Load the encoder in a verified bundle.

    Raises:
        DamagedInputError: Its tokenizer cannot be loaded, or does not fit the tasks.
    """
    try:
        return Encoder(load_tokenizer(bundle.tokenizer_dir), description.tasks, description.encode)
    except (BackboneUnavailableError, ValueError) as error:
        raise DamagedInputError(f"{str(error).partition(';')[0]}; fetch the bundle again") from error


@dataclass(frozen=True)
class BundleModel:
    """The model in a bundle folder, for a process that is to load it."""

    folder: Path
    sha256: str | None = None  # of the bundle; None: any
    is_trained: bool = True  # False: as its training began, without the bundle's weights

    def load(self, device: torch.device) -> tuple[Predictor, Bundle]:
        """Load it; see `load_predictor`."""
        return load_predictor(self.folder, self.sha256, device, self.is_trained)


def load_predictor(
    folder: Path,
    expected_sha256: str | None = None,
    device: torch.device | None = None,
    is_trained: bool = True,
) -> tuple[Predictor, Bundle]:
    """Load the predictor in a bundle folder and verify every file.

    Args:
        folder: The bundle.
        expected_sha256: The bundle's sha256 from another place; None: any.
        device: Where the model works; None: on the CPU.
        is_trained: False to leave the model as its training began, without the bundle's weights.

    Raises:
        DamagedInputError: The bundle is incomplete or altered, is not the one with `expected_sha256`, or was
            trained on a backbone with another digest.
        ConfigError: The backbone is not available, or its rows depend on their padding.
    """
    bundle, description = read_described_bundle(folder, expected_sha256)
    tasks, config = description.tasks, description.backbone.config
    device = device or torch.device("cpu")
    encoder = load_encoder(bundle, description)
    try:
        backbone = load_backbone(config)
        if not backbone.has_digest(description.backbone.digest):
            raise DamagedInputError(
                f"backbone {config.source} has digest {backbone.digest[:12]}, {folder} was trained on "
                f"{description.backbone.digest[:12]}; use the backbone of the training"
            )
        model_config = ModelConfig(config, description.adapter_config, label_counts(tasks))
        model = build_model(model_config, backbone, description.seed)
        if is_trained:
            model.load_trainable_state(bundle.tensors)
        predictor = Predictor(
            model.to(device).eval(), encoder, tasks, description.calibration, backbone, device
        )
        _check_padding(predictor)
    except BackboneUnavailableError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise DamagedInputError(f"{folder}: {error}; fetch the bundle again, or train again") from error
    return predictor, bundle


def _check_padding(predictor: Predictor) -> None:
    """Raise BackboneUnavailableError if rows of the loaded model depend on their padding."""
    words = sorted(word_token_ids(predictor.encoder.tokenizer) - {predictor.pad_id})
    # from all over the vocabulary
    long = [words[position * len(words) // PADDED_TOKENS] for position in range(PADDED_TOKENS)]
    check_padding(predictor.model, long[: PADDED_TOKENS // 4], long, predictor.pad_id)


def label_counts(tasks: Sequence[Task]) -> tuple[int, ...]:
    """Return the number of labels of each task."""
    return tuple(len(task.labels) for task in tasks)
