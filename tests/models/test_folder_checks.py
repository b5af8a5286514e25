"""Backbone folders that are refused from their small files, and calls that could run a folder's own code."""

import ast
import builtins
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.backbone import load_backbone, load_tokenizer, resolve_folder
from models.folder_checks import BackboneUnavailableError, check_folder
from models.serialization.export import TEMPLATES
from tests.support.backbone_folders import config_of, copy_of

ROOT = Path(__file__).parents[2]
PRODUCT = ("models", "pipeline", "validation", "jobs")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NO_FLOATS = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)


@pytest.fixture
def changed_folder(llama_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a model folder and sets keys of one of its JSON files."""

    def change(name: str = "config.json", **keys: Any) -> Path:
        folder = copy_of(llama_dir, tmp_path / "changed")
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | keys))
        return folder

    return change


@pytest.mark.parametrize("method", ("gptq", "awq", "fp8", "mxfp4", "compressed-tensors", "mystery"))
@pytest.mark.parametrize("place", (None, "text_config"))
def test_quantised_checkpoint_is_refused_by_method(
    changed_folder: Callable[..., Path], method: str, place: str | None
) -> None:
    settings = {"quantization_config": {"quant_method": method, "bits": 4}}
    folder = changed_folder(**({place: settings} if place else settings))
    with pytest.raises(
        BackboneUnavailableError,
        match=f"checkpoint quantised by {method}, which is not supported; use the unquantised one",
    ):
        resolve_folder(config_of(folder))


@pytest.mark.parametrize(
    "name",
    (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.weight_packed",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj_blocks",
    ),
)
def test_weight_stored_in_no_float_dtype_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path, accepted = tmp_path / "model.safetensors", []
    for dtype in (*FLOATS, *NO_FLOATS):
        save_file({name: torch.zeros(4, 4).to(dtype)}, path)
        try:
            check_folder(tmp_path)
            accepted.append(dtype)
        except BackboneUnavailableError as error:
            assert f"stores {name} as" in str(error) and "; use the unquantised checkpoint" in str(error)
    assert accepted == [*FLOATS]


@pytest.mark.parametrize(
    ("name", "dtype"),
    (
        ("embeddings.position_ids", torch.int64),
        ("model.layers.0.mlp.gate.tid2eid", torch.int64),
        ("vision_tower.norm.num_batches_tracked", torch.int64),
        ("transformer.h.0.attn.bias", torch.uint8),
        ("gpt_neox.layers.0.attention.bias", torch.bool),
    ),
)
def test_integers_that_are_no_weights_are_accepted(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({name: torch.zeros(1, 4).to(dtype)}, tmp_path / "model.safetensors")
    check_folder(tmp_path)


@pytest.mark.parametrize("has_config", (True, False))
def test_folder_with_an_adapter_is_refused_with_the_remedy(
    changed_folder: Callable[..., Path], has_config: bool
) -> None:
    folder = changed_folder("adapter_config.json", base_model_name_or_path="someone/base")
    if not has_config:
        (folder / "config.json").unlink()
    with pytest.raises(
        BackboneUnavailableError, match=r"merge it first(.|\n)*merge_and_unload\(\)\.save_pretrained"
    ):
        resolve_folder(config_of(folder))


def test_adapter_config_of_a_hub_model_is_fetched(monkeypatch: pytest.MonkeyPatch, llama_dir: Path) -> None:
    import huggingface_hub

    patterns: list[str] = []

    def download(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        patterns.extend(allow_patterns)
        return str(llama_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve_folder(config_of("someone/some-model"))
    assert "adapter_config.json" in patterns


AUTO_MAP = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.T", None]}


@pytest.mark.parametrize("name", ("config.json", "tokenizer_config.json"))
def test_folder_with_unknown_code_is_refused_without_a_question(
    changed_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keys = {"model_type": "unheard_of"} if name == "config.json" else {"tokenizer_class": "UnheardOf"}
    folder = changed_folder(name, auto_map=AUTO_MAP, **keys)
    (folder / "own.py").write_text("raise SystemExit('code of the folder was run')")
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    for load in (resolve_folder, load_backbone):
        with pytest.raises(BackboneUnavailableError, match=f"code of its own.*{name}"):
            load(config_of(folder))
    if name == "tokenizer_config.json":  # bundles have one too
        with pytest.raises(BackboneUnavailableError, match="does not load"):
            load_tokenizer(folder)


@pytest.mark.parametrize("name", ("config.json", "tokenizer_config.json"))
def test_own_code_that_transformers_has_is_left_alone(
    changed_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    folder = changed_folder(name, auto_map=AUTO_MAP)
    (folder / "own.py").write_text("raise SystemExit('code of the folder was run')")
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    with caplog.at_level("INFO"):
        load_backbone(config_of(folder))
    assert f"auto_map in {folder / name} is not used" in caplog.text


@pytest.mark.parametrize("content", ("{", "[]"))
def test_damaged_config_is_named(changed_folder: Callable[..., Path], content: str) -> None:
    folder = changed_folder()
    (folder / "config.json").write_text(content)
    with pytest.raises(BackboneUnavailableError, match=r"config\.json is (no|not).* JSON"):
        resolve_folder(config_of(folder))


def auto_calls(source: str) -> list[ast.Call]:
    """Return the calls of `from_pretrained` and `from_config` of transformers' auto classes."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.startswith("Auto")
    ]


def test_no_auto_class_may_run_code_of_a_model() -> None:
    sources = {path: path.read_text() for package in PRODUCT for path in (ROOT / package).rglob("*.py")}
    fields: dict[str, int] = defaultdict(int)  # whatever a template has
    sources |= {path: path.read_text().format_map(fields) for path in TEMPLATES.iterdir()}
    calls = [(path, call) for path, source in sources.items() for call in auto_calls(source)]
    assert len(calls) > 8
    offenders = [
        f"{path}:{call.lineno}"
        for path, call in calls
        if not any(
            keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) == "False"
            for keyword in call.keywords
        )
    ]
    assert not offenders, "\n".join(offenders)
