"""`relevance run`: the whole path, stage by stage."""

from typing import Any

from jobs.command_run import CommandRun
from jobs.commands.data import import_sources
from jobs.commands.evaluate import evaluate_trained, evaluation_summary, evaluation_table
from jobs.commands.gate import gate_against_champion
from jobs.commands.score import run_score
from jobs.commands.train import run_train
from jobs.commands.validate import run_validate
from jobs.commands.versions import check_not_rolled_back, run_promote, run_register
from pipeline.config.run import RunConfig
from pipeline.scoring.work_units import insert_date
from pipeline.training.backbone_checks import check_backbone


def run_all(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Import, validate, train, evaluate, register, promote, score.

    A finished stage of the same config and data is not repeated.
    """
    # a config that cannot be trained or scored is refused here, before the import
    check_backbone(config.backbone, config.adapter, config.encode, config.tasks)
    insert_date(config.to_score_location, None)
    run.begin_stage("1/7 data")
    import_sources(config, run)
    run.begin_stage("2/7 validation")
    validated = run_validate(config, run)
    run.begin_stage("3/7 training")
    trained = run_train(config, run)
    run.begin_stage("4/7 evaluation and calibration")
    evaluation = evaluate_trained(config, run)
    run.begin_stage("5/7 registry")
    registered = run_register(config, run)
    run.begin_stage("6/7 gate and promotion")
    check_not_rolled_back(config, registered["version"])
    gate_against_champion(config, registered["version"], run)
    promoted = run_promote(config, registered["version"], run)
    run.begin_stage("7/7 scoring")
    scored = run_score(config, run)
    run.result(*evaluation_table(evaluation))
    return {
        "name": config.name,
        **validated,
        **trained,
        **evaluation_summary(config, evaluation, run),
        **registered,
        **promoted,
        **scored,
        "next": run.suggest("report"),
    }
