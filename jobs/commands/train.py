"""`relevance train`: Ray Train workers with DeepSpeed, ending in a bundle."""

import logging
from typing import Any

from jobs.cluster import ray_cluster
from jobs.command_run import CommandRun
from jobs.train_progress import TrainingProgress
from pipeline.config.run import RunConfig
from pipeline.registry.run_tracker import RunTracker, close_run
from pipeline.training.checkpoint_folder import drop_checkpoints, open_checkpoints
from pipeline.training.driver import run_training
from pipeline.training.plan import count_parameters, plan_training
from pipeline.training.worker import StoppedError

logger = logging.getLogger(__name__)


def run_train(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Train to a bundle; a finished training of the same config and data is used as it is."""
    training = config.training
    plan = plan_training(config)
    if plan.is_finished():
        drop_checkpoints(plan)
        logger.info(f"  training of this config and data is finished: {plan.bundle_dir}")
        return {
            "trained": str(plan.bundle_dir),
            "mlflow_run": close_run(config, plan.fingerprint),
            "steps": 0,
            "next": run.suggest("evaluate"),
        }
    open_checkpoints(plan)
    trainable, total = count_parameters(config.backbone, config.adapter, config.tasks)
    share = f"{100 * trainable / total:.4f}"
    logger.info(
        f"  {config.adapter.method}: trainable params: {trainable:,} || all params: {total:,} || "
        f"trainable%: {share}"
    )
    tracker = RunTracker(config, plan.fingerprint, plan.data_digest, run.id)
    progress = TrainingProgress(run, tracker)
    logger.info(f"  starting {training.num_workers} workers (ZeRO stage {config.deepspeed.zero_stage}) ...")
    status = "FAILED"
    try:
        with ray_cluster(
            training.num_workers * training.threads_per_worker, training.num_workers * training.use_gpu
        ):
            run_training(plan, progress, run, run.log)
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "FINISHED" if plan.is_finished() else "KILLED"
        raise
    finally:
        run.add_evidence(*sorted(plan.dir.glob("hung-*.txt")))
        progress.close()
        tracker.finish(status)
    run.set_counts(steps=progress.steps)
    return {
        "trained": str(plan.bundle_dir),
        "mlflow_run": tracker.run_id,
        "steps": progress.steps,
        "next": run.suggest("evaluate"),
    }
