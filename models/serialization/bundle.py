"""Bundles: verified model folders of safetensors and JSON files, without pickles.

    manifest.json        {"files": {name: sha256}}, written last; its own sha256 identifies the bundle
    bundle.json          description of the model: config, tasks, base model, calibration
    weights.safetensors  adapters and heads in float32; its metadata repeats the tasks of the heads
    tokenizer/           files of the tokenizer
    reference.json       of an evaluated model: canary rows and score profiles

A bundle does not contain the base model's weights. bundle.json names their source and digest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.files import (
    bytes_sha256,
    file_sha256,
    parse_json,
    publish_dir,
    remove_tree,
    temporary_path,
    write_synced,
)

MANIFEST = "manifest.json"

DESCRIPTION = "bundle.json"

WEIGHTS = "weights.safetensors"

REFERENCE = "reference.json"

MAX_NAME_BYTES = 255  # of a listed file; file systems take no longer name

FETCH_AGAIN = "fetch the bundle again"

ALLOWED_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model")


class BundleRefusedError(RuntimeError):
    """A folder is no bundle, or not the expected one. Nothing in it was used."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, read into memory."""

    folder: Path
    sha256: str
    description: dict[str, Any]  # content of bundle.json
    tensors: dict[str, torch.Tensor]
    reference: dict[str, Any] | None = None  # content of reference.json; None: it was not evaluated
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 of each file by name

    @property
    def tokenizer_dir(self) -> Path:
        return self.folder / "tokenizer"


def write_bundle(
    folder: Path,
    description: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    tokenizer_dir: Path,
    reference: dict[str, Any] | None = None,
) -> str:
    """Write a bundle atomically and return its sha256. Equal content has equal sha256.

    Args:
        folder: The bundle's folder, which is replaced.
        description: Content of bundle.json; its "tasks" are in the order of the heads.
        tensors: Trained tensors by name.
        tokenizer_dir: Folder with the tokenizer's files.
        reference: Content of reference.json.

    Raises:
        BundleRefusedError: A tensor is not finite.
    """
    _check_finite(tensors, "training has diverged, lower the learning rate")
    staged = temporary_path(folder)
    try:
        (staged / "tokenizer").mkdir(parents=True)
        for path in filter(is_tokenizer_file, sorted(tokenizer_dir.iterdir())):
            write_synced(staged / "tokenizer" / path.name, path.read_bytes())
        weights = {name: t.detach().float().cpu().contiguous() for name, t in sorted(tensors.items())}
        write_synced(staged / WEIGHTS, save_tensors(weights, {"tasks": encode_heads(description)}))
        write_synced(staged / DESCRIPTION, encode_json(description))
        if reference is not None:
            write_synced(staged / REFERENCE, encode_json(reference))
        files = {
            str(path.relative_to(staged)): file_sha256(path)
            for path in sorted(staged.rglob("*"))
            if path.is_file()
        }
        manifest = encode_json({"files": files})
        write_synced(staged / MANIFEST, manifest)
        publish_dir(staged, folder)
        return bytes_sha256(manifest)
    finally:
        remove_tree(staged)


def is_tokenizer_file(path: Path) -> bool:
    """Return whether a file of a model folder belongs to the tokenizer and may be part of a bundle."""
    has_tokenizer_name = path.suffix == ".model" or path.name.startswith(
        ("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens")
    )
    return has_tokenizer_name and path.suffix in ALLOWED_SUFFIXES and path.is_file()


def read_bundle(folder: Path, expected_sha256: str | None = None) -> Bundle:
    """Verify every file against the manifest, and the values that need no model, and read the bundle.

    Args:
        folder: The bundle.
        expected_sha256: The bundle's sha256 from another place, such as a registry tag; it reveals a folder
            that was rewritten together with its manifest.

    Raises:
        BundleRefusedError: Names the file and the reason.
    """
    manifest_path = folder / MANIFEST
    if manifest_path.is_symlink() or not manifest_path.is_file():
        raise BundleRefusedError(
            f"{folder} has no {MANIFEST}, so it is no complete bundle; train again or name another folder"
        )
    manifest = manifest_path.read_bytes()
    sha256 = bytes_sha256(manifest)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise BundleRefusedError(
            f"{folder} has sha256 {sha256}, but the registry recorded {expected_sha256}; fetch the version "
            "again"
        )
    listed = _decode_json(manifest, manifest_path).get("files", {})
    if not isinstance(listed, dict):
        raise BundleRefusedError(f"{manifest_path} does not map file names to sha256; {FETCH_AGAIN}")
    verified = {name: _read_verified(folder, name, digest) for name, digest in listed.items()}
    _check_only_listed(folder, set(listed))
    if not {DESCRIPTION, WEIGHTS} <= verified.keys():
        raise BundleRefusedError(f"{folder} lists no {DESCRIPTION} or no {WEIGHTS}; {FETCH_AGAIN}")
    description = _decode_json(verified[DESCRIPTION], folder / DESCRIPTION)
    reference = _decode_json(verified[REFERENCE], folder / REFERENCE) if REFERENCE in verified else None
    return Bundle(
        folder,
        sha256,
        description,
        _decode_weights(verified[WEIGHTS], folder, description),
        reference,
        listed,
    )


