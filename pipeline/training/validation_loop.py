"""How a model does on the valid split while it is trained: macro PR-AUC over steps, the best weights kept, an
end when nothing gets better.

Shape legend: N rows, C labels of the finest task.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.encoding.batches import EncodedRows, collate, length_batches
from pipeline.evaluation.metrics import calibration_figures, ranking_figures
from pipeline.inference.calibration import label_probabilities, relevance_probability
from pipeline.training.step import TrainingDivergedError, Worker, any_rank


@dataclass(frozen=True)
class Best:
    """The evaluation that was best so far, and the weights it was of."""

    step: int
    macro_pr_auc: float
    log_loss: float  # mean over tasks; decides between equal macro PR-AUCs
    tensors: dict[str, torch.Tensor]

    def facts(self) -> dict[str, Any]:
        """All but the weights, as json."""
        return {"step": self.step, "macro_pr_auc": self.macro_pr_auc, "log_loss": self.log_loss}


class Interim:
    """Evaluations between steps, the same on all ranks: each judges its part of the rows, all see all
    logits.
    """

    def __init__(self, worker: Worker, valid: EncodedRows) -> None:
        """Of `valid` at most `training.evaluate_task_rows` rows a task are judged, the same ones each
        time.
        """
        training = worker.config.training
        self.worker, self.valid = worker, valid
        self.every = training.evaluate_every_steps or worker.sampler.batches_per_epoch
        self.rows_N = drawn_rows(
            valid.task_N, len(worker.config.tasks), training.evaluate_task_rows, worker.config.seed
        )
        tokens = (training.micro_batch_tokens or worker.config.scoring.batch_tokens) * worker.world_size
        self.batches = length_batches(valid.length_N[self.rows_N], tokens)  # positions in rows_N

    def due(self, step: int) -> bool:
        """Whether the model is judged after `step` steps."""
        return step > 0 and (step % self.every == 0 or step == self.worker.num_steps)

    def exhausted(self, best: Best | None, step: int) -> bool:
        """Whether `training.patience` evaluations in a row were no better than the best."""
        patience = self.worker.config.training.patience
        return (
            patience is not None
            and best is not None
            and step // self.every - best.step // self.every >= patience
        )

    def evaluate(self, step: int, asked_to_stop: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """Figures of each task that has both classes among its rows, and their means; None on all ranks as
        soon as one is asked to stop. All ranks must call it. TrainingDivergedError: logits are not finite.
        """
        logits_NC, tasks = self._logits(asked_to_stop), {}
        if logits_NC is None:
            return None
        for index, task in enumerate(self.worker.config.tasks):
            mine = np.flatnonzero(self.valid.task_N[self.rows_N] == index)
            positive_N = self.valid.label_N[self.rows_N[mine]] >= task.relevant_from
            if positive_N.all() or not positive_N.any():
                continue  # no row, or one class only: none of the figures is defined
            if not np.isfinite(logits_NC[mine, : len(task.labels)]).all():
                raise TrainingDivergedError(
                    f"logits of valid rows of {task.name} are not finite after step {step}; lower "
                    "optimizer.learning_rate"
                )
            probability_N = relevance_probability(
                label_probabilities(logits_NC[mine, : len(task.labels)], 1.0), task
            )
            ones = np.ones((1, len(mine)))
            figures = {
                **ranking_figures(probability_N, positive_N, ones),
                **calibration_figures(probability_N, positive_N, ones),
            }
            tasks[task.name] = {
                "rows": len(mine),
                **{name: float(value[0]) for name, value in figures.items()},
            }
        means = {
            f"macro_{name}": float(np.mean([figures[name] for figures in tasks.values()]))
            for name in ("pr_auc", "log_loss")
            if tasks
        }
        return {"evaluated_after": step, "tasks": tasks, **means}

    @torch.no_grad()
    def _logits(self, asked_to_stop: Callable[[], bool]) -> np.ndarray | None:
        """(N, C) of the rows drawn, in their order; None: asked to stop."""
        worker = self.worker
        worker.engine.eval()
        logits_NC = torch.zeros(
            len(self.rows_N), max(len(task.labels) for task in worker.config.tasks), dtype=torch.float64
        )
        for positions in self.batches:
            worker.watch.alive()
            if any_rank(asked_to_stop(), worker.judge.device):
                return None
            mine = positions[worker.rank :: worker.world_size]
            # a rank without a row goes along with one that counts for nothing: at ZeRO 3 the others wait for
            # it
            rows = self.rows_N[mine if len(mine) else positions[:1]]
            batch = collate(self.valid, rows, len(worker.config.tasks), worker.judge.pad_id).to(
                worker.judge.device
            )
            # compiling for a few batches would take longer than they do
            with torch.compiler.set_stance("force_eager"):
                of_batch = worker.engine(*batch.inputs).double().cpu()
            if len(mine):
                logits_NC[mine] = of_batch
        worker.engine.train()
        everything = logits_NC.to(worker.judge.device)
        torch.distributed.all_reduce(everything)
        return everything.cpu().numpy()


def better(figures: dict[str, Any], best: Best | None) -> bool:
    """Whether an evaluation is the best so far. One without a figure never is."""
    if "macro_pr_auc" not in figures:
        return False
    return best is None or (figures["macro_pr_auc"], -figures["macro_log_loss"]) > (
        best.macro_pr_auc,
        -best.log_loss,
    )


def drawn_rows(task_N: np.ndarray, num_tasks: int, task_rows: int, seed: int) -> np.ndarray:
    """Row numbers of at most `task_rows` rows of each task."""
    random = np.random.Generator(np.random.Philox(key=seed))
    drawn = [random.permutation(np.flatnonzero(task_N == task))[:task_rows] for task in range(num_tasks)]
    return np.concatenate(drawn)
