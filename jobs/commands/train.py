"""`relevance train`: Ray Train workers, DeepSpeed, and a bundle at the end."""

from typing import Any

from jobs.cluster import ray_cluster
from jobs.console import Console
from jobs.train_progress import StepWatch
from pipeline.config.run import RunConfig
from pipeline.registry.run_tracker import RunTracker, close_run
from pipeline.training.checkpoint_folder import drop_checkpoints, open_checkpoints
from pipeline.training.driver import run_training
from pipeline.training.plan import plan_training, planned_parameters
from pipeline.training.worker import StoppedError


def run_train(config: RunConfig, console: Console) -> dict[str, Any]:
    """Train, or use the finished training of this very config and data; returns the trained bundle's
    folder.
    """
    training = config.training
    plan = plan_training(config)
    if plan.is_finished():
        drop_checkpoints(plan)
        console.say(f"  this very training was finished before: {plan.bundle_dir}")
        return {
            "trained": str(plan.bundle_dir),
            "mlflow_run": close_run(config, plan.fingerprint),
            "steps": 0,
        }
    open_checkpoints(plan, console.say)
    trainable, total = planned_parameters(config)
    share = f"{100 * trainable / total:.4f}"
    console.say(
        f"  {config.adapter.method}: trainable params: {trainable:,} || all params: {total:,} || "
        f"trainable%: {share}"
    )
    tracker = RunTracker(config, plan.fingerprint, plan.data_digest, console.say)
    watch = StepWatch(console, tracker)
    console.say(f"  starting {training.num_workers} workers (ZeRO stage {config.deepspeed.zero_stage}) ...")
    status = "FAILED"
    try:
        with (
            ray_cluster(
                training.num_workers * training.threads_per_worker, training.num_workers * training.use_gpu
            ),
            console.track("encode", None, "rows") as encoding,
        ):
            run_training(
                plan,
                lambda done, total: encoding.update(done, total=total),
                watch.seen,
                console.say,
            )
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "FINISHED" if plan.is_finished() else "KILLED"
        raise
    finally:
        watch.close()
        tracker.finish(status)
    return {"trained": str(plan.bundle_dir), "mlflow_run": tracker.run_id, "steps": watch.steps}
