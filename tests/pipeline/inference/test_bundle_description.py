"""Contents of bundles are checked on every read, also where every digest is right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.files import bytes_sha256, file_sha256
from models.serialization.bundle import encode_heads, encode_json
from pipeline.config.loading import build_config
from pipeline.errors import DamagedInputError
from pipeline.inference.predictor import build_predictor, load_predictor
from tests.support.bundles import write_trained_bundle
from tests.support.planted import planted_config


@pytest.fixture
def bundle_dir(tmp_path: Path, tiny_llama: Path) -> Path:
    config = build_config(planted_config(Path("/nowhere"), str(tiny_llama)), "test")
    predictor = build_predictor(config)
    write_trained_bundle(tmp_path / "bundle", predictor, config)
    return tmp_path / "bundle"


def fix_manifest(folder: Path) -> None:
    """Write the manifest that fits the files, as who alters them can."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    files = {name: file_sha256(folder / name) for name in names if name != "manifest.json"}
    (folder / "manifest.json").write_bytes(encode_json({"files": files}))


def with_text(old: str, new: str) -> Callable[[Path], None]:
    """Replace text in bundle.json, which must be there."""

    def damage(folder: Path) -> None:
        path = folder / "bundle.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def with_fields(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the content of bundle.json."""

    def damage(folder: Path) -> None:
        fields = json.loads((folder / "bundle.json").read_bytes())
        change(fields)
        (folder / "bundle.json").write_bytes(encode_json(fields))

    return damage


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors, and write the metadata that fits bundle.json."""

    def damage(folder: Path) -> None:
        path = folder / "weights.safetensors"
        description = json.loads((folder / "bundle.json").read_bytes())
        tensors = load_file(path)
        change(tensors)
        metadata = {"tasks": encode_heads(description)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)

    return damage


def with_task_twice(folder: Path) -> None:
    with_fields(lambda fields: fields["tasks"].append(fields["tasks"][0]))(folder)
    with_tensors(lambda tensors: None)(folder)


def cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def float4_weights(folder: Path) -> None:
    """A dtype that safetensors knows and its loader for PyTorch does not."""
    header = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    (folder / "weights.safetensors").write_bytes(content)


NULL = "null"  # in place of the metadata


def with_metadata(folder: Path, metadata: Any) -> None:
    """Replace the metadata of the weights; None removes it."""
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    del header["__metadata__"]
    if metadata is not None:
        header["__metadata__"] = None if metadata == NULL else metadata
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


HEADS = "heads.weight_KD"

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nan weight": (with_tensors(lambda t: t[HEADS].__setitem__((0, 0), torch.nan)), "not finite"),
    "infinite weight": (with_tensors(lambda t: t[HEADS].__setitem__((0, 0), torch.inf)), "not finite"),
    "missing tensor": (with_tensors(lambda t: t.pop(HEADS)), "heads.weight_KD is missing"),
    "extra tensor": (with_tensors(lambda t: t.update(more=torch.ones(1))), "more is unknown"),
    "wrong shape": (with_tensors(lambda t: t.update({HEADS: t[HEADS].T})), "the model has"),
    "wrong dtype": (with_tensors(lambda t: t.update({HEADS: t[HEADS].double()})), "holds F32, F64"),
    "unknown dtype": (float4_weights, "holds F4"),
    "truncated weights": (cut_weights, "is not safetensors"),
    "no weights": (lambda folder: (folder / "weights.safetensors").write_bytes(b""), "is not safetensors"),
    "reversed tasks": (with_fields(lambda f: f["tasks"].reverse()), "heads of other tasks"),
    "reversed labels": (with_fields(lambda f: f["tasks"][1]["labels"].reverse()), "heads of other tasks"),
    "negative threshold": (
        with_fields(lambda f: f["calibration"]["two"].update(relevant_at=-5)),
        "calibration.two.relevant_at: .*greater than or equal to 0",
    ),
    "crossed thresholds": (
        with_fields(lambda f: f["calibration"]["two"].update(relevant_at=0.2, irrelevant_below=0.7)),
        "must not exceed",
    ),
    "falling curve": (
        with_fields(lambda f: f["calibration"]["two"].update(curve=[[0, 1], [1, 0]])),
        "curve must not decrease",
    ),
    "upright curve": (
        with_fields(lambda f: f["calibration"]["two"].update(curve=[[0.5, 0.2], [0.5, 0.8]])),
        "curve must step by 1e-16 or more",
    ),
    "curve of infinite slope": (
        with_fields(lambda f: f["calibration"]["two"].update(curve=[[0, 0.2], [1e-322, 0.8], [1, 0.9]])),
        "curve must step by 1e-16 or more",
    ),
    "lost calibration": (with_fields(lambda f: f["calibration"].pop("two")), "calibration is for three"),
    "zero temperature": (with_fields(lambda f: f["calibration"]["two"].update(temperature=0)), "temperature"),
    "tiny temperature": (
        with_fields(lambda f: f["calibration"]["two"].update(temperature=1e-308)),
        "two.temperature: Input should be greater",
    ),
    "threshold as text": (
        with_fields(lambda f: f["calibration"]["two"].update(relevant_at="0.5")),
        "relevant_at: Input should be a valid number",
    ),
    "true for threshold": (
        with_fields(lambda f: f["calibration"]["two"].update(relevant_at=True)),
        "relevant_at: Input should be a valid number",
    ),
    "seed as text": (with_fields(lambda f: f.update(seed="1")), "seed: Input should be a valid integer"),
    "true for steps": (with_fields(lambda f: f["training"].update(steps=True)), "training.steps: Input"),
    "huge rows": (with_fields(lambda f: f["training"].update(rows=10**200)), "training.rows: Input"),
    "no digest": (with_fields(lambda f: f["backbone"].update(digest="")), "backbone.digest: String"),
    "short digest": (with_fields(lambda f: f["training"].update(data_digest="d")), "data_digest: String"),
    "no source": (with_fields(lambda f: f["backbone"].update(source="")), "backbone.source: String"),
    "huge text limit": (with_fields(lambda f: f["encode"].update(max_tokens=10**200)), "encode.max_tokens"),
    "rank as text": (with_fields(lambda f: f["adapter"].update(rank="8")), "adapter.*rank"),
    "huge rank": (with_fields(lambda f: f["adapter"].update(rank=10**200)), "adapter.rank must be at most"),
    "tiny scale": (with_fields(lambda f: f["adapter"].update(mixture_temperature=1e-308)), "1e-06 to 1e"),
    "weights without metadata": (lambda folder: with_metadata(folder, None), "does not say which tasks"),
    "weights without tasks": (lambda folder: with_metadata(folder, {"x": "y"}), "does not say which tasks"),
    "null for metadata": (lambda folder: with_metadata(folder, NULL), "does not say which tasks"),
    "lost tasks": (with_fields(lambda f: f.update(tasks=None)), "heads of other tasks"),
    "repeated task": (with_task_twice, "tasks repeat a name"),
    "unknown field": (with_fields(lambda f: f.update(relevant=1)), "relevant: Extra inputs"),
    "lost seed": (with_fields(lambda f: f.pop("seed")), "seed: Field required"),
    "list for backbone": (with_fields(lambda f: f.update(backbone=[])), "backbone: Input should be"),
    "unknown adapter": (with_fields(lambda f: f["adapter"].update(method="x")), "adapter"),
    "negative rank": (with_fields(lambda f: f["adapter"].update(rank=-1)), "adapter.*rank"),
    "repeated key": (with_text('"seed":', '"seed": 1,\n "seed":'), "key 'seed' is repeated"),
    "infinite number": (with_text('"rows": 8', '"rows": 1e999'), "number 1e999 is not finite"),
    "huge number": (with_text('"rows": 8', '"rows": ' + "9" * 5000), "5,000 digits"),
    "nan number": (with_text('"rows": 8', '"rows": NaN'), "number NaN is not finite"),
    "half a character": (with_text('"labels": [', '"labels": [ "\\ud800",'), "surrogates not allowed"),
    "deep nesting": (with_text('"rows": 8', '"rows": ' + "[" * 100_000), "nests too deep"),
    "latin text": (
        lambda folder: (folder / "bundle.json").write_bytes(b'{"x": "\xe9"}'),
        "is not JSON",
    ),
    "damaged tokenizer": (
        lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text('{"version": 1}'),
        "does not load",
    ),
    "list for reference": (lambda folder: (folder / "reference.json").write_text("[]"), "not a JSON object"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_contents_are_refused_with_one_sentence(bundle_dir: Path, kind: str) -> None:
    damage, message = DAMAGES[kind]
    before = bytes_sha256((bundle_dir / "manifest.json").read_bytes())
    damage(bundle_dir)
    fix_manifest(bundle_dir)
    assert bytes_sha256((bundle_dir / "manifest.json").read_bytes()) != before
    with pytest.raises(DamagedInputError, match=message) as caught:
        load_predictor(bundle_dir)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_fixed_manifest_alone_is_no_damage(bundle_dir: Path) -> None:
    fix_manifest(bundle_dir)
    load_predictor(bundle_dir)


@pytest.mark.parametrize("name", ["x" * 300 + ".json", "a\0b.json", "/etc/hostname.json", ""])
def test_manifest_with_an_impossible_name_is_refused(bundle_dir: Path, name: str) -> None:
    manifest = json.loads((bundle_dir / "manifest.json").read_bytes())
    manifest["files"][name] = "0" * 64
    (bundle_dir / "manifest.json").write_bytes(encode_json(manifest))
    with pytest.raises(DamagedInputError):
        load_predictor(bundle_dir)
