"""Trainings of planted rows on ranks without Ray, with the work divided in every way."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.serialization.bundle import read_bundle
from pipeline.config.tasks import Task
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.inference.calibration import label_probabilities
from pipeline.inference.predictor import load_predictor
from pipeline.training.worker import WorkerSettings
from tests.failures.support import ranks
from tests.support.planted import planted_config

STEPS = 20  # of 12 an epoch


def exact_config(root: Path, source: str, **blocks: Any) -> dict[str, Any]:
    """Return a config of planted rows with an instruction long enough to be shared by a packed pass."""
    config = planted_config(root, source, **blocks) | {"encode": {"max_tokens": 160}}
    for task in config["tasks"]:
        task["template"] = "Does the ad offer what the query asks for?\n" + task["template"]
    return config


@dataclass(frozen=True)
class World:
    """Rows encoded once, and a folder for each training on them."""

    root: Path
    source: str
    encoded_dir: Path
    tasks: tuple[Task, ...]

    def case(
        self, name: str, die_at: int | None = None, training: dict[str, Any] | None = None, **deepspeed: Any
    ) -> dict[str, Any]:
        """Return a case for `ranks.train_on_ranks`: one training in its own folder."""
        blocks: dict[str, Any] = {
            "training": {
                "batch_rows": 16,
                "epochs": STEPS * 16 / 192,
                "checkpoint_every_steps": 3,
                **(training or {}),
            },
            "deepspeed": deepspeed,
        }
        config = exact_config(self.root, self.source, **blocks)
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        settings = WorkerSettings(
            config=config,
            fingerprint="f" * 64,
            data_digest="d" * 64,
            encoded_dir=self.encoded_dir,
            bundle_dir=folder / "bundle",
            checkpoint_dir=folder / "checkpoints",
            event_log_path=folder / "live.jsonl",
            stop_path=folder / "stop",
        )
        return {"settings": settings.to_json(), "die_at": die_at}

    def train(self, world_size: int, cases: list[dict[str, Any]], log: str, exit_code: int = 0) -> str:
        """Train the cases on as many ranks; return what rank 0 printed."""
        codes = ranks.train_on_ranks(world_size, cases, self.root / "logs" / log)
        output = (self.root / "logs" / log / "rank-0.log").read_text()
        assert codes == [exit_code] * world_size, output[-3000:]
        return output

    def losses(self, name: str) -> dict[int, dict[str, float]]:
        """Return losses and gradient norm by step; a step done twice must be equal both times."""
        found: dict[int, dict[str, float]] = {}
        for line in self.lines(name):
            if "step" in line:
                numbers = {
                    "loss": line["loss"],
                    "gradient_norm": line["gradient_norm"],
                    **line["task_losses"],
                }
                assert found.setdefault(line["step"], numbers) == numbers or "other ranks" in name
                found[line["step"]] = numbers
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the events of the training as JSON."""
        return [json.loads(line) for line in (self.root / name / "live.jsonl").read_text().splitlines()]

    def best(self, name: str) -> dict[str, float]:
        """Return the evaluation whose weights were published."""
        return dict(read_bundle(self.root / name / "bundle").description["training"]["best"])

    def probabilities(self, name: str) -> list[float]:
        """Return the published model's probabilities of the test split."""
        predictor, _ = load_predictor(self.root / name / "bundle")
        logits_NC = predictor.logits(read_encoded(self.encoded_dir, "test", self.tasks), 4096)
        return [float(p) for p in label_probabilities(logits_NC, 1.0).ravel()]

    def weights(self, name: str) -> bytes:
        """Return the published weights."""
        return (self.root / name / "bundle" / "weights.safetensors").read_bytes()


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero-0": ({}, {"zero_stage": 0}),
    "zero-1": ({}, {"zero_stage": 1}),
    "zero-2": ({}, {"zero_stage": 2}),
    "zero-3": ({}, {"zero_stage": 3}),
    "zero-1 offload": ({}, {"zero_stage": 1, "offload_optimizer": True}),
    "zero-2 offload": ({}, {"zero_stage": 2, "offload_optimizer": True}),
    "zero-3 offload": ({}, {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}),
    "zero-0 passes": ({"micro_batch_tokens": 256}, {"zero_stage": 0}),
    "zero-1 passes": ({"micro_batch_tokens": 256}, {"zero_stage": 1}),
    "zero-2 passes": ({"micro_batch_tokens": 256}, {"zero_stage": 2}),
    "zero-3 passes": ({"micro_batch_tokens": 256}, {"zero_stage": 3}),
    "zero-2 offload passes": ({"micro_batch_tokens": 256}, {"zero_stage": 2, "offload_optimizer": True}),
    "zero-3 offload passes": (
        {"micro_batch_tokens": 256},
        {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    ),
    "recomputed": ({"micro_batch_tokens": 128, "gradient_checkpointing": True}, {"zero_stage": 2}),
    "compiled": ({"micro_batch_tokens": 512, "compile_layers": True}, {"zero_stage": 2}),
}

# trained by `make test-failures` alone
LONGER = [
    "zero-1",
    "zero-2 offload",
    "zero-3 offload",
    "zero-1 offload",
    "zero-0 passes",
    "zero-1 passes",
    "zero-2 passes",
    "zero-2 offload passes",
    "zero-3 offload passes",
    "compiled",
]
WAYS_BY_RANKS = {
    1: ["zero-0", "zero-2", "recomputed"],
    2: [way for way in WAYS if way not in LONGER],
}
RUNS = [(way, world_size) for world_size, ways in WAYS_BY_RANKS.items() for way in ways]
LONGER_BY_RANKS = {2: LONGER, 4: ["zero-2", "zero-3 passes"]}
LONGER_RUNS = [(way, world_size) for world_size, ways in LONGER_BY_RANKS.items() for way in ways]


def train_ways(world: World, world_size: int, ways: list[str]) -> None:
    """Train every way on as many ranks."""
    cases = [world.case(f"{way} on {world_size}", training=WAYS[way][0], **WAYS[way][1]) for way in ways]
    world.train(world_size, cases, f"{len(ways)} ways on {world_size}")


KILLED = -9


def whole_checkpoints(world: World, name: str) -> list[str]:
    """Return the names of a training's finished checkpoints."""
    return sorted(path.name for path in (world.root / name / "checkpoints").glob("step-*"))
