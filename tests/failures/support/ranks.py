"""Training without Ray: `python -m tests.failures.support.ranks RANK WORLD_SIZE PORT CASES` is one rank.

It trains each case of a JSON file in turn. A case is an object:

    settings    JSON form of the `WorkerSettings`
    die_at      step whose checkpoint ranks have just begun to write when they kill themselves; null: none
    stop_in     ["step", n] or ["evaluation", n]: when the driver asks to stop; null or absent: never
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.places import ROOT
from tests.support.servers import free_port

TIMEOUT_S = 120  # and as much for each case


def train_on_ranks(world_size: int, cases: list[dict[str, Any]], folder: Path) -> list[int]:
    """Run the cases on as many ranks and return their exit codes; they print to folder/rank-<n>.log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    port, ranks = str(free_port()), []
    for rank in range(world_size):
        with (folder / f"rank-{rank}.log").open("w") as log:
            command = [
                sys.executable,
                "-m",
                __spec__.name,
                str(rank),
                str(world_size),
                port,
                str(folder / "cases.json"),
            ]
            ranks.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT))
    try:
        return [rank.wait(timeout=TIMEOUT_S * (1 + len(cases))) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def run_case(case: dict[str, Any], rank: int, world_size: int) -> None:
    """Train as a Ray worker would."""
    import torch

    from pipeline.config.loading import build_config
    from pipeline.encoding.encoded_dataset import read_encoded
    from pipeline.runtime.watchdog import Watchdog
    from pipeline.training import step as train_step
    from pipeline.training import worker as train_loop
    from pipeline.training.checkpoint import CheckpointWriter
    from pipeline.training.stop_signal import StopSignal
    from pipeline.training.validation_loop import ValidationLoop
    from pipeline.training.worker_setup import RankContext, build_worker

    settings = train_loop.WorkerSettings.from_json(case["settings"])
    config = build_config(settings.config, "the case")
    encoded = read_encoded(settings.encoded_dir, "train", config.tasks)
    rows_path = settings.event_log_path.with_name(f"rows-{rank}.jsonl")
    stop, (stop_kind, stop_step) = StopSignal(settings.stop_path), case.get("stop_in") or ("", 0)
    micro_step, evaluate = train_step.micro_step, ValidationLoop.evaluate

    def recording_micro_step(worker: Any, rows: Any, scale: float, meter: Any) -> Any:
        """Record the rows of the pass."""
        if scale:
            with rows_path.open("a") as file:
                file.write(json.dumps({"step": meter.step, "rows": rows.tolist()}) + "\n")
        if rank == 0 and stop_kind == "step" and meter.step + 1 == stop_step:
            stop.request()
        return micro_step(worker, rows, scale, meter)

    def stopping_evaluate(validation: ValidationLoop, step: int, seen: StopSignal) -> Any:
        if rank == 0 and stop_kind == "evaluation" and step == stop_step:
            stop.request()
        return evaluate(validation, step, seen)

    train_step.micro_step = recording_micro_step
    ValidationLoop.evaluate = stopping_evaluate  # type: ignore[method-assign]
    if case["die_at"] is not None:
        save = CheckpointWriter.save

        def save_and_die(writer: CheckpointWriter, step: int, best: Any) -> None:
            save(writer, step, best)
            if step == case["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

        CheckpointWriter.save = save_and_die  # type: ignore[method-assign]
    with Watchdog(sys.stderr, TIMEOUT_S) as watchdog:
        context = RankContext(rank, world_size, torch.device("cpu"))
        worker = build_worker(config, encoded, context, {}, watchdog)
        train_loop.train(worker, settings, {})
    train_step.micro_step, ValidationLoop.evaluate = micro_step, evaluate  # type: ignore[method-assign]
    worker.engine.destroy()


def main() -> None:
    """Train all cases in turn."""
    rank, world_size, port, cases = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        sys.argv[3],
        json.loads(Path(sys.argv[4]).read_text()),
    )
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    import deepspeed
    import torch

    from pipeline.training.deepspeed_internals import disable_shared_memory_collectives

    torch.set_num_threads(1)
    disable_shared_memory_collectives()
    deepspeed.init_distributed("gloo")
    for case in cases:
        run_case(case, rank, world_size)
    # a rank that leaves while the other's gloo threads still run can bring it down
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