def _decode_weights(content: bytes, folder: Path, description: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a bundle's weights.

    Raises:
        BundleRefusedError: They are not float32 or not finite, or their metadata do not name the tasks of
            the description, in its order.
    """
    path = folder / WEIGHTS
    try:
        # eight bytes of length, then the header: https://huggingface.co/docs/safetensors
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.pop("__metadata__", None)
        dtypes = {entry["dtype"] for entry in header.values()}
        tensors = load_tensors(content) if dtypes <= {"F32"} else {}
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BundleRefusedError(f"{path} is not safetensors ({error}); {FETCH_AGAIN}") from error
    if not dtypes <= {"F32"}:
        raise BundleRefusedError(
            f"{path} holds {', '.join(sorted(map(str, dtypes)))}, a bundle has F32 alone; {FETCH_AGAIN}"
        )
    if not isinstance(metadata, dict) or "tasks" not in metadata:
        raise BundleRefusedError(f"{path} does not say which tasks its heads are for; {FETCH_AGAIN}")
    if metadata["tasks"] != encode_heads(description):
        raise BundleRefusedError(
            f"{path} has heads of other tasks than {DESCRIPTION}, or in another order; {FETCH_AGAIN}"
        )
    _check_finite(tensors, FETCH_AGAIN)
    return tensors


def encode_heads(description: dict[str, Any]) -> str:
    """Return what a description says of the heads, as text for the weights' metadata.

    Of a task these are name and labels: a new threshold or target leaves the weights as they are.
    """
    tasks = description.get("tasks")
    of_tasks = tasks if isinstance(tasks, list) else [tasks]
    heads = [[t.get("name"), t.get("labels")] if isinstance(t, dict) else t for t in of_tasks]
    return json.dumps(heads, ensure_ascii=False)


def _read_verified(folder: Path, name: str, digest: str) -> bytes:
    """Return the content of a listed file.

    Raises:
        BundleRefusedError: Its path or suffix is not allowed, it is missing, or its sha256 differs.
    """
    path = folder / name
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not is_inside or path.suffix not in ALLOWED_SUFFIXES or len(name.encode()) > MAX_NAME_BYTES:
        raise BundleRefusedError(
            f"{folder} lists {name!r}; a bundle may only have {', '.join(ALLOWED_SUFFIXES)} files inside its "
            "folder"
        )
    if path.is_symlink() or not path.is_file():
        raise BundleRefusedError(f"{path} is missing or a symbolic link; {FETCH_AGAIN}")
    content = path.read_bytes()
    if bytes_sha256(content) != digest:
        raise BundleRefusedError(f"{path} does not match its sha256 in the manifest; {FETCH_AGAIN}")
    return content


def _check_only_listed(folder: Path, listed: set[str]) -> None:
    """Check that the manifest lists every file and link of the folder.

    Raises:
        BundleRefusedError: It does not.
    """
    present = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink() or p.is_file())
    unlisted = [name for name in present if name not in listed and name != MANIFEST]
    if unlisted:
        raise BundleRefusedError(
            f"{folder} has files that its manifest does not list: {', '.join(unlisted[:5])}; fetch the "
            "bundle again"
        )


def _check_finite(tensors: dict[str, torch.Tensor], remedy: str) -> None:
    """Check that all tensors are finite.

    Raises:
        BundleRefusedError: Names the first tensor that is not.
    """
    for name, tensor in sorted(tensors.items()):
        # one pass: a sum of float32 in float64 cannot overflow
        if not torch.isfinite(tensor.detach().sum(dtype=torch.float64)):
            raise BundleRefusedError(f"tensor {name} is not finite; {remedy}")


def encode_json(value: Any) -> bytes:
    """Return indented JSON with sorted keys, so that equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _decode_json(content: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `content`.

    Raises:
        BundleRefusedError: Names `path`, which is no JSON object.
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise BundleRefusedError(f"{path} is not JSON ({error}); {FETCH_AGAIN}") from error
    if not isinstance(value, dict):
        raise BundleRefusedError(f"{path} is not a JSON object; {FETCH_AGAIN}")
    return value
