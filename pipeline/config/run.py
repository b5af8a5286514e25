"""The config of a run: all blocks, and the paths that follow from them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models.config import AdapterConfig, BackboneConfig
from pipeline.config.encoding import EncodeConfig
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.extensions import RegisteredBlock, method_blocks
from pipeline.config.gates import GateConfig, PromotionConfig
from pipeline.config.paths import (
    AbsolutePath,
    Location,
    parse_path,
    parse_tracking_uri,
    sqlite_uri,
)
from pipeline.config.scoring import ScoringConfig
from pipeline.config.sources import Source, check_sources
from pipeline.config.splits import SplitConfig
from pipeline.config.strict_model import StrictModel, validate_name
from pipeline.config.tasks import Task
from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig


def is_path(source: str) -> bool:
    """Return True if a backbone source is a path, as opposed to a package or a hub id.

    A relative folder that does not exist here looks like a hub id, and counts as one.
    """
    if source.startswith("package:"):
        return False
    return source.startswith((".", "/", "~")) or source.endswith(".gguf") or is_present(Path(source))


def is_present(path: Path) -> bool:
    """Return True if a path exists; one that no system takes, such as a name too long, does not."""
    try:
        return path.exists()
    except OSError:
        return False


def make_paths_absolute(backbone: BackboneConfig) -> BackboneConfig:
    """Return the backbone with absolute paths: a bundle records them, and is loaded in other folders."""
    source, cache_dir = backbone.source, backbone.cache_dir
    for name, text in (("source", source), ("cache_dir", cache_dir)):
        try:
            parse_path(text)
        except ValueError as error:
            raise ValueError(f"backbone.{name}: {error} (given {text!r})") from error
    if is_path(source):
        # without `..`, so that every folder gives the same text, which is part of a training's identity
        source = os.path.normpath(Path(source).expanduser().absolute())
    # a cache in the home folder is that of whoever uses it
    if not cache_dir.startswith("~"):
        cache_dir = str(Path(cache_dir).absolute())
    return replace(backbone, source=source, cache_dir=cache_dir)


def add_default_method(value: Any) -> Any:
    """Add `method: mtl_lora` to adapter settings without a method."""
    return {"method": "mtl_lora", **value} if isinstance(value, dict) else value


def default_adapter(_: dict[str, Any]) -> AdapterConfig:
    """Return the default settings of MTL-LoRA.

    pydantic skips a factory with a parameter if an earlier setting is wrong. So an invalid config is refused
    without importing torch, which the adapter methods need.
    """
    adapter: AdapterConfig = TypeAdapter(Adapter).validate_python({})
    return adapter


TrackingUri = Annotated[str, AfterValidator(parse_tracking_uri)]

Adapter = Annotated[
    AdapterConfig, RegisteredBlock("method", method_blocks), BeforeValidator(add_default_method)
]


class DataConfig(StrictModel):
    """Locations of rows, a folder or s3://bucket/prefix: task=<name>/*.parquet below each."""

    judged: Location | None = None  # location of rows with labels; default: data/judged in the run's folder
    # location of rows to score, may contain {date}, the logical date; default: data/unlabelled in the run's
    # folder
    to_score: Location | None = None


class BaselineConfig(StrictModel):
    """Lexical floor, which a model must beat."""

    # train rows that the floor of a task is fitted on; of more, the rows of queries drawn by their hash
    max_rows_per_task: int = Field(default=200_000, ge=1)


class RegistryConfig(StrictModel):
    """Model registry: name, MLflow server and promotion log."""

    model: Annotated[
        str, AfterValidator(lambda name: validate_name(name, "model"))
    ]  # name of the registered model
    # MLflow server; default: sqlite in the run's folder
    tracking_uri: TrackingUri | None = None
    promotions: AbsolutePath | None = None  # folder of the promotion log; default: in the run's folder
    # score with the champion's local files if the registry does not answer
    use_fetched_champion: bool = True


