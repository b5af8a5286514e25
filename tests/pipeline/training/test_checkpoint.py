"""Tests of checkpoints: whole or ignored, with one older whole one always kept."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from models.training.flat_parameters import FlatModel
from pipeline.errors import DamagedInputError, RetryableError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointWriter, check_checkpoint, find_newest_checkpoint
from pipeline.training.deepspeed_internals import inner_optimizer
from pipeline.training.event_log import BestEvaluation
from pipeline.training.validation_loop import BestWeights
from pipeline.training.worker import agree_on_checkpoint
from pipeline.training.zero_state import assemble_fragments, load_optimizer_tensors, optimizer_tensors

FILES = ("weights.safetensors", "optimizer-0.safetensors", "state.json", "manifest.json")


class Small(torch.nn.Linear):
    """A linear layer with the methods of a relevance model that checkpoints need."""

    def trainable_state(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.named_parameters())

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        return {"heads": list(self.parameters())}


def build_engine(steps: int = 2) -> Any:
    """Return what checkpoints need of DeepSpeed's engine at stage 0: a module with its optimizer."""
    torch.manual_seed(0)
    module = FlatModel(Small(3, 2))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(steps):
        module(torch.ones(3)).sum().backward()
        optimizer.step()
    return SimpleNamespace(module=module, optimizer=optimizer)


def model_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """Return copies of the model's tensors by name."""
    return {
        name: tensor.detach().clone()
        for name, tensor in engine.module.split_by_name(engine.module.trainable_state()).items()
    }


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an engine after two steps."""
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda names, src: None)
    monkeypatch.setattr(checkpoint, "gather_trainables", model_tensors)
    return build_engine()


def write(engine: Any, root: Path, step: int) -> None:
    """Write one checkpoint and wait for it."""
    writer = CheckpointWriter(engine, root, 0, 1)
    writer.save(step, None)
    writer.wait()


def names_in(root: Path) -> list[str]:
    """Return the sorted names in a folder."""
    return sorted(p.name for p in root.iterdir())


def test_checkpoint_holds_weights_optimizer_and_position(tmp_path: Path, engine: Any) -> None:
    write(engine, tmp_path, 200)
    folder = tmp_path / "step-00000200"
    assert names_in(folder) == sorted(FILES)
    check_checkpoint(folder)
    assert json.loads((folder / "state.json").read_bytes()) == {
        "step": 200,
        "world_size": 1,
        "frozen_dtype": "none",
        "best": None,
    }
    assert all(
        torch.equal(t, model_tensors(engine)[name])
        for name, t in load_file(folder / "weights.safetensors").items()
    )
    stored = load_file(folder / "optimizer-0.safetensors")
    assert set(stored) == {
        f"{name}@0.{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert torch.equal(
        torch.cat([stored["weight@0.exp_avg"], stored["bias@0.exp_avg"]]),
        engine.optimizer.state[engine.module.heads]["exp_avg"],
    )
    assert stored["bias@0.step"].item() == 2


def test_newest_two_checkpoints_are_kept(tmp_path: Path, engine: Any) -> None:
    for step in (9, 10, 100, 1_000):
        write(engine, tmp_path, step)
    assert names_in(tmp_path) == ["step-00000100", "step-00001000"]
    assert find_newest_checkpoint(tmp_path)[0] == tmp_path / "step-00001000"


def test_rewritten_step_replaces_its_checkpoint(tmp_path: Path, engine: Any) -> None:
    write(engine, tmp_path, 5)
    with torch.no_grad():
        engine.module.heads.fill_(7)
    write(engine, tmp_path, 5)
    assert (load_file(tmp_path / "step-00000005" / "weights.safetensors")["weight"] == 7).all()
    assert names_in(tmp_path) == ["step-00000005"]


def test_next_start_removes_parts_of_a_killed_writer(tmp_path: Path, engine: Any) -> None:
    parts_dir = tmp_path / ".step-00000005.0123456789ab.tmp"
    parts_dir.mkdir()
    (parts_dir / "optimizer-7.safetensors").write_bytes(b"part")
    assert find_newest_checkpoint(tmp_path)[0] is None
    write(engine, tmp_path, 5)
    assert names_in(tmp_path) == ["step-00000005"]
    assert names_in(tmp_path / "step-00000005") == sorted(FILES)


def count_syncs(engine: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of fsync calls of one checkpoint."""
    calls = []
    with monkeypatch.context() as patched:
        sync = os.fsync
        patched.setattr(os, "fsync", lambda descriptor: calls.append(descriptor) or sync(descriptor))
        write(engine, root, 1)
    return len(calls)


