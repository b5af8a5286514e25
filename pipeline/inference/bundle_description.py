"""Content of bundle.json: enough to rebuild a model, and to refuse another backbone."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from models.config import AdapterConfig, BackboneConfig
from models.serialization.bundle import WEIGHTS, Bundle, BundleRefusedError, read_bundle
from pipeline.config.encoding import EncodeConfig
from pipeline.config.loading import build_adapter
from pipeline.config.splits import SplitConfig
from pipeline.config.strict_model import Digest, StrictModel
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.errors import DamagedInputError, describe_first_problem
from pipeline.inference.calibration import Calibration
from pipeline.storage.filesystem import json_sha256

Count = Annotated[int, Field(ge=0, lt=2**63)]

BUNDLE_FORMAT = 2  # changes when an older reader would misread bundle.json


class TrainingRecord(StrictModel):
    """Training that a bundle comes from."""

    fingerprint: Digest
    data_digest: Digest
    steps: Count
    rows: Count  # of the train split
    trainable_parameters: Count
    best: dict[str, Any] | None  # evaluation whose weights the bundle has; None: it has the last ones


class BackboneRecord(StrictModel):
    """Backbone that a bundle was trained on."""

    source: str = Field(min_length=1)
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16"]
    quantization: Literal["nf4", "int8"] | None
    digest: Digest

    @property
    def config(self) -> BackboneConfig:
        """Config that loads the backbone."""
        return BackboneConfig(**self.model_dump(exclude={"digest"}))


class BundleDescription(StrictModel):
    """Content of bundle.json."""

    format: int = BUNDLE_FORMAT
    encoder_version: str = ENCODER_VERSION
    tasks: tuple[Task, ...] = Field(min_length=1)  # in the order of the heads
    encode: EncodeConfig
    adapter: dict[str, Any]
    backbone: BackboneRecord
    seed: int = Field(ge=0, lt=2**32)
    split: SplitConfig
    calibration: dict[str, Calibration]  # by task
    training: TrainingRecord

    @field_validator("adapter")
    @classmethod
    def _check_adapter(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            build_adapter(settings)
        except ValidationError as error:
            problem = describe_first_problem(error).replace("Value error, ", "")
            raise ValueError(problem) from error
        return settings

    @model_validator(mode="after")
    def _check_tasks(self) -> "BundleDescription":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks repeat a name: {', '.join(names)}")
        if self.calibration.keys() != set(names):
            raise ValueError(
                f"calibration is for {', '.join(self.calibration) or 'no task'}, tasks are {', '.join(names)}"
            )
        return self

    @property
    def adapter_config(self) -> AdapterConfig:
        """Config of the adapter method."""
        return build_adapter(self.adapter)

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return self.model_dump(mode="json")


def read_described_bundle(
    folder: Path, expected_sha256: str | None = None
) -> tuple[Bundle, BundleDescription]:
    """Read a bundle and its description, and check all that can be checked without its model.

    Raises:
        DamagedInputError: The bundle is incomplete or altered, is not the one with `expected_sha256`, or was
            written for other code.
    """
    try:
        bundle = read_bundle(folder, expected_sha256)
    except BundleRefusedError as error:
        raise DamagedInputError(str(error)) from error
    _check_versions(folder, bundle.description)
    try:
        return bundle, BundleDescription.from_recorded(bundle.description)
    except ValidationError as error:
        raise DamagedInputError(
            f"{folder} has a wrong description: {describe_first_problem(error)}; fetch the bundle again"
        ) from error


def logits_sha256(bundle: Bundle, description: BundleDescription, is_trained: bool = True) -> str:
    """Return a digest of all in a bundle that its logits follow from. It leaves out the calibration.

    Args:
        bundle: A verified bundle.
        description: Its description.
        is_trained: False for the model as its training began, without the bundle's weights.
    """
    names = [
        name for name in bundle.files if name.startswith("tokenizer/") or (is_trained and name == WEIGHTS)
    ]
    return json_sha256(
        {
            "files": {name: bundle.files[name] for name in names},
            "tasks": [[task.name, task.labels, task.template] for task in description.tasks],
            **description.model_dump(
                mode="json",
                include={
                    "encoder_version": True,
                    "encode": True,
                    "adapter": True,
                    "backbone": {"dtype", "quantization", "digest"},
                    "seed": True,
                },
            ),
        }
    )


def _check_versions(folder: Path, description: dict[str, Any]) -> None:
    """Raise DamagedInputError if the bundle has another format or encoder version than this code."""
    bundle_format, encoder_version = description.get("format"), description.get("encoder_version")
    if bundle_format != BUNDLE_FORMAT:
        raise DamagedInputError(
            f"{folder} has format {bundle_format}, this code reads {BUNDLE_FORMAT}; train again"
        )
    if encoder_version != ENCODER_VERSION:
        raise DamagedInputError(
            f"{folder} has encoder version {encoder_version}, this code has {ENCODER_VERSION}; train again"
        )
