"""Events of a training with plausible values."""

from typing import Any

from pipeline.training.event_log import BestEvaluation, EvaluationEvent, StartEvent, StepEvent


def make_start(starts_after: int = 0, best: BestEvaluation | None = None) -> StartEvent:
    """Build the event of a start."""
    return StartEvent(
        starts_after=starts_after, best=best, tokens_shared=(4, 4), seconds={"model": 1.0}, at_s=0.0
    )


def make_step(step: int = 1, **fields: Any) -> StepEvent:
    """Build the event of a step."""
    values: dict[str, Any] = {
        "num_steps": 100,
        "rows": 2,
        "loss": 0.5,
        "task_losses": {"two": 0.4},
        "learning_rate": 0.01,
        "rows_per_s": 8.0,
        "tokens_per_s": 80.0,
        "tokens": 10,
        "tokens_computed": 12,
        "padding": 2,
        "mfu": 0.3,
        "at_s": float(step),
        "step_s": 0.25,
        "seconds": {"forward": 0.1},
        "gradient_norm": 1.0,
        "group_gradient_norms": {"heads": 0.2},
    }
    return StepEvent(step=step, **{**values, **fields})


def make_evaluation(evaluated_after: int = 1, **fields: Any) -> EvaluationEvent:
    """Build the event of an evaluation."""
    values: dict[str, Any] = {
        "tasks": {"two": {"rows": 9, "pr_auc": 0.8, "roc_auc": 0.7, "log_loss": 0.6, "brier": 0.2}},
        "macro_pr_auc": 0.8,
        "macro_log_loss": 0.6,
        "is_best": True,
        "seconds": 0.5,
        "at_s": float(evaluated_after),
    }
    return EvaluationEvent(evaluated_after=evaluated_after, **{**values, **fields})
