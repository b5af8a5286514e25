"""The config of a run: one frozen value, complete, checked once when it is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from models.config import AdapterConfig, AnyAdapterConfig, BackboneConfig, MTLLoRAConfig
from pipeline.encode import EncodeConfig
from pipeline.errors import ConfigError
from pipeline.explain import explain, read_yaml_mapping
from pipeline.frozen import Frozen
from pipeline.limits import GateConfig, PromotionConfig
from pipeline.score_config import Place, ScoringConfig
from pipeline.source_config import Source, check_table_sources, checked_name
from pipeline.split import SplitConfig
from pipeline.tasks import Task

# made absolute where the config is read: workers that get the config start in another folder
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


def with_method(value: Any) -> Any:
    """Settings of an adapter with the method they are of: MTL-LoRA's, where none is named."""
    return {"method": "mtl_lora", **value} if isinstance(value, dict) else value


Adapter = Annotated[AnyAdapterConfig, Field(discriminator="method"), BeforeValidator(with_method)]


class DataConfig(Frozen):
    """Where rows lie: task=<name>/*.parquet below each folder."""

    judged: AbsolutePath | None = None  # rows with labels; default: data/judged in the work folder
    to_score: Place | None = None  # rows to be scored, {date} in it: the logical date; default: data/unlabelled in the work folder


class TrainingConfig(Frozen):
    """How long, on how many workers, in which batches."""

    num_workers: int = Field(default=2, ge=1)
    use_gpu: bool = False
    threads_per_worker: int = Field(default=1, ge=1)  # CPU threads of one worker
    epochs: float = Field(default=1.0, gt=0)  # passes over the training rows
    batch_rows: int = Field(default=16, ge=1)  # rows of a step, all workers together
    micro_batch_tokens: int | None = Field(default=None, ge=64)  # tokens of one pass of a worker, padding included; default: a step is one pass
    task_temperature: float = Field(default=1.0, ge=1)  # 1: every row once an epoch; higher: small tasks come more often
    max_task_rows: int | None = Field(default=None, ge=1)  # rows of one task an epoch, other ones each time; default: all
    evaluate_every_steps: int | None = Field(default=None, ge=1)  # on the valid split, the best weights kept; default: after each epoch
    evaluate_task_rows: int = Field(default=500, ge=1)  # valid rows of a task that are judged each time
    patience: int | None = Field(default=None, ge=1)  # evaluations in a row no better than the best that end the training; default: none do
    checkpoint_every_steps: int = Field(default=200, ge=1)
    hang_timeout_s: float = Field(default=600.0, gt=0)  # without progress, loading the model included: then workers are given up and started again
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: less memory, about a third more time
    # torch.compile: faster steps, after a minute or so of compiling; needs a C++ compiler on every worker
    compile_layers: bool = False

    @model_validator(mode="after")
    def _every_worker_gets_a_row(self) -> "TrainingConfig":
        if self.batch_rows < self.num_workers:
            raise ValueError(f"training.batch_rows is {self.batch_rows}; it must be at least training.num_workers, {self.num_workers}")
        return self


class OptimizerConfig(Frozen):
    """AdamW with a linear rise and fall of the rate."""

    learning_rate: float = Field(default=5e-4, gt=0)  # peak, of the adapters
    head_learning_rate: float = Field(default=5e-4, gt=0)  # peak, of the output heads
    mixture_learning_rate: float | None = Field(default=None, gt=0)  # peak, of what mixes projections or experts; default: learning_rate
    weight_decay: float = Field(default=0.0, ge=0)  # of down- and up-projections; never of transforms, mixtures and heads
    warmup_share: float = Field(default=0.06, ge=0, lt=1)  # of all steps
    gradient_clipping: float = Field(default=1.0, gt=0)  # norm of all gradients together


class DeepSpeedConfig(Frozen):
    """What DeepSpeed spreads over the workers."""

    zero_stage: Literal[0, 1, 2, 3] = 2  # 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters
    offload_optimizer: bool = False  # the optimizer's state in the machine's memory, where the step is then computed
    offload_parameters: bool = False  # and the parameters, until they are needed

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3: at 0 nothing is spread")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"deepspeed.offload_parameters needs deepspeed.zero_stage 3, where parameters are spread; it is {self.zero_stage}")
        return self


