"""A model ready to judge rows: weights, encoder and calibration together. Evaluation, scoring and MLflow all
use this one path.

Shape legend: N rows, C labels of the finest task.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import TypeAdapter

from models.backbone import Backbone, BackboneUnavailableError, load_backbone, load_tokenizer
from models.config import BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from models.serialization.bundle import Bundle, BundleRefusedError, read_bundle
from pipeline.config.encoding import EncodeConfig
from pipeline.config.loading import build_adapter
from pipeline.config.run import RunConfig
from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows, encode_rows
from pipeline.encoding.encoder import ENCODER_VERSION, Encoder
from pipeline.encoding.prefetch import OnRows
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.calibration import Calibration
from pipeline.inference.task_predictor import Spent, TaskJudge

BUNDLE_FORMAT = 2  # of bundle.json; changes when an older reader would misread it


@dataclass(frozen=True)
class Judge:
    """Judges contract rows of its tasks."""

    model: RelevanceModel
    encoder: Encoder
    tasks: tuple[Task, ...]
    calibration: dict[str, Calibration]
    backbone: Backbone
    device: torch.device
    task_judges: dict[int, TaskJudge] = field(default_factory=dict)  # of the tasks that were asked for

    def encode(self, tables: dict[str, pa.Table]) -> EncodedRows:
        """Token ids of the rows of each task."""
        return encode_rows(tables, self.tasks, self.encoder)

    def logits(
        self, encoded: EncodedRows, batch_tokens: int, on_rows: OnRows = lambda rows: None
    ) -> np.ndarray:
        """(N, C) float64 in the order of `encoded`, -inf beyond a task's labels. The model's weights must
        stay as they are from the first call on.

        `on_rows` gets the numbers of rows that are about to be judged, each row once.
        """
        logits_NC = np.full((len(encoded), max(len(task.labels) for task in self.tasks)), -np.inf)
        for index in np.unique(encoded.task_N).tolist():
            mine = np.flatnonzero(encoded.task_N == index)
            id_lists = [encoded.ids_of(row) for row in mine]

            def on_mine(rows: np.ndarray, mine: np.ndarray = mine) -> None:
                on_rows(mine[rows])

            of_task = self.of_task(index).logits(id_lists, batch_tokens, on_mine)
            logits_NC[mine, : of_task.shape[1]] = of_task
        return logits_NC

    def spent(self, task: Task) -> Spent:
        """What judging rows of a task took so far."""
        return self.of_task([one.name for one in self.tasks].index(task.name)).spent

    def of_task(self, index: int) -> TaskJudge:
        """The judge of one task by its number. ValueError: there is none."""
        if index not in self.task_judges:
            self.task_judges[index] = TaskJudge(self.model, index, self.pad_id, self.device)
        return self.task_judges[index]

    @property
    def pad_id(self) -> int:
        """The id that fills the padding; the mask hides it."""
        return self.encoder.tokenizer.pad_token_id or 0


def fresh_judge(config: RunConfig, device: torch.device | None = None) -> Judge:
    """An untrained judge of the config's shapes: adapters are the identity, heads start from the language
    model's yes and no.

    ConfigError: the backbone is not to be had, or a target module or template does not fit it.
    """
    try:
        backbone = load_backbone(config.backbone)
        model = build_model(
            ModelConfig(config.backbone, config.adapter, tuple(len(t.labels) for t in config.tasks)),
            backbone,
            config.seed,
        )
        encoder = Encoder(load_tokenizer(backbone.folder), config.tasks, config.encode)
    except (BackboneUnavailableError, ValueError) as error:
        raise ConfigError(str(error)) from error
    device = device or torch.device("cpu")
    return Judge(
        model.to(device),
        encoder,
        config.tasks,
        {t.name: Calibration() for t in config.tasks},
        backbone,
        device,
    )


def describe(judge: Judge, config: RunConfig, training: dict[str, Any]) -> dict[str, Any]:
    """What a bundle says of a model: enough to build it again and to refuse another backbone."""
    return {
        "format": BUNDLE_FORMAT,
        "encoder_version": ENCODER_VERSION,
        "tasks": [task.model_dump(mode="json") for task in judge.tasks],
        "encode": config.encode.model_dump(mode="json"),
        "adapter": asdict(config.adapter),
        "backbone": {
            "source": config.backbone.source,
            "revision": config.backbone.revision,
            "dtype": str(judge.backbone.dtype).removeprefix("torch."),
            "digest": judge.backbone.digest,
        },
        "seed": config.seed,
        "split": config.split.model_dump(mode="json"),
        "calibration": {
            name: calibration.model_dump(mode="json") for name, calibration in judge.calibration.items()
        },
        "training": training,
    }


def load_judge(
    folder: Path, expected_sha256: str | None = None, device: torch.device | None = None
) -> tuple[Judge, Bundle]:
    """The judge in a bundle folder, verified file by file.

    DamagedInputError: the bundle is not whole or not the expected one, or this machine's backbone has another
    digest than the one it was trained on. ConfigError: the backbone is not to be had here.
    """
    try:
        bundle = read_bundle(folder, expected_sha256)
    except BundleRefusedError as error:
        raise DamagedInputError(str(error)) from error
    about = bundle.description
    if about.get("format") != BUNDLE_FORMAT:
        raise DamagedInputError(
            f"{folder} has format {about.get('format')}, this code reads {BUNDLE_FORMAT}; train again"
        )
    if about.get("encoder_version") != ENCODER_VERSION:
        other = about.get("encoder_version")
        raise DamagedInputError(
            f"{folder} was made with encoder version {other}, this code has {ENCODER_VERSION}; train again"
        )
    tasks = TypeAdapter(tuple[Task, ...]).validate_python(about["tasks"])
    digest, backbone_fields = (
        about["backbone"]["digest"],
        {k: v for k, v in about["backbone"].items() if k != "digest"},
    )
    config = BackboneConfig(**backbone_fields)
    try:
        adapter = build_adapter(about["adapter"])
        backbone = load_backbone(config)
        if backbone.digest != digest:
            raise DamagedInputError(
                f"backbone {config.source} here has digest {backbone.digest[:12]}, {folder} was trained "
                f"on {digest[:12]}"
            )
        model = build_model(ModelConfig(config, adapter, label_counts(tasks)), backbone, about["seed"])
        model.load_trainable_state(bundle.tensors)
    except BackboneUnavailableError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise DamagedInputError(f"{folder}: {error}") from error
    device = device or torch.device("cpu")
    encoder = Encoder(load_tokenizer(bundle.tokenizer_dir), tasks, EncodeConfig(**about["encode"]))
    calibration = {name: Calibration(**fields) for name, fields in about["calibration"].items()}
    return Judge(model.to(device).eval(), encoder, tasks, calibration, backbone, device), bundle


def label_counts(tasks: Sequence[Task]) -> tuple[int, ...]:
    """Labels of each task."""
    return tuple(len(task.labels) for task in tasks)
