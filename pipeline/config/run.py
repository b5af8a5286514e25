"""The config of a run: one frozen value, complete, checked once when it is read."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator

from models.config import AdapterConfig, BackboneConfig
from pipeline.config.encoding import EncodeConfig
from pipeline.config.extensions import RegisteredBlock, method_blocks
from pipeline.config.gates import GateConfig, PromotionConfig
from pipeline.config.scoring import Place, ScoringConfig
from pipeline.config.sources import Source, check_sources, checked_name
from pipeline.config.splits import SplitConfig
from pipeline.config.strict_model import Frozen
from pipeline.config.tasks import Task
from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig

# made absolute where the config is read: workers that get the config start in another folder
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


def with_method(value: Any) -> Any:
    """Fill in `method: mtl_lora` where an adapter's settings name none."""
    return {"method": "mtl_lora", **value} if isinstance(value, dict) else value


def default_adapter(_: dict[str, Any]) -> AdapterConfig:
    """MTL-LoRA's settings where a config names no adapter.

    It takes the settings before it, so that pydantic does not call it where one of them is wrong: a config
    that is refused need not wait for torch, which comes with the adapter methods.
    """
    adapter: AdapterConfig = TypeAdapter(Adapter).validate_python({})
    return adapter


Adapter = Annotated[AdapterConfig, RegisteredBlock("method", method_blocks), BeforeValidator(with_method)]


class DataConfig(Frozen):
    """Where rows lie: task=<name>/*.parquet below each folder."""

    judged: AbsolutePath | None = None  # rows with labels; default: data/judged in the work folder
    # rows to be scored, {date} in it: the logical date; default: data/unlabelled in the work folder
    to_score: Place | None = None


class RegistryConfig(Frozen):
    """Where versions are kept and under which name."""

    model: Annotated[str, AfterValidator(lambda name: checked_name(name, "model"))]  # registered model's name
    tracking_uri: str | None = None  # default: sqlite in the work folder
    promotions: AbsolutePath | None = None  # the promotion log; default: in the work folder
    # where the registry does not answer and the champion's files are on this machine
    use_fetched_champion: bool = True


class RunConfig(Frozen):
    """Everything `relevance` needs to know about one run."""

    # names the run's folder and its MLflow run
    name: Annotated[str, AfterValidator(lambda name: checked_name(name, "run"))]
    seed: int = Field(default=17, ge=0, lt=2**32)  # of every random draw
    # the run writes into work_dir/name
    work_dir: AbsolutePath = Field(default=Path("runs"), validate_default=True)
    sources: tuple[Source, ...] = ()  # rows to bring in first; empty: data.judged is there already
    data: DataConfig = DataConfig()  # where rows lie
    gate: GateConfig = GateConfig()  # what the data gate lets pass
    tasks: tuple[Task, ...] = Field(min_length=1)  # the relevance questions, each with its own labels
    split: SplitConfig = SplitConfig()  # which rows train, tune and test
    encode: EncodeConfig = EncodeConfig()  # how texts are cut
    backbone: BackboneConfig = BackboneConfig()  # the pretrained language model
    training: TrainingConfig = TrainingConfig()  # workers, epochs, batches
    optimizer: OptimizerConfig = OptimizerConfig()  # learning rates
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()  # what is spread over workers
    promotion: PromotionConfig = PromotionConfig()  # what a challenger must reach
    registry: RegistryConfig  # where versions are kept
    scoring: ScoringConfig = ScoringConfig()  # the batch scoring job
    adapter: Adapter = Field(default_factory=default_adapter)  # the adapter method and its settings

    @model_validator(mode="after")
    def _tasks_differ(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"two tasks have the same name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _compiled_layers_stay_whole(self) -> "RunConfig":
        if self.training.compile_layers and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "training.compile_layers needs deepspeed.zero_stage 0, 1 or 2: at 3 parameters come and "
                "go under the compiled code"
            )
        return self

    @model_validator(mode="after")
    def _sources_fit_the_tasks(self) -> "RunConfig":
        check_sources(self.sources, self.tasks)
        return self

    @model_validator(mode="after")
    def _scripts_are_of_known_tasks(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        unknown = [name for name in self.gate.scripts if name not in names]
        if unknown:
            raise ValueError(
                f"gate.scripts names task {unknown[0]!r}, which is not configured; configured: "
                f"{', '.join(names)}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """The one folder the run writes to, absolute: Ray workers start elsewhere."""
        return (self.work_dir / self.name).absolute()

    @property
    def judged_dir(self) -> Path:
        return (self.data.judged or self.run_dir / "data" / "judged").absolute()

    @property
    def accepted_dir(self) -> Path:
        """The judged rows that passed the gate: what is trained on and measured."""
        return self.run_dir / "data" / "accepted"

    @property
    def validation_dir(self) -> Path:
        """The gate's report, its pages, and what it found out about the accepted rows."""
        return self.run_dir / "validation"

    @property
    def profile_path(self) -> Path:
        """What the accepted rows look like: later data are compared with it."""
        return self.validation_dir / "profile.json"

    @property
    def to_score_place(self) -> Path | str:
        """Rows to be scored, {date} in it where there is one a day."""
        return self.data.to_score or self.run_dir / "data" / "unlabelled"

    @property
    def scores_place(self) -> Path | str:
        """Where labels are published."""
        return self.scoring.scores or self.run_dir / "scores"

    @property
    def tracking_uri(self) -> str:
        return self.registry.tracking_uri or f"sqlite:///{self.run_dir / 'mlflow.db'}"

    @property
    def promotions_dir(self) -> Path:
        """The promotion log of this config's model; versions of another model are numbered apart."""
        return (self.registry.promotions or self.run_dir / "promotions").absolute() / self.registry.model