class RegistryConfig(Frozen):
    """Where versions are kept and under which name."""

    model: Annotated[str, AfterValidator(lambda name: checked_name(name, "model"))]  # registered model's name
    tracking_uri: str | None = None  # default: sqlite in the work folder
    promotions: AbsolutePath | None = None  # the promotion log; default: in the work folder
    use_fetched_champion: bool = True  # where the registry does not answer and the champion's files are on this machine


class RunConfig(Frozen):
    """Everything `relevance` needs to know about one run."""

    name: Annotated[str, AfterValidator(lambda name: checked_name(name, "run"))]  # names the run's folder and its MLflow run
    seed: int = Field(default=17, ge=0, lt=2**32)  # of every random draw
    work_dir: AbsolutePath = Field(default=Path("runs"), validate_default=True)  # the run writes into work_dir/name
    sources: tuple[Source, ...] = ()  # rows to bring in first; empty: data.judged is there already
    data: DataConfig = DataConfig()
    gate: GateConfig = GateConfig()
    tasks: tuple[Task, ...] = Field(min_length=1)
    split: SplitConfig = SplitConfig()
    encode: EncodeConfig = EncodeConfig()
    backbone: BackboneConfig = BackboneConfig()
    adapter: Adapter = MTLLoRAConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    promotion: PromotionConfig = PromotionConfig()
    registry: RegistryConfig
    scoring: ScoringConfig = ScoringConfig()

    @model_validator(mode="after")
    def _tasks_differ(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"two tasks have the same name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _compiled_layers_stay_whole(self) -> "RunConfig":
        if self.training.compile_layers and self.deepspeed.zero_stage == 3:
            raise ValueError("training.compile_layers needs deepspeed.zero_stage 0, 1 or 2: at 3 parameters come and go under the compiled code")
        return self

    @model_validator(mode="after")
    def _tables_fit_their_tasks(self) -> "RunConfig":
        check_table_sources(self.sources, self.tasks)
        return self

    @model_validator(mode="after")
    def _scripts_are_of_known_tasks(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        unknown = [name for name in self.gate.scripts if name not in names]
        if unknown:
            raise ValueError(f"gate.scripts names task {unknown[0]!r}, which is not configured; configured: {', '.join(names)}")
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


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file with `a.b=value` overrides applied. ConfigError says which setting, where, and what it may be."""
    return build_config(read_settings(path, overrides), str(path))


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain settings of a config, as they were written and overridden, not checked yet."""
    value = read_yaml_mapping(path, "config", "copy jobs/configs/demo.yaml and change it", "of settings, such as `name: demo`")
    for override in overrides:
        apply_override(value, override)
    return value


def build_config(value: dict[str, Any], where: str) -> RunConfig:
    """The checked config of plain settings; ConfigError lists every problem."""
    try:
        return RunConfig.model_validate(value)
    except ValidationError as error:
        problems = error.errors()
        # a list whose items are all wrong is reported as too short as well
        inner = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
        told = [explain(problem, RunConfig) for problem in problems if not (problem["type"] == "too_short" and problem["loc"] in inner)]
        raise ConfigError(f"{where}: " + "; ".join(told)) from error


def build_adapter(value: dict[str, Any]) -> AdapterConfig:
    """The adapter config of plain settings, as bundles keep them."""
    adapter: AdapterConfig = TypeAdapter(Adapter).validate_python(value)
    return adapter


def apply_override(value: dict[str, Any], override: str) -> None:
    """Set `a.b=value` (YAML on the right) in nested settings; list items by number, as in tasks.0.template=..."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"--set {override!r} is not of the form setting=value, such as optimizer.learning_rate=1e-4")
    *parents, last = path.split(".")
    target: Any = value
    try:
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target.setdefault(key, {})
        # pydantic reads numbers out of texts such as 1e-4, which YAML 1.1 takes for a string
        target[int(last) if isinstance(target, list) else last] = yaml.safe_load(text)
    except (IndexError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {override!r} does not fit the config: {error}") from error
