"""The `relevance` command. Each command imports its code when it runs, so that --help answers at once."""

import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from jobs.cli_labels import LABEL_COMMANDS
from jobs.cli_versions import VERSION_COMMANDS
from jobs.cluster import INSECURE
from jobs.environment import (
    check_arguments,
    end_on_signals,
    open_closed_streams,
    prepare_environment,
    restrict_file_modes,
    typed_command,
    use_utf8,
)
from jobs.execution import CommandSpec, execute, execute_unrecorded, execute_without_config
from jobs.options import (
    DEMO_CONFIG,
    AddressOption,
    AllTasksOption,
    ConfigOption,
    InsecureOption,
    LogicalDateOption,
    SetOption,
    UntilOption,
    check_against,
    check_days,
)
from jobs.supervisor import run_supervised
from pipeline.errors import ConfigError

app = typer.Typer(
    name="relevance",
    help=(
        "Query-ad relevance: train multi-task models with MTL-LoRA, promote versions, label pairs in batches."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TYPER_INTERRUPTED = 130  # exit code

SUBMITTED = ("run", "validate", "train", "evaluate", "register", "promote", "rollback", "score")


@app.command()
def demo(overrides: SetOption = None, insecure: InsecureOption = False) -> None:
    """Run the whole path on synthetic ads with embedded defaults, in ./runs/demo."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.demo import run_demo

        return run_demo(config, run)

    execute(CommandSpec("demo"), DEMO_CONFIG, overrides, stage)


@app.command()
def run(config: ConfigOption, overrides: SetOption = None, insecure: InsecureOption = False) -> None:
    """Run the whole path: data, validation, training, evaluation, registry, promotion, scoring."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.run import run_all

        return run_all(config, run)

    execute(CommandSpec("run"), config, overrides, stage)


@app.command()
def sample(
    out_dir: Annotated[
        Path,
        typer.Argument(help="Folder to write judged/, unlabelled/, truth.parquet into.", show_default=False),
    ],
    rows_per_task: Annotated[int, typer.Option(min=1, help="Judged pairs of each task.")] = 1000,
    unlabelled_rows_per_task: Annotated[
        int, typer.Option(min=0, help="Unlabelled pairs of each task, to be scored.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 17,
) -> None:
    """Write a synthetic ads marketplace as contract rows."""
    from jobs.commands.data import sample as write_sample

    execute_without_config(
        "sample", lambda run: write_sample(out_dir, rows_per_task, unlabelled_rows_per_task, seed, run)
    )


@app.command(name="import")
def import_(
    kind: Annotated[
        str,
        typer.Argument(
            help="esci, wands: a folder. chorus, qadsm: a file. table: any table, by --mapping.",
            show_default=False,
        ),
    ],
    path: Annotated[Path, typer.Argument(help="Folder or file to read.", show_default=False)],
    out_dir: Annotated[
        str,
        typer.Argument(
            help="Folder, or s3://bucket/prefix, to write task=<name>/*.parquet into.", show_default=False
        ),
    ],
    mapping: Annotated[
        Path | None,
        typer.Option("--mapping", help="table: YAML with task, columns and labels.", show_default=False),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="qadsm: two letters; default: from the file's name.")
    ] = None,
) -> None:
    """Convert judged pairs into contract rows; rejected records go to OUT_DIR/quarantine with a reason."""
    from jobs.commands.data import import_source

    execute_without_config("import", lambda run: import_source(kind, path, out_dir, run, mapping, language))


@app.command()
def validate(config: ConfigOption, overrides: SetOption = None, insecure: InsecureOption = False) -> None:
    """Check the judged rows with Great Expectations; exit 1 if they are refused."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.data import import_sources
        from jobs.commands.validate import run_validate

        import_sources(config, run)
        return run_validate(config, run)

    execute(CommandSpec("validate"), config, overrides, stage)


@app.command()
def train(config: ConfigOption, overrides: SetOption = None, insecure: InsecureOption = False) -> None:
    """Validate the rows, then train on Ray workers with DeepSpeed; writes a model bundle."""

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.data import import_sources
        from jobs.commands.train import run_train
        from jobs.commands.validate import run_validate

        import_sources(config, run)
        return {**run_validate(config, run), **run_train(config, run)}

    execute(CommandSpec("train"), config, overrides, stage)


@app.command()
def evaluate(
    config: ConfigOption,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Registered version to check with the gate.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="Version to compare it with; default: the champion.", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Calibrate and measure the trained model. With --version: run the promotion gate, exit 1 if refused."""
    check_against(version, against)

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.data import import_sources
        from jobs.commands.evaluate import run_evaluate
        from jobs.commands.gate import run_gate

        import_sources(config, run)
        if version is not None:
            return run_gate(config, version, against or "champion", run)
        return run_evaluate(config, run)

    execute(CommandSpec("evaluate"), config, overrides, stage)


@app.command()
def score(
    config: ConfigOption,
    logical_date: LogicalDateOption = None,
    until: UntilOption = None,
    all_tasks: AllTasksOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be scored, and how long it would take.")
    ] = False,
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Label every pair that the champion has not labelled yet, exactly once for each task asked for."""
    check_days(logical_date, until)

    def stage(config: Any, run: Any) -> dict[str, Any]:
        from jobs.commands.score import requested_days, run_backfill, run_plan, run_score

        days = requested_days(logical_date, until)
        if dry_run:
            return run_plan(config, run, days, all_tasks)
        if until is not None:
            return run_backfill(config, run, str(logical_date), until, all_tasks)
        return run_score(config, run, days[0], all_tasks)

    execute(
        CommandSpec("score --dry-run" if dry_run else "score", is_exclusive=not dry_run),
        config,
        overrides,
        stage,
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    command: Annotated[
        str, typer.Argument(help=f"{', '.join(SUBMITTED)}; its own options may follow.", show_default=False)
    ],
    config: ConfigOption,
    address: AddressOption,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Submit even if the same job succeeded; what depends on more than the config is."
        ),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Return after submitting; default: follow the job to its end."),
    ] = False,
    overrides: SetOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Run a command as a job of a Ray cluster; a job that still runs is not started twice.

    The command's own options follow it: `relevance submit promote --version 3 --config C --address A`.
    Paths in the config must be absolute and seen by the cluster's machines, or s3://bucket/prefix.
    """
    words = _check_submitted(command, config, context.args)

    def work(run: Any) -> dict[str, Any]:
        from jobs.commands.submit import run_submit
        from jobs.submit_paths import check_paths
        from pipeline.config.loading import build_config, read_settings

        given = read_settings(config, overrides or [])
        checked = build_config(given, str(config))
        check_paths(checked, given)
        return run_submit(checked, run, words, address, again, not no_wait)

    execute_unrecorded(work)


def _check_submitted(command: str, config: Path, options: list[str]) -> list[str]:
    """Return the words of a command to submit without its config.

    Raises:
        UsageError: The command is not known or does not take these options.
    """
    if command not in SUBMITTED:
        raise typer.BadParameter(
            f"{command!r} cannot be submitted; known: {', '.join(SUBMITTED)}", param_hint="COMMAND"
        )
    known: Any = typer.main.get_command(app)
    parser = known.commands[command]
    parsed = parser.make_context(f"relevance {command}", ["--config", str(config), *options]).params
    check_days(parsed.get("logical_date"), parsed.get("until"))
    check_against(parsed.get("version"), parsed.get("against"))
    takes_insecure = any("--insecure" in parameter.opts for parameter in parser.params)
    is_insecure = takes_insecure and os.environ.get(INSECURE) == "1"  # submit's own option has set it
    return [command, *options, *(["--insecure"] if is_insecure else [])]


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="Job id, from submit or status.", show_default=False)],
    address: AddressOption,
    insecure: InsecureOption = False,
) -> None:
    """Print the output of a submitted job to its end, and exit with its code."""
    from jobs.commands.submit import run_logs

    execute_unrecorded(lambda run: run_logs(job, run, address))


