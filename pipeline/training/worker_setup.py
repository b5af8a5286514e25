"""Construction of a training worker: model, sampler, engine."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.training.compilation import compile_layers
from pipeline.config.run import RunConfig
from pipeline.config.tasks import Task
from pipeline.config.training import TrainingConfig
from pipeline.encoding.batches import EncodedRows
from pipeline.errors import ConfigError, DataRefusedError
from pipeline.inference.predictor import Predictor, build_predictor
from pipeline.runtime.flops import step_flops
from pipeline.runtime.timing import measure_matmul_peak, record_seconds
from pipeline.runtime.watchdog import Watchdog
from pipeline.training.deepspeed_engine import build_engine
from pipeline.training.head_init import initialize_heads
from pipeline.training.packing_probe import probe_packing
from pipeline.training.sampler import Sampler, SamplerSettings
from pipeline.training.step import WorkerState, any_rank


@dataclass(frozen=True)
class RankContext:
    """Position of a worker among the others, and its device."""

    rank: int
    world_size: int
    device: torch.device


def build_worker(
    config: RunConfig,
    encoded: EncodedRows,
    context: RankContext,
    seconds: dict[str, float],
    watchdog: Watchdog,
) -> WorkerState:
    """Load the model, initialize it and hand it to DeepSpeed. torch.distributed must be initialised.

    Args:
        config: The run's config.
        encoded: The train split.
        context: Rank and device.
        seconds: Durations by phase, which this adds to.
        watchdog: The worker's watchdog, already entered; no phase may take longer than its timeout.

    Raises:
        DataRefusedError: There is no row.
        ConfigError: Layers are to be compiled and there is no compiler.
    """
    check_not_empty(encoded, config.accepted_dir)
    sampler = build_sampler(encoded, config.tasks, config.training, config.seed)
    watchdog.heartbeat()
    with record_seconds(seconds, "model"):
        predictor = build_predictor(config, context.device)
    watchdog.heartbeat()
    with record_seconds(seconds, "heads"):
        prefix_length_T = probe_packing(predictor, encoded, config.adapter)
        watchdog.heartbeat()
        prefix_length_T = agree_on_packing(predictor, prefix_length_T)
        initialize_heads(predictor, encoded, prefix_length_T, context.rank, context.world_size)
    watchdog.heartbeat()
    if config.training.gradient_checkpointing:
        predictor.model.enable_gradient_checkpointing()
    # counted from shapes, which ZeRO 3 takes away
    flops_per_token, flops_per_row = step_flops(predictor.model)
    with record_seconds(seconds, "engine"):
        engine = build_engine(predictor, config.deepspeed, config.training, config.optimizer)
    if config.training.compile_layers:
        check_compiler()
        compile_layers(predictor.model)
    watchdog.heartbeat()
    with record_seconds(seconds, "matmul peak"):
        peak_flops_per_s = measure_matmul_peak(context.device, predictor.backbone.dtype)
    return WorkerState(
        config=config,
        predictor=predictor,
        encoded=encoded,
        sampler=sampler,
        engine=engine,
        rank=context.rank,
        world_size=context.world_size,
        flops_per_token=flops_per_token,
        flops_per_row=flops_per_row,
        peak_flops_per_s=peak_flops_per_s,
        watchdog=watchdog,
        prefix_length_T=prefix_length_T,
    )


def check_not_empty(encoded: EncodedRows, accepted_dir: Path) -> None:
    """Raise DataRefusedError if no row is in the train split."""
    if len(encoded) == 0:
        raise DataRefusedError(
            f"no row of {accepted_dir} is in the train split; add rows or lower split.valid_share and "
            "split.test_share"
        )


def agree_on_packing(predictor: Predictor, prefix_length_T: np.ndarray | None) -> np.ndarray | None:
    """Return `prefix_length_T` if no rank's is None; else None, with packing disabled.

    Ranks must agree because packed and padded rows round differently. All ranks must call it.
    """
    if any_rank(prefix_length_T is None, predictor.device):
        predictor.model.disable_packing()
        return None
    return prefix_length_T


def check_compiler() -> None:
    """Raise ConfigError if this machine has no C++ compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError(
            f"{socket.gethostname()} has neither g++ nor clang++, which training.compile_layers needs; "
            "install one or set it to false"
        )


def build_sampler(
    encoded: EncodedRows, tasks: tuple[Task, ...], training: TrainingConfig, seed: int
) -> Sampler:
    """Build the sampler of a run."""
    settings = SamplerSettings(training.batch_rows, training.task_temperature, seed, training.max_task_rows)
    weights = [task.sampling_weight for task in tasks]
    return Sampler(encoded.length_N, encoded.task_N, weights, settings)
