"""A config is valid, or refused with the setting, its path and the remedy."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from pipeline.config.loading import build_config, read_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from tests.support.places import ROOT
from tests.support.planted import planted_config

TASK = {
    "name": "search",
    "labels": ["bad", "good"],
    "relevant_from": 1,
    "template": "Query: {query}\nAd: {ad_title}",
}
WHOLE: dict[str, Any] = {"name": "demo", "tasks": [TASK], "registry": {"model": "relevance"}}
SHIPPED = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


def settings(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(WHOLE), **changes}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes settings to a YAML file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings(**changes)))
        return path

    return write


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"optimiser": {}}, "optimiser is not a setting; did you mean optimizer?"),
    (
        {"optimizer": {"learning_rat": 1}},
        "optimizer.learning_rat is not a setting; did you mean optimizer.learning_rate?",
    ),
    ({"split": {"vaild_share": 0.1}}, "split.vaild_share is not a setting; did you mean split.valid_share?"),
    ({"encode": {"max_token": 8}}, "encode.max_token is not a setting; did you mean encode.max_tokens?"),
    ({"adapter": {"rnk": 4}}, "adapter.rnk is not a setting of mtl_lora; did you mean adapter.rank?"),
    ({"backbone": {"sourc": "x"}}, "backbone.sourc is not a setting; did you mean backbone.source?"),
    (
        {"tasks": [TASK, {**TASK, "name": "b", "lables": []}]},
        "tasks.1.lables is not a setting; did you mean tasks.1.labels?",
    ),
    (
        {
            "sources": [
                {"kind": "sample", "rows_per_task": 1, "unlabelled_rows_per_task": 1, "rows_per_tsk": 1}
            ]
        },
        "sources.0.rows_per_tsk is not a setting; did you mean sources.0.rows_per_task?",
    ),
    (
        {"sources": [{"kind": "esci", "path": "x", "pth": "x"}]},
        "sources.0.pth is not a setting; did you mean sources.0.path?",
    ),
    (
        {"registry": {"model": "m", "tracking": "x"}},
        "registry.tracking is not a setting; did you mean registry.tracking_uri?",
    ),
    (
        {"optimizer": {"zzz": 1}},
        "optimizer.zzz is not a setting; known here: gradient_clipping, head_learning_rate, learning_rate",
    ),
    (
        {"adapter": {"zzz": 1}},
        (
            "adapter.zzz is not a setting of mtl_lora; known here: exclude_modules, layers_to_transform, "
            "lora_alpha,"
        ),
    ),
    (
        {"adapter": {"method": "lora", "mixture_temperature": 1}},
        "adapter.mixture_temperature is not a setting of lora; known here: exclude_mod",
    ),
    (
        {"adapter": {"method": "lora", "num_up_projections": 3}},
        "adapter.num_up_projections is not a setting of lora; known here: exclude_modules, "
        "layers_to_transform, lora_alpha, lora_dropout, method,"
        " rank, target_modules, use_rslora; another method takes it: set the block whole, as in "
        "--set 'adapter={method: lora}'",
    ),
    (
        {"adapter": {"method": "dora", "lora_alpa": 1}},
        "adapter.lora_alpa is not a setting of dora; did you mean adapter.lora_alpha?",
    ),
    # names of kinds of source in other places
    ({"esci": {"path": "x"}}, "esci is not a setting"),
    ({"sample": 1}, "sample is not a setting"),
    ({"data": {"chorus": 1}}, "data.chorus is not a setting"),
]


@pytest.mark.parametrize(
    ("changes", "message"), UNKNOWN, ids=[message.split(" ")[0] for _, message in UNKNOWN]
)
def test_unknown_setting_is_refused_with_the_nearest_known_one(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(settings(**changes), "here.yaml")
    assert str(caught.value).startswith(f"here.yaml: {message}")
    assert caught.value.exit_code == 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "../x"}, "name: run '../x' is not a valid name"),
    ({"registry": {"model": "A b"}}, "registry.model: model 'A b' is not a valid name"),
    ({"registry": {}}, "registry.model is required"),
    ({"tasks": []}, "tasks: Tuple should have at least 1 item"),
    ({"tasks": [TASK, TASK]}, "task names are not unique: search, search"),
    ({"tasks": [{**TASK, "labels": ["only"]}]}, "tasks.0.labels: Tuple should have at least 2 items"),
    (
        {"tasks": [{**TASK, "labels": [False, True]}]},
        "tasks.0.labels.0: Input should be a valid string (given False)",
    ),
    ({"split": {"valid_share": 0.4, "test_share": 0.6}}, "split: valid_share + test_share must stay below 1"),
    ({"split": {"test_share": 0}}, "split.test_share: Input should be greater than 0 (given 0)"),
    ({"adapter": {"rank": 0}}, "adapter.rank must be at least 1, not 0"),
    (
        {"adapter": {"lora_alpha": float("nan")}},
        "adapter.lora_alpha must be a finite number above 0 (1e-06 to 1e+06), not nan",
    ),
    ({"adapter": {"method": "multi_lora", "num_pairs": 0}}, "adapter.num_pairs must be at least 1, not 0"),
    (
        {"adapter": {"method": "hydra_lora", "num_up_projections": -2}},
        "adapter.num_up_projections must be at least 1, not -2",
    ),
    ({"adapter": {"lora_dropout": 1}}, "adapter.lora_dropout must be at least 0 and below 1, not 1"),
    (
        {"adapter": {"target_modules": "q_proj"}},
        "adapter.target_modules must be a list of names or all-linear, not 'q_proj'",
    ),
    ({"adapter": {"target_modules": []}}, "adapter.target_modules is empty; name at least one linear"),
    (
        {"adapter": {"layers_to_transform": [-1]}},
        "adapter.layers_to_transform must list layers counted from 0",
    ),
    ({"adapter": {"task_layers": 0}}, "adapter.task_layers must be at least 1, not 0"),
    (
        {"adapter": {"method": "moe_lora", "num_experts": 3}},
        "adapter.num_experts, 3, must divide adapter.rank, 8",
    ),
    (
        {"adapter": {"method": "mtlora", "task_scale": 0}},
        "adapter.task_scale must be a finite number above 0 (1e-06 to 1e+06), not 0",
    ),
    (
        {"adapter": {"method": "lorra"}},
        "adapter.method is 'lorra'; did you mean lora? known: dora, hydra_lora, lora",
    ),
    (
        {"backbone": {"dtype": "float16"}},
        "backbone.dtype: Input should be 'auto', 'float32' or 'bfloat16' (given 'float16')",
    ),
    ({"deepspeed": {"zero_stage": 4}}, "deepspeed.zero_stage: Input should be 0, 1, 2 or 3"),
    ({"training": {"epochs": float("inf")}}, "training.epochs: Input should be a finite number"),
    ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate: Input should be"),
    (
        {"training": {"num_workers": 4, "batch_rows": 3}},
        "training.batch_rows is 3; it must be at least training.num_workers, 4",
    ),
    (
        {"deepspeed": {"zero_stage": 0, "offload_optimizer": True}},
        "deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3",
    ),
    (
        {"deepspeed": {"zero_stage": 2, "offload_parameters": True}},
        "deepspeed.offload_parameters needs deepspeed.zero_stage 3",
    ),
    (
        {"deepspeed": {"zero_stage": 3}, "training": {"compile_layers": True}},
        "training.compile_layers needs deepspeed.zero_stage 0, 1 or 2",
    ),
    ({"seed": 2**32}, "seed: Input should be less than 4294967296"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ({"sources": [{"kind": "csv"}]}, "sources.0.kind is 'csv'; known: chorus, esci, qadsm"),
    ({"sources": [{"kind": "esci"}]}, "sources.0.path is required"),
    ({"training": 3}, "training: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG, ids=[f"{n}-{m.split(':')[0]}" for n, (_, m) in enumerate(WRONG)]
)
def test_wrong_value_is_refused_with_setting_and_allowed_values(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(settings(**changes), "here.yaml")
    assert message in str(caught.value)


def test_all_problems_are_in_one_error() -> None:
    wrong = settings(seed=-1, tasks=[{**TASK, "relevant_from": 9}], optimizer={"lr": 1})
    with pytest.raises(ConfigError) as caught:
        build_config(wrong, "x")
    message = str(caught.value)
    for part in ("seed: ", "relevant_from of task search", "optimizer.lr is not a setting"):
        assert part in message
    assert "at least 1 item" not in message


def test_config_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build_config(settings(), "x").seed = 3  # type: ignore[misc]


OVERRIDES: list[tuple[str, Callable[[RunConfig], Any], Any]] = [
    ("optimizer.learning_rate=1e-4", lambda c: c.optimizer.learning_rate, 1e-4),
    ("optimizer.learning_rate=0.25", lambda c: c.optimizer.learning_rate, 0.25),
    ("seed=3", lambda c: c.seed, 3),
    ("name=other", lambda c: c.name, "other"),
    ("training.use_gpu=true", lambda c: c.training.use_gpu, True),
    ("adapter.target_modules=[q_proj, v_proj]", lambda c: c.adapter.target_modules, ("q_proj", "v_proj")),
    ("adapter.lora_alpha=1e1", lambda c: c.adapter.lora_alpha, 10.0),
    ("adapter.target_modules=all-linear", lambda c: c.adapter.target_modules, "all-linear"),
    ("adapter={method: hydra_lora, rank: 4}", lambda c: c.adapter, HydraLoRAConfig(rank=4)),
    ("adapter.method=lora", lambda c: c.adapter, LoRAConfig()),
    ("backbone.revision=null", lambda c: c.backbone.revision, None),
    ("backbone.source=org/name", lambda c: c.backbone.source, "org/name"),
    ("tasks.0.template=A=B {query} {ad_title}", lambda c: c.tasks[0].template, "A=B {query} {ad_title}"),
    ("tasks.0.labels=[a, b, c]", lambda c: c.tasks[0].labels, ("a", "b", "c")),
    ("split={valid_share: 0.3, test_share: 0.3}", lambda c: c.split.valid_share, 0.3),
    ("data.judged=/rows", lambda c: c.judged_location, Path("/rows")),
]


@pytest.mark.parametrize(
    ("override", "read", "value"), OVERRIDES, ids=[override for override, _, _ in OVERRIDES]
)
def test_override_sets_only_its_setting(
    written: Callable[..., Path], override: str, read: Callable[[RunConfig], Any], value: Any
) -> None:
    before, after = read_config(written()), read_config(written(), [override])
    assert read(after) == value and type(read(after)) is type(value)
    assert read(before) != value or override == "backbone.revision=null"
    changed = {key for key in RunConfig.model_fields if getattr(before, key) != getattr(after, key)}
    assert changed <= {override.partition("=")[0].partition(".")[0]}


def test_last_override_of_a_setting_wins(written: Callable[..., Path]) -> None:
    assert read_config(written(seed=1), ["seed=2", "seed=3"]).seed == 3


NOWHERE = ["seed", "=3", "name.deeper=1", "split=[", "seed=\0"] + [
    f"tasks.{number}.name=x" for number in ("7", "first", "-1", "+0", "")
]


@pytest.mark.parametrize("override", NOWHERE)
def test_invalid_override_is_refused_as_written(written: Callable[..., Path], override: str) -> None:
    with pytest.raises(ConfigError, match="^--set ") as caught:
        read_config(written(), [override])
    assert repr(override) in str(caught.value)


def test_override_of_unknown_setting_names_the_nearest_one(
    written: Callable[..., Path],
) -> None:
    with pytest.raises(ConfigError, match=r"training.epoch is not a setting; did you mean training.epochs\?"):
        read_config(written(), ["training.epoch=2"])


def test_missing_config_names_one_to_copy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml does not exist; copy jobs/configs/demo.yaml"):
        read_config(tmp_path / "none.yaml")


NOT_YAML = [
    b"a: [1, 2",
    b"\tx: 1",
    b"\xff\xfe\xfa",
    b"a: b: c",
    b"!!python/object/apply:os.getcwd []",
    b"a: \x00",
]


@pytest.mark.parametrize("content", NOT_YAML)
def test_file_that_is_not_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="c.yaml is not readable YAML"):
        read_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("content", ["", "- a\n", "text", "3"])
def test_yaml_without_a_mapping_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match="must be a YAML mapping"):
        read_config(tmp_path / "c.yaml")


def test_folder_as_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not readable"):
        read_config(tmp_path)


def test_paths_stay_the_same_in_another_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = {"data": {"judged": "rows", "to_score": "more"}, "registry": {"model": "m", "promotions": "log"}}
    here = build_config(settings(work_dir="work", **blocks), "x")
    assert (here.run_dir, here.judged_location) == (tmp_path / "work" / "demo", tmp_path / "rows")
    monkeypatch.chdir("/")
    there = build_config(here.model_dump(mode="json"), "config of the driver")
    for folder in ("run_dir", "judged_location", "to_score_location", "promotions_dir", "tracking_uri"):
        assert getattr(there, folder) == getattr(here, folder)
    assert (there.judged_location, there.to_score_location, there.promotions_dir) == (
        tmp_path / "rows",
        tmp_path / "more",
        tmp_path / "log" / "m",
    )


def test_default_folders_lie_in_the_run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = build_config(settings(), "x")
    monkeypatch.chdir("/")
    assert config.run_dir == tmp_path / "runs" / "demo"
    for folder in (config.judged_location, config.to_score_location, config.promotions_dir):
        assert Path(folder).is_relative_to(config.run_dir)
    assert config.tracking_uri == f"sqlite:///{tmp_path}/runs/demo/mlflow.db"


def test_dumped_config_gives_the_same_config() -> None:
    config = build_config(
        settings(sources=[{"kind": "sample", "rows_per_task": 2, "unlabelled_rows_per_task": 0}]), "x"
    )
    assert build_config(config.model_dump(mode="json"), "y") == config


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_config_is_valid(path: Path) -> None:
    config = read_config(path)
    assert config.tasks and (config.sources or config.data.judged)


@pytest.mark.parametrize(
    "location", ["gs://ads/labels", "S3://ads/labels", "s3a://ads/labels", "file:///data"]
)
def test_unsupported_location_scheme_is_refused(tmp_path: Path, location: str) -> None:
    for block in ({"scoring": {"scores": location}}, {"data": {"to_score": location}}):
        with pytest.raises(ConfigError, match="location is not supported: .*; use a folder or s3://"):
            build_config({**planted_config(tmp_path, "nowhere"), **block}, "test")


def test_paths_of_the_backbone_do_not_depend_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ads")
    for source, expected in {
        "llama": f"{tmp_path}/llama",
        "./gone": f"{tmp_path}/gone",
        "tiny.gguf": f"{tmp_path}/tiny.gguf",
        "~/llama": "/home/ads/llama",
        "/models/llama": "/models/llama",
        "org/name": "org/name",
        "n" * 5000: "n" * 5000,
        "package:llama": "package:llama",
    }.items():
        config = build_config(settings(backbone={"source": source, "cache_dir": "cache"}), "x")
        assert (config.backbone.source, config.backbone.cache_dir) == (expected, f"{tmp_path}/cache")
    assert build_config(settings(), "x").backbone.cache_dir == "~/.cache/relevance"
    with pytest.raises(ConfigError, match="backbone.source: path starts with ~"):
        build_config(settings(backbone={"source": "~nobody-here/llama"}), "x")


def test_relative_backbone_is_found_beside_the_config_from_any_folder(
    written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(backbone={"source": "llama"})
    (path.parent / "llama").mkdir()
    (path.parent / "elsewhere").mkdir()
    sources = {}
    for folder in (path.parent, path.parent / "elsewhere"):
        monkeypatch.chdir(folder)
        for given in (path, Path(os.path.relpath(path))):
            sources[str(folder), str(given)] = read_config(given).backbone.source
    assert set(sources.values()) == {str(path.parent / "llama")}, sources
    (path.parent / "elsewhere" / "llama").mkdir()
    assert read_config(path).backbone.source == str(path.parent / "elsewhere" / "llama")
