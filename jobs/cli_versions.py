"""Commands about versions: registry, promotion log, comparison, export, single predictions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.execution import CommandSpec, execute
from jobs.options import (
    AdDescriptionOption,
    AdKeywordOption,
    ConfigOption,
    ExportFormatOption,
    InsecureOption,
    LandingPageOption,
    MarketOption,
    ReasonOption,
    SetOption,
    TaskOption,
    VersionOption,
)


def register(config: ConfigOption, overrides: SetOption = None) -> None:
    """Register the evaluated model in MLflow as challenger."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.versions import run_register

        return run_register(config, run)

    execute(CommandSpec("register"), config, overrides, stage)


def promote(
    config: ConfigOption,
    version: Annotated[
        str, typer.Option("--version", help="Registered version to promote.", show_default=False)
    ],
    override: Annotated[
        bool, typer.Option("--override", help="Promote against the gate's verdict; needs --reason.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Reason, kept in the promotion log.", show_default=False),
    ] = None,
    begin_log: Annotated[
        bool,
        typer.Option(
            "--begin-log",
            help="Begin a new promotion log where MLflow knows of a lost one; needs --override.",
        ),
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Make a version champion if it passed the gate, or, as the first one, beats the lexical floor."""
    if override != (reason is not None):
        raise typer.BadParameter("--override and --reason go together", param_hint="--override")
    if begin_log and not override:
        raise typer.BadParameter(
            "--begin-log leaves earlier champions out of the gate; it needs --override and --reason",
            param_hint="--begin-log",
        )

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.versions import run_promote

        return run_promote(config, version, run, reason, begin_log)

    execute(CommandSpec("promote", is_exclusive=False), config, overrides, stage)


def rollback(config: ConfigOption, reason: ReasonOption, overrides: SetOption = None) -> None:
    """Make the previous champion champion again."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.versions import run_rollback

        return run_rollback(config, reason, run)

    execute(CommandSpec("rollback", is_exclusive=False), config, overrides, stage)


def history(
    config: ConfigOption,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the promotion log: chain, bundles, MLflow's aliases and tags."),
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Print every promotion and rollback: who, when, why, metrics."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.versions import run_history

        return run_history(config, run, verify)

    execute(CommandSpec("history", is_exclusive=False), config, overrides, stage)


def compare(
    config: ConfigOption,
    version: Annotated[str, typer.Argument(help="A registered version.", show_default=False)],
    other: Annotated[str, typer.Argument(help="Another registered version.", show_default=False)],
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Measure two versions on the same test rows; print their differences and write the page of `report`."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.report import run_compare

        return run_compare(config, version, other, run)

    execute(CommandSpec("compare"), config, overrides, stage)


def recalibrate(
    config: ConfigOption,
    target_precision: Annotated[
        float,
        typer.Option("--target-precision", help="New target of every task.", show_default=False),
    ],
    version: VersionOption = None,
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Fit calibration and thresholds for another target, without training; registers a gated version."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.recalibrate import run_recalibrate

        return run_recalibrate(config, target_precision, version, run)

    execute(CommandSpec("recalibrate"), config, overrides, stage)


def report(
    config: ConfigOption,
    version: VersionOption = None,
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Write one self-contained HTML page about a version, and its suspected label errors as csv beside it."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.report import run_report

        return run_report(config, version, run)

    execute(CommandSpec("report"), config, overrides, stage)


def export(
    config: ConfigOption,
    task: TaskOption,
    export_format: ExportFormatOption = "peft",
    version: VersionOption = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder to write; default: in the run folder's exports/.", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write one task of a version as a PEFT LoRA adapter or as a plain model, for other tools to load.

    The export is loaded back and must give the model's logits before it is published. That takes the time of
    a second load; memory holds one model at a time.
    """

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.export import run_export

        return run_export(config, task, export_format, version, out_dir, run)

    execute(CommandSpec("export"), config, overrides, stage)


def predict(
    config: ConfigOption,
    task: TaskOption,
    query: Annotated[str, typer.Option("--query", help="Text of the search.", show_default=False)],
    ad_title: Annotated[str, typer.Option("--ad-title", help="Title of the ad.", show_default=False)],
    ad_description: AdDescriptionOption = None,
    ad_keyword: AdKeywordOption = None,
    landing_page: LandingPageOption = None,
    market: MarketOption = None,
    version: VersionOption = None,
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Print one pair's text as the model reads it, its probability, thresholds and decision."""

    texts = {
        "query": query,
        "ad_title": ad_title,
        "ad_description": ad_description,
        "ad_keyword": ad_keyword,
        "landing_page": landing_page,
        "market": market,
    }
    pair = {name: text for name, text in texts.items() if text is not None}

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.predict import run_predict

        return run_predict(config, task, pair, version, run)

    execute(CommandSpec("predict", is_exclusive=False), config, overrides, stage)


VERSION_COMMANDS = (register, promote, rollback, history, compare, recalibrate, report, export, predict)
