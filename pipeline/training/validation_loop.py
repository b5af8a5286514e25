"""Evaluation on the valid split during training: macro PR-AUC over steps, best weights, early stopping.

Shape legend: N rows, C labels of the finest task.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows, collate, length_batches
from pipeline.evaluation.metrics import calibration_metrics, ranking_metrics
from pipeline.inference.calibration import label_probabilities, relevance_probability
from pipeline.training.event_log import BestEvaluation
from pipeline.training.step import TrainingDivergedError, WorkerState, any_rank
from pipeline.training.stop_signal import StopSignal


@dataclass(frozen=True)
class ValidationMetrics:
    """Metrics of the model after some steps."""

    step: int
    tasks: dict[str, dict[str, float]]  # metrics by task; tasks without both classes are left out
    macro_pr_auc: float | None  # means over `tasks`; None if it is empty
    macro_log_loss: float | None

    def is_better_than(self, best: BestEvaluation | None) -> bool:
        """Return whether this is the best evaluation so far; never without metrics."""
        if self.macro_pr_auc is None or self.macro_log_loss is None:
            return False
        if best is None:
            return True
        return (self.macro_pr_auc, -self.macro_log_loss) > (best.macro_pr_auc, -best.log_loss)


@dataclass(frozen=True)
class BestWeights:
    """Trained tensors of the best evaluation so far."""

    evaluation: BestEvaluation
    tensors: dict[str, torch.Tensor]


class ValidationLoop:
    """Evaluations between steps.

    Each rank runs the model on its part of the rows; all ranks see all logits and compute the same metrics.
    """

    def __init__(self, worker: WorkerState, valid: EncodedRows) -> None:
        """Draw at most `training.evaluate_task_rows` rows of each task, the same for every evaluation."""
        training = worker.config.training
        self.worker, self.valid = worker, valid
        self.every_steps = training.evaluate_every_steps or worker.sampler.batches_per_epoch
        self.rows_N = draw_rows(
            valid.task_N, len(worker.config.tasks), training.evaluate_task_rows, worker.config.seed
        )
        tokens = (training.micro_batch_tokens or worker.config.scoring.batch_tokens) * worker.world_size
        self.batches = length_batches(valid.length_N[self.rows_N], tokens)  # positions in rows_N

    def is_due(self, step: int) -> bool:
        """Return whether the model is evaluated after `step` steps."""
        return step > 0 and (step % self.every_steps == 0 or step == self.worker.num_steps)

    def is_patience_exhausted(self, best: BestWeights | None, step: int) -> bool:
        """Return whether the last `training.patience` evaluations were no better than the best."""
        patience = self.worker.config.training.patience
        if patience is None or best is None:
            return False
        return step // self.every_steps - best.evaluation.step // self.every_steps >= patience

    def evaluate(self, step: int, stop: StopSignal) -> ValidationMetrics | None:
        """Compute the metrics of each task that has both classes among its rows, and their means.

        All ranks must call it.

        Returns:
            None on all ranks as soon as one is asked to stop.

        Raises:
            TrainingDivergedError: Logits are not finite.
        RetryableError: A file of encoded rows changed or was removed.
        """
        self.valid.check_files()
        logits_NC = self._logits(stop)
        if logits_NC is None:
            return None
        tasks: dict[str, dict[str, float]] = {}
        for index, task in enumerate(self.worker.config.tasks):
            positions = np.flatnonzero(self.valid.task_N[self.rows_N] == index)
            positive_N = self.valid.labels_of(self.rows_N[positions]) >= task.relevant_from
            if positive_N.all() or not positive_N.any():
                continue  # no row, or one class only: no metric is defined
            task_logits_NC = logits_NC[positions, : len(task.labels)]
            if not np.isfinite(task_logits_NC).all():
                raise TrainingDivergedError(
                    f"logits of valid rows of {task.name} are not finite after step {step}; lower "
                    "optimizer.learning_rate"
                )
            tasks[task.name] = task_metrics(task_logits_NC, positive_N, task)
        return ValidationMetrics(step, tasks, _mean(tasks, "pr_auc"), _mean(tasks, "log_loss"))

    @torch.no_grad()
    def _logits(self, stop: StopSignal) -> np.ndarray | None:
        """Return the logits (N, C) of `rows_N`; None: asked to stop."""
        worker, tasks, device = self.worker, self.worker.config.tasks, self.worker.predictor.device
        worker.engine.eval()
        num_labels = max(len(task.labels) for task in tasks)
        logits_NC = torch.zeros(len(self.rows_N), num_labels, dtype=torch.float64)
        for positions in self.batches:
            worker.watchdog.heartbeat()
            if any_rank(stop.is_requested(), device):
                return None
            own_positions = positions[worker.rank :: worker.world_size]
            # at ZeRO 3 all ranks must run each pass: a rank without rows takes a row and ignores the result
            rows = self.rows_N[own_positions if len(own_positions) else positions[:1]]
            batch = collate(self.valid, rows, len(tasks), worker.predictor.pad_id).to(device)
            # compiling takes longer than the few batches
            with torch.compiler.set_stance("force_eager"):
                batch_logits_BC = worker.engine(*batch.inputs).double().cpu()
            if len(own_positions):
                logits_NC[own_positions] = batch_logits_BC
        worker.engine.train()
        all_logits_NC = logits_NC.to(device)
        torch.distributed.all_reduce(all_logits_NC)
        return all_logits_NC.cpu().numpy()


def task_metrics(logits_NC: np.ndarray, positive_N: np.ndarray, task: Task) -> dict[str, float]:
    """Return the number of rows and the metrics of one task."""
    probability_N = relevance_probability(label_probabilities(logits_NC, 1.0), task)
    weight_1N = np.ones((1, len(positive_N)))
    metrics = {
        **ranking_metrics(probability_N, positive_N, weight_1N),
        **calibration_metrics(probability_N, positive_N, weight_1N),
    }
    return {"rows": len(positive_N), **{name: float(value[0]) for name, value in metrics.items()}}


def _mean(tasks: dict[str, dict[str, float]], name: str) -> float | None:
    return float(np.mean([metrics[name] for metrics in tasks.values()])) if tasks else None


def draw_rows(task_N: np.ndarray, num_tasks: int, task_rows: int, seed: int) -> np.ndarray:
    """Return the row numbers of at most `task_rows` random rows of each task."""
    random = np.random.Generator(np.random.Philox(key=seed))
    drawn = [random.permutation(np.flatnonzero(task_N == task))[:task_rows] for task in range(num_tasks)]
    return np.concatenate(drawn)
