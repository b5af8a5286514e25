"""A model folder that can be trusted: safetensors and json, each file's sha256 in a manifest that is written
last. Nothing pickled, ever.

    manifest.json       {"files": {name: sha256}}            its own sha256 is the bundle's identity
    bundle.json         the model's description: config, tasks, base model, calibration
    weights.safetensors adapters and heads, float32
    tokenizer/...       the tokenizer's files
The base model's weights are not inside; bundle.json holds where they came from and their digest.
"""

import json
import math
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.files import bytes_sha256, write_synced

MANIFEST = "manifest.json"

DESCRIPTION = "bundle.json"

WEIGHTS = "weights.safetensors"

ALLOWED_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model")


class BundleRefusedError(RuntimeError):
    """A folder is not a bundle, or not the one that was meant: refused before anything in it is used."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory."""

    folder: Path
    sha256: str
    description: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def tokenizer_dir(self) -> Path:
        return self.folder / "tokenizer"


def write_bundle(
    folder: Path, description: dict[str, Any], tensors: dict[str, torch.Tensor], tokenizer_dir: Path
) -> str:
    """Write a bundle beside `folder`, then move it there; returns its sha256. The same content gives the same
    sha256.

    BundleRefusedError: a tensor is not finite.
    """
    check_finite(tensors)
    staged = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        (staged / "tokenizer").mkdir(parents=True)
        for path in filter(is_tokenizer_file, sorted(tokenizer_dir.iterdir())):
            write_synced(staged / "tokenizer" / path.name, path.read_bytes())
        write_synced(
            staged / WEIGHTS,
            save_tensors(
                {name: t.detach().float().cpu().contiguous() for name, t in sorted(tensors.items())}
            ),
        )
        write_synced(staged / DESCRIPTION, encode_json(description))
        files = {
            str(p.relative_to(staged)): bytes_sha256(p.read_bytes())
            for p in sorted(staged.rglob("*"))
            if p.is_file()
        }
        manifest = encode_json({"files": files})
        write_synced(staged / MANIFEST, manifest)
        replace_folder(staged, folder)
        return bytes_sha256(manifest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def is_tokenizer_file(path: Path) -> bool:
    """Whether a file beside a model's weights is one of its tokenizer's, and of a kind that bundles keep."""
    named = path.name.startswith(("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens"))
    return (named or path.suffix == ".model") and path.suffix in ALLOWED_SUFFIXES and path.is_file()


def read_bundle(folder: Path, expected_sha256: str | None = None) -> Bundle:
    """Verify every file against the manifest, then read. BundleRefusedError names the file and the reason.

    `expected_sha256` comes from another place than the folder (a registry tag), so that a rewritten folder is
    noticed too.
    """
    manifest_path = folder / MANIFEST
    if manifest_path.is_symlink() or not manifest_path.is_file():
        raise BundleRefusedError(
            f"{folder} holds no {MANIFEST}, so it is no finished bundle; train again or name another folder"
        )
    manifest = manifest_path.read_bytes()
    sha256 = bytes_sha256(manifest)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise BundleRefusedError(
            f"{folder} has sha256 {sha256}, the registry recorded {expected_sha256}; fetch the version again"
        )
    listed = decode_json(manifest, manifest_path).get("files", {})
    if not isinstance(listed, dict):
        raise BundleRefusedError(f"{manifest_path} does not map file names to sha256; fetch the bundle again")
    verified = {name: read_verified(folder, name, digest) for name, digest in listed.items()}
    check_only_listed(folder, set(listed))
    if not {DESCRIPTION, WEIGHTS} <= verified.keys():
        raise BundleRefusedError(f"{folder} lists no {DESCRIPTION} or no {WEIGHTS}; it is no model bundle")
    try:
        tensors = load_tensors(verified[WEIGHTS])
    except SafetensorError as error:
        raise BundleRefusedError(
            f"{folder / WEIGHTS} is not safetensors ({error}); fetch the bundle again"
        ) from error
    return Bundle(folder, sha256, decode_json(verified[DESCRIPTION], folder / DESCRIPTION), tensors)


def read_verified(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of one listed file; BundleRefusedError if its name leads out, its kind is not allowed or its
    sha256 differs.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or path.suffix not in ALLOWED_SUFFIXES:
        raise BundleRefusedError(
            f"{folder} lists {name!r}; a bundle holds only {', '.join(ALLOWED_SUFFIXES)} files inside its "
            "folder"
        )
    if path.is_symlink() or not path.is_file():
        raise BundleRefusedError(f"{path} is missing or a link; fetch the bundle again")
    content = path.read_bytes()
    if bytes_sha256(content) != digest:
        raise BundleRefusedError(f"{path} does not match its sha256 in the manifest; fetch the bundle again")
    return content


def check_only_listed(folder: Path, listed: set[str]) -> None:
    """BundleRefusedError if the folder holds a file or link that the manifest does not list."""
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink() or p.is_file())
    unlisted = [name for name in found if name not in listed and name != MANIFEST]
    if unlisted:
        raise BundleRefusedError(
            f"{folder} holds files its manifest does not list: {', '.join(unlisted[:5])}"
        )


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """BundleRefusedError naming the first tensor with NaN or infinite numbers."""
    for name, tensor in sorted(tensors.items()):
        if not math.isfinite(tensor.detach().double().sum().item()) and not torch.isfinite(tensor).all():
            raise BundleRefusedError(
                f"tensor {name} is not finite; training has diverged, lower the learning rate"
            )


def replace_folder(staged: Path, final: Path) -> None:
    """Move a finished folder into place, an older one out of the way first."""
    retired = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.old"
    if final.exists():
        final.rename(retired)
    staged.rename(final)
    shutil.rmtree(retired, ignore_errors=True)


def encode_json(value: Any) -> bytes:
    """Indented json with sorted keys: one text for one value."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def decode_json(content: bytes, path: Path) -> dict[str, Any]:
    """The json object in `content`; BundleRefusedError names `path` if it is not one."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise BundleRefusedError(f"{path} is not json ({error}); fetch the bundle again") from error
    if not isinstance(value, dict):
        raise BundleRefusedError(f"{path} is not a json object; fetch the bundle again")
    return value