def test_full_disk_at_any_write_leaves_the_older_checkpoint(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, num_calls = os.fsync, count_syncs(engine, tmp_path / "count", monkeypatch)
    assert num_calls >= 7
    for call in range(1, num_calls + 1):
        root, calls = tmp_path / str(call), iter(range(1, 100))
        write(engine, root, 1)

        def failing_fsync(descriptor: int, calls: Any = calls, call: int = call) -> None:
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing_fsync)
            with pytest.raises(OSError, match="No space left"):
                write(engine, root, 2)
        # the last call follows the rename: the new checkpoint is whole
        assert find_newest_checkpoint(root)[0] == root / (
            "step-00000002" if call == num_calls else "step-00000001"
        )
        write(engine, root, 2)
        assert find_newest_checkpoint(root)[0] == root / "step-00000002"
        assert not list(root.glob(".*"))


def test_failed_write_raises_at_the_next_save(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = CheckpointWriter(engine, tmp_path, 0, 1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_part", failing_write)
        writer.save(1, None)
        with pytest.raises(OSError, match="No space left"):
            writer.save(2, None)
    writer.wait()
    assert find_newest_checkpoint(tmp_path)[0] is None


def test_checkpoint_holds_the_best_weights(tmp_path: Path, engine: Any) -> None:
    best = BestWeights(BestEvaluation(2, 0.75, 0.5), {"weight": torch.full((2, 3), 4.0)})
    writer = CheckpointWriter(engine, tmp_path, 0, 1)
    writer.save(3, best)
    writer.wait()
    folder = tmp_path / "step-00000003"
    check_checkpoint(folder)
    assert json.loads((folder / "state.json").read_bytes())["best"] == {
        "step": 2,
        "macro_pr_auc": 0.75,
        "log_loss": 0.5,
    }
    assert torch.equal(load_file(folder / "best.safetensors")["weight"], best.tensors["weight"])
    flip_byte(folder / "best.safetensors")
    with pytest.raises(DamagedInputError, match="best.safetensors"):
        check_checkpoint(folder)


def test_steps_during_a_write_do_not_change_the_checkpoint(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, changed = model_tensors(engine)["weight"], threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda tensors: (changed.wait(20), save(tensors))[1])
    writer = CheckpointWriter(engine, tmp_path, 0, 1)
    writer.save(1, None)
    with torch.no_grad():
        engine.module.heads.fill_(7)
        engine.optimizer.state[engine.module.heads]["exp_avg"].fill_(7)
    changed.set()
    writer.wait()
    assert torch.equal(load_file(tmp_path / "step-00000001" / "weights.safetensors")["weight"], before)
    assert (load_file(tmp_path / "step-00000001" / "optimizer-0.safetensors")["weight@0.exp_avg"] != 7).all()


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def drop_state_from_manifest(path: Path) -> None:
    listed = json.loads(path.read_bytes())
    del listed["state.json"]
    path.write_text(json.dumps(listed))


DAMAGE: list[tuple[str, str, Callable[[Path], Any]]] = [
    *((f"{name} gone", name, Path.unlink) for name in FILES),
    *((f"{name} truncated", name, truncate) for name in FILES),
    *((f"{name} emptied", name, lambda path: path.write_bytes(b"")) for name in FILES),
    *((f"{name} flipped", name, flip_byte) for name in FILES),
    *((f"{name} a folder", name, replace_by_folder) for name in FILES),
    ("manifest of nothing", "manifest.json", lambda path: path.write_text("{}")),
    ("manifest a list", "manifest.json", lambda path: path.write_text("[]")),
    ("manifest without a file", "manifest.json", drop_state_from_manifest),
]


@pytest.mark.parametrize(("name", "damage"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damaged_checkpoint_is_found_and_the_previous_one_used(
    tmp_path: Path, engine: Any, name: str, damage: Callable[[Path], Any]
) -> None:
    for step in (1, 2):
        write(engine, tmp_path, step)
    damage(tmp_path / "step-00000002" / name)
    with pytest.raises(DamagedInputError, match="step-00000002") as caught:
        check_checkpoint(tmp_path / "step-00000002")
    assert name in str(caught.value) or name == "manifest.json"
    assert find_newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000001"


def test_no_whole_checkpoint_means_no_newest_one(tmp_path: Path, engine: Any) -> None:
    assert find_newest_checkpoint(tmp_path / "none")[0] is None
    write(engine, tmp_path, 1)
    truncate(tmp_path / "step-00000001" / "weights.safetensors")
    (tmp_path / "step-00000002").write_text("a file in place of a folder")
    (tmp_path / "step-00000003").mkdir()
    assert find_newest_checkpoint(tmp_path)[0] is None


def test_unreadable_checkpoint_is_neither_used_nor_removed(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write(engine, tmp_path, step)
    real = checkpoint.file_sha256

    def unreadable(path: Path) -> str:
        if path.parent.name == "step-00000002":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(checkpoint, "file_sha256", unreadable)
    with pytest.raises(
        RetryableError,
        match=(
            r"step-00000002 cannot be read \(\[Errno 5\] Input/output error.*move the folder away: the "
            r"checkpoint before"
        ),
    ):
        find_newest_checkpoint(tmp_path)
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_step_is_written_once_per_start(tmp_path: Path, engine: Any) -> None:
    with CheckpointWriter(engine, tmp_path, 0, 1) as writer:
        writer.save(3, None)
        writer.save(3, None)
        writer.wait()
        written = (tmp_path / "step-00000003").stat().st_ino
        writer.save(3, None)
        writer.wait()
    assert (tmp_path / "step-00000003").stat().st_ino == written and names_in(tmp_path) == ["step-00000003"]


def test_damaged_newer_checkpoints_and_files_are_removed(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda names, src: None)
    write(engine, tmp_path, 1)
    (tmp_path / "step-00000002").write_text("a file in place of a folder")
    (tmp_path / "step-00000003").mkdir()
    assert agree_on_checkpoint(tmp_path, 0) == tmp_path / "step-00000001"
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_rank_zero_waits_for_every_rank_s_part(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (CheckpointWriter(engine, tmp_path, rank, 2) for rank in (0, 1))
    second.attempt = first.attempt
    first.save(3, None)
    assert find_newest_checkpoint(tmp_path)[0] is None
    second.save(3, None)
    second.wait()
    first.wait()
    assert names_in(tmp_path / "step-00000003") == sorted([*FILES, "optimizer-1.safetensors"])
    # at stage 0 all ranks hold the same
    assert load_file(tmp_path / "step-00000003" / "optimizer-1.safetensors") == {}
    first.wait_s = 0.05
    first.save(4, None)
    with pytest.raises(RetryableError, match="checkpoint was abandoned: optimizer-1.safetensors is missing"):
        first.wait()


def test_error_ends_the_wait_for_other_ranks(tmp_path: Path, engine: Any) -> None:
    started_s = time.monotonic()
    with pytest.raises(ZeroDivisionError), CheckpointWriter(engine, tmp_path, 0, 2) as writer:
        writer.save(4, None)
        raise ZeroDivisionError
    assert time.monotonic() - started_s < checkpoint.WAIT_S / 4
    assert find_newest_checkpoint(tmp_path)[0] is None


def test_inner_optimizer_is_found(engine: Any) -> None:
    assert inner_optimizer(engine) is engine.optimizer
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=engine.optimizer))
    assert inner_optimizer(wrapped) is engine.optimizer


def test_fragments_of_any_split_restore_the_whole_state(engine: Any) -> None:
    whole = optimizer_tensors(engine, 0)
    stored = {}
    for key, tensor in whole.items():
        name, moment = key.split("@0.")
        places = [0] if moment == "step" else sorted({0, 1, len(tensor) // 2})
        for start, end in zip(places, [*places[1:], len(tensor)], strict=True):
            stored[f"{name}@{start}.{moment}"] = tensor[start:end]
    sizes = {name: tensor.numel() for name, tensor in model_tensors(engine).items()}
    for name, moments in assemble_fragments(sizes, stored).items():
        assert all(torch.equal(numbers, whole[f"{name}@0.{moment}"]) for moment, numbers in moments.items())
    fresh = build_engine(steps=0)
    load_optimizer_tensors(fresh, stored)
    assert all(torch.equal(tensor, whole[key]) for key, tensor in optimizer_tensors(fresh, 0).items())
