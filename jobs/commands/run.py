"""`relevance run`: the whole path, stage by stage."""

from typing import Any

from jobs.commands.data import bring_in
from jobs.commands.evaluate import evaluation_table, run_evaluate
from jobs.commands.gate import gate_against_champion
from jobs.commands.score import run_score
from jobs.commands.train import run_train
from jobs.commands.validate import run_validate
from jobs.commands.versions import check_not_left, run_promote, run_register
from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.scoring.work_units import on_date


def run_all(config: RunConfig, console: Console) -> dict[str, Any]:
    """Rows in, labels out. A stage that was finished before, of the same config and data, is not done
    again.
    """
    on_date(config, None)  # or scoring would be refused after all else
    console.say("1/7 data")
    bring_in(config, console)
    console.say("2/7 validation")
    validated = run_validate(config, console)
    console.say("3/7 training")
    trained = run_train(config, console)
    console.say("4/7 evaluation and calibration")
    evaluated = run_evaluate(config, console)
    figures = evaluated.pop("figures")
    console.say("5/7 registry")
    registered = run_register(config, console)
    console.say("6/7 gate and promotion")
    check_not_left(config, registered["version"])
    gate_against_champion(config, registered["version"], console)
    promoted = run_promote(config, registered["version"], console)
    console.say("7/7 scoring")
    scored = run_score(config, console)
    console.result(evaluation_table(figures))
    macro = figures["macro_pr_auc"]["model"]["value"]
    return {
        "name": config.name,
        **validated,
        **trained,
        **evaluated,
        **registered,
        **promoted,
        **scored,
        "macro_pr_auc": macro,
    }
