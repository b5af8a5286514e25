"""Bundles: an exact round trip, and refusal of every kind of damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.files import bytes_sha256
from models.serialization.bundle import BundleRefusedError, encode_json, read_bundle, write_bundle
from tests.support.pickles import pickle_that_creates

FILES = (
    "manifest.json",
    "bundle.json",
    "weights.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
DESCRIPTION = {"tasks": ["search", "shopping"], "rank": 8, "note": "größe", "thresholds": [0.25, None]}


def random_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge = torch.tensor([-0.0, 1e-42, 3e38])
    return {
        "up": torch.randn(3, 4, generator=generator),
        "down": torch.randn(4, generator=generator),
        "edge": edge,
    }


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer_source"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights of the base model stay where they are")
    return folder


@pytest.fixture
def bundle_dir(tmp_path: Path, tokenizer_dir: Path) -> Path:
    folder = tmp_path / "bundle"
    write_bundle(folder, DESCRIPTION, random_tensors(), tokenizer_dir)
    return folder


def rewrite_manifest(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Forge the manifest's list of files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["files"])
    (folder / "manifest.json").write_bytes(encode_json(manifest))


def test_bundle_round_trip_is_exact(bundle_dir: Path) -> None:
    bundle, tensors = read_bundle(bundle_dir), random_tensors()
    assert bundle.description == DESCRIPTION
    assert bundle.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert bundle.tensors[name].dtype == torch.float32
        assert torch.equal(bundle.tensors[name].view(torch.int32), tensor.view(torch.int32)), name
    assert (bundle.tokenizer_dir / "tokenizer.json").read_text() == '{"version": "1.0"}'


def test_bundle_has_exactly_the_documented_files(bundle_dir: Path) -> None:
    names = {str(path.relative_to(bundle_dir)) for path in bundle_dir.rglob("*") if path.is_file()}
    assert names == set(FILES)


def test_same_content_gives_the_same_sha256(tmp_path: Path, tokenizer_dir: Path) -> None:
    backwards = dict(reversed(random_tensors().items()))
    shuffled = dict(reversed(DESCRIPTION.items()))
    one = write_bundle(tmp_path / "one", DESCRIPTION, random_tensors(), tokenizer_dir)
    two = write_bundle(tmp_path / "two", shuffled, backwards, tokenizer_dir)
    assert one == two == read_bundle(tmp_path / "one", expected_sha256=two).sha256


@pytest.mark.parametrize("changed", ("description", "tensors", "tokenizer"))
def test_any_other_content_gives_another_sha256(tmp_path: Path, tokenizer_dir: Path, changed: str) -> None:
    one = write_bundle(tmp_path / "one", DESCRIPTION, random_tensors(), tokenizer_dir)
    tensors = random_tensors()
    if changed == "tensors":
        tensors["up"][0, 0] += 1e-6
    if changed == "tokenizer":
        (tokenizer_dir / "tokenizer.json").write_text('{"version": "1.1"}')
    description = {**DESCRIPTION, "rank": 9} if changed == "description" else DESCRIPTION
    assert write_bundle(tmp_path / "two", description, tensors, tokenizer_dir) != one


def test_rewriting_replaces_the_older_bundle(bundle_dir: Path, tokenizer_dir: Path) -> None:
    before = {path.name for path in bundle_dir.parent.iterdir()}
    sha256 = write_bundle(bundle_dir, {"rank": 1}, {"only": torch.ones(2)}, tokenizer_dir)
    bundle = read_bundle(bundle_dir, expected_sha256=sha256)
    assert bundle.description == {"rank": 1} and list(bundle.tensors) == ["only"]
    assert {path.name for path in bundle_dir.parent.iterdir()} == before


@pytest.mark.parametrize("number", (float("nan"), float("inf"), float("-inf")))
def test_non_finite_tensor_is_refused_without_leftovers(
    tmp_path: Path, tokenizer_dir: Path, number: float
) -> None:
    target = tmp_path / "models" / "bundle"
    target.parent.mkdir()
    with pytest.raises(BundleRefusedError, match="tensor up is not finite.*learning rate"):
        write_bundle(
            target, DESCRIPTION, {**random_tensors(), "up": torch.tensor([1.0, number])}, tokenizer_dir
        )
    assert not list(target.parent.iterdir())


def test_huge_finite_tensor_is_accepted(tmp_path: Path, tokenizer_dir: Path) -> None:
    write_bundle(tmp_path / "bundle", {}, {"huge": torch.full((1000,), 3e38)}, tokenizer_dir)
    assert read_bundle(tmp_path / "bundle").tensors["huge"].sum().isinf()


def test_refused_rewrite_keeps_the_older_bundle(bundle_dir: Path, tokenizer_dir: Path) -> None:
    sha256 = read_bundle(bundle_dir).sha256
    with pytest.raises(BundleRefusedError):
        write_bundle(bundle_dir, DESCRIPTION, {"up": torch.tensor([float("nan")])}, tokenizer_dir)
    assert read_bundle(bundle_dir).sha256 == sha256


def test_failed_write_leaves_nothing_behind(tmp_path: Path, tokenizer_dir: Path) -> None:
    target = tmp_path / "models" / "bundle"
    target.parent.mkdir()
    with pytest.raises(TypeError):
        write_bundle(target, {"not json": object()}, random_tensors(), tokenizer_dir)
    assert not list(target.parent.iterdir())


def test_other_files_beside_the_tokenizer_are_left_out(tmp_path: Path, tokenizer_dir: Path) -> None:
    for name in ("vocab.bpe", "tokenizer.pkl", "tokenizer.py", "tokenizer_extra.bin"):
        (tokenizer_dir / name).write_bytes(b"no file type of a bundle")
    (tokenizer_dir / "spiece.model").write_bytes(b"a sentencepiece vocabulary")
    (tokenizer_dir / "tokenizer_folder").mkdir()
    write_bundle(tmp_path / "bundle", DESCRIPTION, random_tensors(), tokenizer_dir)
    names = {path.name for path in read_bundle(tmp_path / "bundle").tokenizer_dir.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "spiece.model"}


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_refused(bundle_dir: Path, name: str) -> None:
    whole = (bundle_dir / name).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        for bit in (0, 3, 5, 7):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            (bundle_dir / name).write_bytes(damaged)
            with pytest.raises(BundleRefusedError):
                read_bundle(bundle_dir)
    (bundle_dir / name).write_bytes(whole)
    read_bundle(bundle_dir)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("num_kept", (0, 1, -1))
def test_truncated_file_is_refused(bundle_dir: Path, name: str, num_kept: int) -> None:
    path = bundle_dir / name
    whole = path.read_bytes()
    path.write_bytes(whole[:num_kept])
    # a manifest without its last newline is still valid JSON
    sha256 = bytes_sha256(whole) if name == "manifest.json" else None
    with pytest.raises(BundleRefusedError):
        read_bundle(bundle_dir, expected_sha256=sha256)


@pytest.mark.parametrize("name", FILES)
def test_deleted_file_is_refused_by_name(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).unlink()
    with pytest.raises(BundleRefusedError, match=name):
        read_bundle(bundle_dir)


@pytest.mark.parametrize(
    "name", ("extra.json", "tokenizer/extra.json", ".hidden", "adapter.bin", "tokenizer/manifest.json")
)
def test_unlisted_file_is_refused_by_name(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).write_text("{}")
    with pytest.raises(BundleRefusedError, match=name):
        read_bundle(bundle_dir)


@pytest.mark.parametrize("name", FILES)
def test_linked_file_is_refused(bundle_dir: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(bundle_dir / name, outside)
    (bundle_dir / name).symlink_to(outside)
    with pytest.raises(BundleRefusedError):
        read_bundle(bundle_dir)


def test_linked_folder_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    shutil.move(bundle_dir / "tokenizer", tmp_path / "outside")
    (bundle_dir / "tokenizer").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleRefusedError, match="tokenizer"):
        read_bundle(bundle_dir)


def test_unlisted_broken_link_is_refused(bundle_dir: Path) -> None:
    (bundle_dir / "dangling.json").symlink_to("nowhere")
    with pytest.raises(BundleRefusedError, match=r"dangling\.json"):
        read_bundle(bundle_dir)


@pytest.mark.parametrize(
    "name", ("../outside.json", "tokenizer/../../outside.json", "{tmp_path}/outside.json")
)
def test_path_outside_the_bundle_is_refused(bundle_dir: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    listed = name.format(tmp_path=tmp_path)
    rewrite_manifest(bundle_dir, lambda files: files.update({listed: bytes_sha256(b"{}")}))
    with pytest.raises(BundleRefusedError, match="inside its folder"):
        read_bundle(bundle_dir)


@pytest.mark.parametrize("name", ("weights.pt", "weights.bin", "tokenizer/tokenizer.pkl", "weights.PT"))
def test_listed_pickle_file_is_refused(bundle_dir: Path, tmp_path: Path, name: str) -> None:
    content = pickle_that_creates(tmp_path / "mark")
    (bundle_dir / name).write_bytes(content)
    rewrite_manifest(bundle_dir, lambda files: files.update({name: bytes_sha256(content)}))
    with pytest.raises(BundleRefusedError, match="a bundle may only have"):
        read_bundle(bundle_dir)
    assert not (tmp_path / "mark").exists()


def test_pickle_named_like_the_weights_is_never_unpickled(bundle_dir: Path, tmp_path: Path) -> None:
    content = pickle_that_creates(tmp_path / "mark")
    (bundle_dir / "weights.safetensors").write_bytes(content)
    rewrite_manifest(bundle_dir, lambda files: files.update({"weights.safetensors": bytes_sha256(content)}))
    with pytest.raises(BundleRefusedError, match=r"weights\.safetensors"):
        read_bundle(bundle_dir)
    assert not (tmp_path / "mark").exists()


def test_unexpected_bundle_sha256_is_refused(bundle_dir: Path, tokenizer_dir: Path) -> None:
    recorded = read_bundle(bundle_dir).sha256
    other = write_bundle(bundle_dir, DESCRIPTION, {"up": torch.zeros(3)}, tokenizer_dir)
    with pytest.raises(BundleRefusedError, match=f"{other}.*{recorded}"):
        read_bundle(bundle_dir, expected_sha256=recorded)


@pytest.mark.parametrize("name", ("bundle.json", "weights.safetensors"))
def test_manifest_without_description_or_weights_is_refused(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).unlink()
    rewrite_manifest(bundle_dir, lambda files: files.pop(name))
    with pytest.raises(BundleRefusedError, match=f"lists no .*{name}"):
        read_bundle(bundle_dir)


NO_MANIFESTS = (
    b"",
    b"not json",
    b"[]",
    b"null",
    b"{}",
    b'{"files": []}',
    b'{"files": "x"}',
    b'{"files": {"bundle.json": 5}}',
    b"\xff",
)


@pytest.mark.parametrize("content", NO_MANIFESTS)
def test_malformed_manifest_is_refused(bundle_dir: Path, content: bytes) -> None:
    (bundle_dir / "manifest.json").write_bytes(content)
    with pytest.raises(BundleRefusedError):
        read_bundle(bundle_dir)


@pytest.mark.parametrize("content", (b"[]", b"{", b"\xff"))
def test_malformed_description_is_refused(bundle_dir: Path, content: bytes) -> None:
    (bundle_dir / "bundle.json").write_bytes(content)
    rewrite_manifest(bundle_dir, lambda files: files.update({"bundle.json": bytes_sha256(content)}))
    with pytest.raises(BundleRefusedError, match=r"bundle\.json"):
        read_bundle(bundle_dir)


@pytest.mark.parametrize("name", ("missing", "bundle/manifest.json"))
def test_folder_without_manifest_is_refused_with_a_remedy(
    bundle_dir: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(BundleRefusedError, match="train again or name another folder"):
        read_bundle(tmp_path / name)
