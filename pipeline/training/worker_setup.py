"""Build what a training worker needs: model, rows, sampler, engine."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass

import torch

from models.training.compilation import compile_layers
from pipeline.config.run import RunConfig
from pipeline.encoding.batches import EncodedRows
from pipeline.errors import ConfigError, DataRefusedError
from pipeline.inference.predictor import fresh_judge
from pipeline.runtime.flops import step_flops
from pipeline.runtime.timing import clock, matmul_peak
from pipeline.runtime.watchdog import Watch
from pipeline.training.deepspeed_engine import build_engine
from pipeline.training.head_init import start_heads
from pipeline.training.packing_probe import packed_beginnings
from pipeline.training.sampler import Sampler, SamplerSettings
from pipeline.training.step import Worker, any_rank


@dataclass(frozen=True)
class RankPlace:
    """Where a worker stands among the others, and the device that it computes on."""

    rank: int
    world_size: int
    device: torch.device


def build_worker(
    config: RunConfig, encoded: EncodedRows, place: RankPlace, seconds: dict[str, float], watch: Watch
) -> Worker:
    """Load the model and hand it to DeepSpeed. torch.distributed is initialised already. `seconds` is told
    what took how long; `watch` is entered, and no part of this may take longer than it allows.
    """
    if len(encoded) == 0:
        found = f"no row of {config.accepted_dir} falls into the train split"
        raise DataRefusedError(f"{found}; add rows or lower split.valid_share and split.test_share")
    sampler = build_sampler(config, encoded)
    watch.alive()
    rank, world_size, device = place.rank, place.world_size, place.device
    with clock(seconds, "model"):
        judge = fresh_judge(config, device)
    watch.alive()
    with clock(seconds, "heads"):
        beginning_T = packed_beginnings(config, judge, encoded)
        watch.alive()
        if any_rank(beginning_T is None, device):  # or ranks would round otherwise
            beginning_T = None
            judge.model.take_padded_only()
        start_heads(judge, encoded, beginning_T, rank, world_size)
    watch.alive()
    if config.training.gradient_checkpointing:
        judge.model.enable_gradient_checkpointing()
    flops = step_flops(judge.model)  # before ZeRO 3 takes the numbers apart
    with clock(seconds, "engine"):
        engine = build_engine(config, judge)
    if config.training.compile_layers:
        check_compiler()
        compile_layers(judge.model)
    watch.alive()
    with clock(seconds, "matmul peak"):
        peak = matmul_peak(device, judge.backbone.dtype)
    return Worker(config, judge, encoded, sampler, engine, rank, world_size, *flops, peak, watch, beginning_T)


def check_compiler() -> None:
    """ConfigError if this worker has no C++ compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        here = f"{socket.gethostname()} has neither g++ nor clang++"
        raise ConfigError(
            f"training.compile_layers needs a C++ compiler and {here}; install one or set it to false"
        )


def build_sampler(config: RunConfig, encoded: EncodedRows) -> Sampler:
    """The run's sampler."""
    weights, training = [task.sampling_weight for task in config.tasks], config.training
    settings = SamplerSettings(
        training.batch_rows, training.task_temperature, config.seed, training.max_task_rows
    )
    return Sampler(encoded.length_N, encoded.task_N, weights, settings)