@app.command()
def status(
    work_dir: Annotated[Path, typer.Argument(help="The work_dir of the runs.")] = Path("runs"),
    address: Annotated[
        str | None,
        typer.Option("--address", help="List the jobs of this Ray cluster instead.", show_default=False),
    ] = None,
    insecure: InsecureOption = False,
) -> None:
    """List the run folders of a work_dir: last command, state, progress, best evaluation."""
    if address is not None:
        from jobs.commands.submit import list_jobs

        execute_unrecorded(lambda run: list_jobs(str(address), run))
        return
    from jobs.commands.status import run_status

    execute_unrecorded(lambda run: run_status(work_dir, run))


@app.command()
def runs(
    target: Annotated[str, typer.Argument(help="A work_dir to list, or a run id to show.")] = "runs",
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Where a run id is looked up.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON object.")] = False,
) -> None:
    """List all recorded commands, newest first; with a run id: one command, its errors and the next step."""
    from jobs.commands.runs import run_runs

    execute_unrecorded(lambda run: run_runs(target, work_dir, as_json, run))


for other_command in (*VERSION_COMMANDS, *LABEL_COMMANDS):
    app.command()(other_command)


def main() -> None:
    """Entry point of the `relevance` command."""
    open_closed_streams()
    use_utf8()
    restrict_file_modes()
    end_on_signals()
    run_supervised(_run)


def _run() -> None:
    try:
        check_arguments()
        prepare_environment()
        app()
    except ConfigError as error:
        _exit(error.exit_code, str(error))
    except (KeyboardInterrupt, SystemExit) as error:  # Typer turns the first one into the second
        if isinstance(error, SystemExit) and error.code != TYPER_INTERRUPTED:
            raise
        from jobs.run_texts import interruption_reason, repetition_exit_code

        _exit(repetition_exit_code(typed_command()), interruption_reason(typed_command()))


def _exit(code: int, reason: str) -> NoReturn:
    from jobs.console import Console

    Console().say(f"error: {reason}")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
