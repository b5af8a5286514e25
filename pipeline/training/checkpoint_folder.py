"""Open the checkpoints of an interrupted training, and drop those of a finished one."""

import contextlib
from collections.abc import Callable

from pipeline.errors import ConfigError, DamagedInputError
from pipeline.storage.filesystem import read_json, remove_tree, write_json
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.plan import TrainingPlan, changes


def open_checkpoints(plan: TrainingPlan, say: Callable[[str], None]) -> None:
    """Make the folder of a training's checkpoints, or go on with the one that is there. ConfigError: it is
    another training's.
    """
    folder, of_training = plan.checkpoint_dir, plan.checkpoint_dir / "training.json"
    newest, problems = newest_checkpoint(folder)
    if newest is None:
        remove_tree(folder)
        folder.mkdir(parents=True)
        write_json(of_training, plan.facts)
        for problem in problems:
            say(f"  no checkpoint is whole, starting anew: {problem}")
        return
    try:
        changed = changes(read_json(of_training), plan.facts)
    except (OSError, DamagedInputError) as error:
        raise ConfigError(
            f"{of_training} is gone or damaged, so these may be another training's checkpoints; remove "
            f"{folder}"
        ) from error
    if changed:
        raise ConfigError(
            f"{folder} holds an interrupted training that was other than this one: "
            f"{'; '.join(changed[:8])}. Go back to its config to finish it,"
            f" run under another name, or remove {folder} to start anew"
        )
    for problem in problems:
        say(f"  a damaged checkpoint is passed over: {problem}")
    say(f"  going on from {newest.name}")


def drop_checkpoints(plan: TrainingPlan) -> None:
    """Remove what a finished training left: there is something if its command was killed just after the
    bundle was published. Checkpoints of another training stay.
    """
    with contextlib.suppress(OSError, DamagedInputError):
        if read_json(plan.checkpoint_dir / "training.json") == plan.facts:
            remove_tree(plan.checkpoint_dir)
