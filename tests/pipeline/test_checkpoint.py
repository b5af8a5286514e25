"""A checkpoint is whole or passed over, and one older whole one is always kept."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import checkpoint
from pipeline.checkpoint import check_checkpoint, flat_optimizer_state, inner_optimizer, newest_checkpoint, write_checkpoint
from pipeline.errors import DamagedInputError

FILES = ("weights.safetensors", "optimizer-0.safetensors", "state.json", "manifest.json")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What write_checkpoint needs of DeepSpeed's engine in a world of one: a module with its optimizer, two steps done."""
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(2):
        module(torch.ones(3)).sum().backward()
        optimizer.step()
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(checkpoint, "gather_trainables", lambda e: {n: p.detach().clone() for n, p in e.module.named_parameters()})
    return SimpleNamespace(module=module, optimizer=optimizer)


def names_in(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_a_checkpoint_holds_weights_optimizer_and_position(tmp_path: Path, engine: Any) -> None:
    write_checkpoint(engine, tmp_path, 200, rank=0)
    folder = tmp_path / "step-00000200"
    assert names_in(folder) == sorted(FILES)
    check_checkpoint(folder)
    assert json.loads((folder / "state.json").read_bytes()) == {"step": 200, "world_size": 1}
    assert all(torch.equal(t, engine.module.state_dict()[name]) for name, t in load_file(folder / "weights.safetensors").items())
    stored = load_file(folder / "optimizer-0.safetensors")
    assert set(stored) == {f"{index}.{key}" for index in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")}
    assert torch.equal(stored["0.exp_avg"], engine.optimizer.state[engine.module.weight]["exp_avg"])
    assert stored["1.step"].item() == 2


def test_only_the_newest_two_are_kept(tmp_path: Path, engine: Any) -> None:
    for step in (9, 10, 100, 1_000):
        write_checkpoint(engine, tmp_path, step, rank=0)
    assert names_in(tmp_path) == ["step-00000100", "step-00001000"]
    assert newest_checkpoint(tmp_path, 1) == tmp_path / "step-00001000"


def test_a_step_written_again_replaces_what_was_there(tmp_path: Path, engine: Any) -> None:
    write_checkpoint(engine, tmp_path, 5, rank=0)
    with torch.no_grad():
        engine.module.weight.fill_(7)
    write_checkpoint(engine, tmp_path, 5, rank=0)
    assert (load_file(tmp_path / "step-00000005" / "weights.safetensors")["weight"] == 7).all()
    assert names_in(tmp_path) == ["step-00000005"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_does_not_disturb_the_next(tmp_path: Path, engine: Any) -> None:
    (tmp_path / ".step-00000005.tmp").mkdir()
    (tmp_path / ".step-00000005.tmp" / "optimizer-7.safetensors").write_bytes(b"part")
    assert newest_checkpoint(tmp_path, 1) is None
    write_checkpoint(engine, tmp_path, 5, rank=0)
    assert names_in(tmp_path / "step-00000005") == sorted(FILES)


@pytest.mark.parametrize("call", range(1, 10))
def test_a_full_disk_at_any_write_leaves_the_older_checkpoint_to_go_on_from(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    write_checkpoint(engine, tmp_path, 1, rank=0)
    sync, calls = os.fsync, iter(range(1, 100))

    def full_disk(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(engine, tmp_path, 2, rank=0)
    # the ninth is the sync after the rename: by then the new one is whole
    assert newest_checkpoint(tmp_path, 1) == tmp_path / ("step-00000002" if call == 9 else "step-00000001")
    write_checkpoint(engine, tmp_path, 2, rank=0)
    assert newest_checkpoint(tmp_path, 1) == tmp_path / "step-00000002"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without_state(path: Path) -> None:
    listed = json.loads(path.read_bytes())
    del listed["state.json"]
    path.write_text(json.dumps(listed))


DAMAGE: list[tuple[str, str, Callable[[Path], Any]]] = [
    *((f"{name} gone", name, Path.unlink) for name in FILES),
    *((f"{name} cut", name, cut) for name in FILES),
    *((f"{name} emptied", name, lambda path: path.write_bytes(b"")) for name in FILES),
    *((f"{name} flipped", name, flip_a_byte) for name in FILES),
    *((f"{name} a folder", name, as_folder) for name in FILES),
    ("manifest of nothing", "manifest.json", lambda path: path.write_text("{}")),
    ("manifest a list", "manifest.json", lambda path: path.write_text("[]")),
    ("manifest without a file", "manifest.json", without_state),
]


@pytest.mark.parametrize(("name", "damage"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_every_kind_of_damage_is_found_and_the_previous_checkpoint_is_used(
    tmp_path: Path, engine: Any, name: str, damage: Callable[[Path], Any]
) -> None:
    for step in (1, 2):
        write_checkpoint(engine, tmp_path, step, rank=0)
    damage(tmp_path / "step-00000002" / name)
    with pytest.raises(DamagedInputError, match="step-00000002") as caught:
        check_checkpoint(tmp_path / "step-00000002")
    assert name in str(caught.value) or name == "manifest.json"
    assert newest_checkpoint(tmp_path, 1) == tmp_path / "step-00000001"


def test_without_a_whole_checkpoint_training_starts_anew(tmp_path: Path, engine: Any) -> None:
    assert newest_checkpoint(tmp_path / "none", 1) is None
    write_checkpoint(engine, tmp_path, 1, rank=0)
    cut(tmp_path / "step-00000001" / "weights.safetensors")
    (tmp_path / "step-00000002").write_text("a file in place of a folder")
    (tmp_path / "step-00000003").mkdir()
    assert newest_checkpoint(tmp_path, 1) is None


def test_a_checkpoint_of_another_number_of_workers_is_passed_over(tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(engine, tmp_path, 1, rank=0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    write_checkpoint(engine, tmp_path, 2, rank=0)
    assert newest_checkpoint(tmp_path, 1) == tmp_path / "step-00000001"
    assert newest_checkpoint(tmp_path, 4) == tmp_path / "step-00000002"
    assert newest_checkpoint(tmp_path, 2) is None


def test_every_rank_writes_its_own_part_and_rank_zero_alone_publishes(tmp_path: Path, engine: Any) -> None:
    staged = tmp_path / ".step-00000003.tmp"
    staged.mkdir()
    write_checkpoint(engine, tmp_path, 3, rank=1)
    assert names_in(tmp_path) == [staged.name] and names_in(staged) == ["optimizer-1.safetensors"]


def test_the_optimizer_inside_deepspeed_s_is_found(engine: Any) -> None:
    assert inner_optimizer(engine) is engine.optimizer
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=engine.optimizer))
    assert inner_optimizer(wrapped) is engine.optimizer


def test_a_flat_optimizer_state_is_all_of_it(engine: Any) -> None:
    flat = flat_optimizer_state(engine.optimizer)
    state = engine.optimizer.state_dict()["state"]
    assert len(flat) == sum(map(len, state.values()))
    assert all(torch.equal(flat[f"{index}.{key}"], value) for index, entry in state.items() for key, value in entry.items())
