"""The commands about registered versions; jobs/cli.py puts them beside the others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.command import ConfigOption, SetOption, execute

versions = typer.Typer()


@versions.command()
def register(config: ConfigOption, overrides: SetOption = None) -> None:
    """Register the evaluated model in MLflow as challenger."""
    from jobs.register import run_register

    execute(config, overrides, run_register)


@versions.command()
def promote(
    config: ConfigOption,
    version: Annotated[str, typer.Option("--version", help="Registered version to promote.", show_default=False)],
    override: Annotated[bool, typer.Option("--override", help="Promote it whatever the gate said; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the record.", show_default=False)] = None,
    overrides: SetOption = None,
) -> None:
    """Make a version champion if the gate let it pass, or the first one if it beats the lexical floor; exit 1 when it does not."""
    if override != (reason is not None):
        raise typer.BadParameter("--override and --reason go together", param_hint="--override")
    from jobs.register import run_promote

    execute(config, overrides, lambda c, console: run_promote(c, version, console, reason), locked=False)


@versions.command()
def rollback(
    config: ConfigOption,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Make the champion before this one champion again."""
    from jobs.register import run_rollback

    execute(config, overrides, lambda c, console: run_rollback(c, reason, console), locked=False)


@versions.command()
def history(config: ConfigOption, overrides: SetOption = None) -> None:
    """Print every promotion and rollback: who, when, why, figures."""
    from jobs.register import run_history

    execute(config, overrides, run_history, locked=False)


@versions.command()
def compare(
    config: ConfigOption,
    version: Annotated[str, typer.Argument(help="A registered version.", show_default=False)],
    other: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Measure two versions on the same test rows and print their differences."""
    from jobs.compare import run_compare

    execute(config, overrides, lambda c, console: run_compare(c, version, other, console))


@versions.command()
def report(
    config: ConfigOption,
    version: Annotated[str | None, typer.Option("--version", help="Registered version; the champion if not given.", show_default=False)] = None,
    overrides: SetOption = None,
) -> None:
    """Write one self-contained HTML page about a version: verdict, figures, curves, slices, drift, its surest errors."""
    from jobs.report import run_report

    execute(config, overrides, lambda c, console: run_report(c, version, console))


@versions.command()
def export(
    config: ConfigOption,
    task: Annotated[str, typer.Option("--task", help="Task to export.", show_default=False)],
    export_format: Annotated[Literal["peft", "merged"], typer.Option("--format", help="peft: a LoRA adapter. merged: full weights.")] = "peft",
    version: Annotated[str | None, typer.Option("--version", help="Registered version; the champion if not given.", show_default=False)] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder to write; below the run's folder if not given.", show_default=False)] = None,
    overrides: SetOption = None,
) -> None:
    """Write one task of a version as a PEFT LoRA adapter or as a plain model, for other tools to load."""
    from jobs.export import run_export

    execute(config, overrides, lambda c, console: run_export(c, task, export_format, version, out_dir, console))
