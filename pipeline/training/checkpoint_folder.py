"""Folder of a training's checkpoints: opened to resume, removed when the training is finished."""

import contextlib
import logging

from models.files import remove_tree
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.storage.filesystem import read_json, write_json
from pipeline.training.checkpoint import find_newest_checkpoint
from pipeline.training.plan import TrainingPlan, describe_changes

logger = logging.getLogger(__name__)

MAX_CHANGES_SHOWN = 8


def open_checkpoints(plan: TrainingPlan) -> None:
    """Create the folder of a training's checkpoints, or check that the existing one belongs to this training.

    Raises:
        ConfigError: The checkpoints belong to another training.
    """
    folder, inputs_path = plan.checkpoint_dir, plan.checkpoint_dir / "training.json"
    newest, problems = find_newest_checkpoint(folder)
    if newest is None:
        remove_tree(folder)
        folder.mkdir(parents=True)
        write_json(inputs_path, plan.inputs)
        for problem in problems:
            logger.warning(f"  no checkpoint is whole, training starts from the beginning: {problem}")
        return
    try:
        changes = describe_changes(read_json(inputs_path), plan.inputs)
    except (OSError, DamagedInputError) as error:
        raise ConfigError(
            f"{inputs_path} is missing or damaged, so the checkpoints may be another training's; "
            f"remove {folder}"
        ) from error
    if changes:
        raise ConfigError(
            f"{folder} holds an interrupted training with other settings: "
            f"{'; '.join(changes[:MAX_CHANGES_SHOWN])}. Restore its config to finish it, run under another "
            f"name, or remove {folder} to start from the beginning"
        )
    log_damaged(problems)
    logger.info(f"  resuming from {newest.name}")


def log_damaged(problems: list[str]) -> None:
    """Warn of damaged checkpoints that are skipped."""
    for problem in problems:
        logger.warning(f"  damaged checkpoint is ignored: {problem}")


def drop_checkpoints(plan: TrainingPlan) -> None:
    """Remove the checkpoints of a finished training; those of another training stay.

    There are some if the command was killed just after the bundle was published.
    """
    with contextlib.suppress(OSError, DamagedInputError):
        if read_json(plan.checkpoint_dir / "training.json") == plan.inputs:
            remove_tree(plan.checkpoint_dir)
