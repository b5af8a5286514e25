"""Compare every adapter method under ZeRO on two ranks with one process of torch alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import zero_worker
from tests.support.places import ROOT
from tests.support.servers import free_port

pytestmark = pytest.mark.e2e

CASES = [(method, stage) for method in zero_worker.METHODS for stage in zero_worker.STAGES]


@pytest.fixture(scope="module")
def ranks_dir(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Return the folder that both ranks wrote to."""
    out_dir, port = tmp_path_factory.mktemp("zero"), str(free_port())
    command = [sys.executable, "-m", zero_worker.__name__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), port, str(tiny_llama), str(out_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]
    outputs = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    return out_dir


@pytest.fixture(scope="module")
def references(tiny_llama: Path) -> dict[str, Any]:
    """Return (first logits, gradient norms, trained tensors) of one process by method."""
    found = {}
    for method in zero_worker.METHODS:
        model = zero_worker.fresh_model(tiny_llama, method)
        start = model(*zero_worker.batch_of(0))[:, :2].detach()
        norms = zero_worker.train_plainly(model)
        found[method] = (
            start,
            norms,
            {name: tensor.detach() for name, tensor in model.trainable_state().items()},
        )
    return found


def read_ranks(ranks_dir: Path, method: str, stage: int) -> list[dict[str, Any]]:
    return [json.loads((ranks_dir / f"{method}-{stage}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("method", "stage"), CASES)
def test_partitioned_model_gives_equal_logits(
    ranks_dir: Path, references: dict[str, Any], method: str, stage: int
) -> None:
    logits = torch.tensor([row for rank in read_ranks(ranks_dir, method, stage) for row in rank["logits"][0]])
    torch.testing.assert_close(logits, references[method][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "stage"), CASES)
def test_group_gradient_norms_equal_those_of_one_process(
    ranks_dir: Path, references: dict[str, Any], method: str, stage: int
) -> None:
    for rank in read_ranks(ranks_dir, method, stage):
        for found, expected, total in zip(
            rank["norms"], references[method][1], rank["global_norms"], strict=True
        ):
            assert found == pytest.approx(expected, rel=1e-3)
            assert total is None or sum(norm**2 for norm in found.values()) ** 0.5 == pytest.approx(
                total, rel=1e-5
            )


@pytest.mark.parametrize(("method", "stage"), CASES)
def test_trained_weights_equal_those_of_one_process(
    ranks_dir: Path, references: dict[str, Any], method: str, stage: int
) -> None:
    tensors = load_file(ranks_dir / f"{method}-{stage}.safetensors")
    expected = references[method][2]
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor,
            expected[name],
            rtol=1e-3,
            atol=2e-4,
            msg=f"{name}: {(tensor - expected[name]).abs().max()}",
        )