class RunConfig(StrictModel):
    """All settings of a run."""

    # name of the run's folder and of its MLflow run
    name: Annotated[str, AfterValidator(lambda name: validate_name(name, "run"))]
    seed: int = Field(default=17, ge=0, lt=2**32)  # seed of every random draw
    # the run writes to work_dir/name
    work_dir: AbsolutePath = Field(default=Path("runs"), validate_default=True)
    sources: tuple[Source, ...] = ()  # data sets to import first; empty: data.judged exists already
    data: DataConfig = DataConfig()  # locations of rows
    gate: GateConfig = GateConfig()  # limits of the data gate
    tasks: tuple[Task, ...] = Field(min_length=1)  # relevance questions, each with its own label scale
    split: SplitConfig = SplitConfig()  # shares of the train, valid and test splits
    encode: EncodeConfig = EncodeConfig()  # length limits of the input text
    # pretrained language model
    backbone: Annotated[BackboneConfig, AfterValidator(make_paths_absolute)] = BackboneConfig()
    training: TrainingConfig = TrainingConfig()  # workers, epochs, batches
    optimizer: OptimizerConfig = OptimizerConfig()  # learning rates
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()  # sharding over workers
    baseline: BaselineConfig = BaselineConfig()  # lexical floor of the evaluation
    evaluation: EvaluationConfig = EvaluationConfig()  # actors of evaluation and promotion gate
    promotion: PromotionConfig = PromotionConfig()  # limits of the promotion gate
    registry: RegistryConfig  # model registry
    scoring: ScoringConfig = ScoringConfig()  # batch scoring job
    adapter: Adapter = Field(default_factory=default_adapter)  # adapter method and its settings

    @model_validator(mode="after")
    def _check_task_names(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names are not unique: {', '.join(names)}; rename one")
        return self

    @model_validator(mode="after")
    def _check_compile_layers(self) -> "RunConfig":
        if self.training.compile_layers and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "training.compile_layers needs deepspeed.zero_stage 0, 1 or 2; stage 3 gathers and frees "
                "parameters inside the compiled code"
            )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> "RunConfig":
        check_sources(self.sources, self.tasks)
        return self

    @field_validator("registry")
    @classmethod
    def _check_default_store(cls, registry: RegistryConfig, info: ValidationInfo) -> RegistryConfig:
        # before the adapter is built, which imports torch
        if registry.tracking_uri is None and "work_dir" in info.data:
            sqlite_uri(info.data["work_dir"] / "mlflow.db")
        return registry

    @model_validator(mode="after")
    def _check_script_tasks(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        unknown = [name for name in self.gate.scripts if name not in names]
        if unknown:
            raise ValueError(
                f"task {unknown[0]!r} in gate.scripts is not configured; configured: {', '.join(names)}"
            )
        return self

    @property
    def evaluation_actors(self) -> ScoringConfig:
        """Settings of the actors that predict for evaluation and promotion gate."""
        return self.evaluation.actors(self.scoring)

    @property
    def run_dir(self) -> Path:
        """Absolute path of the folder that the run writes to."""
        return (self.work_dir / self.name).absolute()

    @property
    def judged_location(self) -> Path | str:
        """Location of the rows with labels."""
        return self.data.judged or self.run_dir / "data" / "judged"

    @property
    def accepted_dir(self) -> Path:
        """Folder of the labeled rows that passed the data gate, for training and evaluation."""
        return self.run_dir / "data" / "accepted"

    @property
    def validation_dir(self) -> Path:
        """Folder of the data gate's report, its pages and the profile of the accepted rows."""
        return self.run_dir / "validation"

    @property
    def profile_path(self) -> Path:
        """Statistics of the accepted rows, the reference for the drift of later data."""
        return self.validation_dir / "profile.json"

    @property
    def to_score_location(self) -> Path | str:
        """Location of the rows to score; it may contain {date}."""
        return self.data.to_score or self.run_dir / "data" / "unlabelled"

    @property
    def scores_location(self) -> Path | str:
        """Location of the published labels."""
        return self.scoring.scores or self.run_dir / "scores"

    @property
    def tracking_uri(self) -> str:
        """URI of the MLflow server."""
        return self.registry.tracking_uri or sqlite_uri(self.run_dir / "mlflow.db")

    @property
    def promotions_dir(self) -> Path:
        """Folder of the promotion log of this model."""
        return (self.registry.promotions or self.run_dir / "promotions").absolute() / self.registry.model
