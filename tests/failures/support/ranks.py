"""Training without Ray: `python -m tests.failures.support.ranks RANK WORLD_SIZE PORT CASES` is one of
WORLD_SIZE processes that train each case of a json file in turn.

A case: {"config": the run's config, "settings": what the driver gives its workers, "die_at": step or null,
"stop_in": null or which step, or the evaluation after which, the driver asks to stop in}. Ranks die without a
word right after they began to write the checkpoint of step `die_at`.
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
    """Run the cases on as many ranks; their exit codes. What they print lies in folder/rank-<n>.log."""
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
    from pipeline.runtime.watchdog import Watch
    from pipeline.training import step as train_step
    from pipeline.training import worker as train_loop
    from pipeline.training.checkpoint import CheckpointWriter
    from pipeline.training.validation_loop import Interim
    from pipeline.training.worker_setup import RankPlace, build_worker

    config = build_config(case["config"], "the case")
    encoded = read_encoded(Path(case["settings"]["encoded_dir"]), "train", config.tasks)
    stop_path, (stop_kind, stop_step) = Path(case["settings"]["stop_path"]), case.get("stop_in") or ("", 0)
    micro_step, evaluate = train_step.micro_step, Interim.evaluate

    def recorded(worker: Any, mine: Any, scale: float, done: Any, *rest: Any) -> Any:
        """What was trained on, as it happens."""
        if scale:
            with (Path(case["settings"]["live_path"]).parent / f"rows-{rank}.jsonl").open("a") as file:
                file.write(json.dumps({"step": done.step, "rows": mine.tolist()}) + "\n")
        if rank == 0 and stop_kind == "step" and done.step + 1 == stop_step:
            stop_path.touch()
        return micro_step(worker, mine, scale, done, *rest)

    def evaluated(interim: Interim, step: int, asked_to_stop: Any) -> Any:
        if rank == 0 and stop_kind == "evaluation" and step == stop_step:
            stop_path.touch()
        return evaluate(interim, step, asked_to_stop)

    train_step.micro_step, Interim.evaluate = recorded, evaluated  # type: ignore[method-assign]
    if case["die_at"] is not None:
        save = CheckpointWriter.save

        def save_and_die(writer: CheckpointWriter, step: int, best: Any) -> None:
            save(writer, step, best)
            if step == case["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

        CheckpointWriter.save = save_and_die  # type: ignore[method-assign]
    with Watch(sys.stderr, TIMEOUT_S) as watch:
        place = RankPlace(rank, world_size, torch.device("cpu"))
        worker = build_worker(config, encoded, place, {}, watch)
        train_loop.train(worker, case["settings"], {})
    train_step.micro_step, Interim.evaluate = micro_step, evaluate  # type: ignore[method-assign]
    worker.engine.destroy()


def main() -> None:
    """All cases in turn."""
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

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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
