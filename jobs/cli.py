"""The `relevance` command. Commands import what they run when they run it, so that --help answers at once."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.environment import end_on_sigterm, prepare_environment
from jobs.execution import ConfigOption, SetOption, execute, guarded

app = typer.Typer(
    name="relevance",
    help=(
        "Query-ad relevance: train multi-task models with MTL-LoRA, promote versions, label pairs in batches."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's dashboard, as http://head:8265.",
        show_default=False,
    ),
]

SUBMITTED = ("score", "train", "run")


@app.command()
def demo(overrides: SetOption = None) -> None:
    """Run the whole path on made-up ads with embedded defaults, in ./runs/demo."""
    from jobs.commands.demo import DEMO_CONFIG, run_demo

    execute(DEMO_CONFIG, overrides, run_demo)


@app.command()
def run(config: ConfigOption, overrides: SetOption = None) -> None:
    """Run the whole path of a config: data, validation, training, evaluation, registry, promotion,
    scoring.
    """
    from jobs.commands.run import run_all

    execute(config, overrides, run_all)


@app.command()
def sample(
    out_dir: Annotated[
        Path,
        typer.Argument(
            help="Folder to write judged/, unlabelled/ and truth.parquet into.", show_default=False
        ),
    ],
    rows_per_task: Annotated[int, typer.Option(min=1, help="Judged pairs of each task.")] = 1000,
    unlabelled_rows_per_task: Annotated[
        int, typer.Option(min=0, help="Pairs of each task without a label, to be scored.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of every random draw.")] = 17,
) -> None:
    """Write the made-up ads marketplace as contract rows."""
    from jobs.commands.data import sample as write_sample

    guarded(lambda console: write_sample(out_dir, rows_per_task, unlabelled_rows_per_task, seed, console))


@app.command(name="import")
def import_(
    kind: Annotated[
        str,
        typer.Argument(
            help="esci, wands: a folder. chorus, qadsm: a file. table: any table, by --mapping.",
            show_default=False,
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The folder or file to read.", show_default=False)],
    out_dir: Annotated[
        Path, typer.Argument(help="Folder to write task=<name>/*.parquet into.", show_default=False)
    ],
    mapping: Annotated[
        Path | None,
        typer.Option("--mapping", help="table: YAML with its task, columns and labels.", show_default=False),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="qadsm: two letters; by the file's name if not given.")
    ] = None,
) -> None:
    """Turn judged pairs into contract rows; lines that cannot be rows go to OUT_DIR/quarantine with a
    reason.
    """
    from jobs.commands.data import import_source

    guarded(lambda console: import_source(kind, path, out_dir, console, mapping, language))


@app.command()
def validate(config: ConfigOption, overrides: SetOption = None) -> None:
    """Judge the config's rows with Great Expectations; exit 1 when they are refused."""
    from jobs.commands.validate import run_validate

    execute(config, overrides, run_validate)


@app.command()
def train(config: ConfigOption, overrides: SetOption = None) -> None:
    """Validate the rows, then train on Ray workers with DeepSpeed; ends with a model bundle."""
    from jobs.commands.train import run_train
    from jobs.commands.validate import run_validate

    execute(config, overrides, lambda c, console: {**run_validate(c, console), **run_train(c, console)})


@app.command()
def evaluate(
    config: ConfigOption,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Registered version to judge by the gate.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="Version it is compared with; champion if not given.", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Calibrate and measure the trained model; with --version: compare it with the champion by the gate's
    rules, exit 1 when it is refused.
    """
    if version is not None:
        from jobs.commands.gate import run_gate

        execute(
            config, overrides, lambda c, console: run_gate(c, str(version), against or "champion", console)
        )
        return
    if against is not None:
        raise typer.BadParameter("it needs --version, the one to judge", param_hint="--against")
    from jobs.commands.evaluate import evaluation_table, run_evaluate

    def stage(c: Any, console: Any) -> dict[str, Any]:
        result = run_evaluate(c, console)
        figures = result.pop("figures")
        console.result(evaluation_table(figures))
        return {**result, "macro_pr_auc": figures["macro_pr_auc"]["model"]["value"]}

    execute(config, overrides, stage)


@app.command()
def score(
    config: ConfigOption,
    logical_date: Annotated[
        str | None,
        typer.Option("--logical-date", help="The day of {date} in data.to_score.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", help="Score each day from --logical-date to this one.", show_default=False),
    ] = None,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="Label each pair for every task, not just that of its folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be scored, and how long it would take.")
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Label every pair that the champion has not labelled yet, each exactly once, or once for every task."""
    if until is not None and logical_date is None:
        raise typer.BadParameter("it needs --logical-date, the day to begin with", param_hint="--until")
    from jobs.commands.score import dates_between, read_date, run_backfill, run_plan, run_score

    def stage(c: Any, console: Any) -> dict[str, Any]:
        if dry_run:
            days = (
                [None] if logical_date is None else list(dates_between(logical_date, until or logical_date))
            )
            return run_plan(c, console, days, all_tasks)
        if until is not None:
            return run_backfill(c, console, str(logical_date), until, all_tasks)
        return run_score(c, console, logical_date and read_date(logical_date).isoformat(), all_tasks)

    execute(config, overrides, stage, locked=not dry_run)


@app.command()
def submit(
    command: Annotated[str, typer.Argument(help="score, train or run.", show_default=False)],
    config: ConfigOption,
    address: AddressOption,
    logical_date: Annotated[
        str | None, typer.Option("--logical-date", help="score: the day of {date}.", show_default=False)
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", help="score: the last day, from --logical-date on.", show_default=False),
    ] = None,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="score: label each pair for every task.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Also where the same has succeeded before.")] = False,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Return once it is submitted; else follow it, and end as it ends."),
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Run a command as a job of a Ray cluster; submitted again while it runs, or after it succeeded, it is
    that job.

    Paths in the config must be absolute, and seen by the cluster's machines, or s3://bucket/prefix: relative
    ones are refused.
    """
    if command not in SUBMITTED:
        raise typer.BadParameter(
            f"{command!r} is not submitted; known: {', '.join(SUBMITTED)}", param_hint="COMMAND"
        )
    dates = {"--logical-date": logical_date, "--until": until}
    for option, given in (("--logical-date", any(dates.values())), ("--all-tasks", all_tasks)):
        if command != "score" and given:
            raise typer.BadParameter(f"{command} takes none; it is for score", param_hint=option)
    words = [
        command,
        *(word for name, day in dates.items() if day is not None for word in (name, day)),
        *["--all-tasks"] * all_tasks,
    ]

    def work(console: Any) -> dict[str, Any]:
        from jobs.commands.submit import run_submit
        from jobs.submit_paths import check_paths
        from pipeline.config.loading import build_config, read_settings

        given = read_settings(config, overrides or [])
        checked = build_config(given, str(config))
        check_paths(checked, given)
        return run_submit(checked, console, words, address, again, not no_wait)

    guarded(work)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="A job, as submit and status name it.", show_default=False)],
    address: AddressOption,
) -> None:
    """Print what a submitted job says, to its end, and end as it ends."""
    from jobs.commands.submit import run_logs

    guarded(lambda console: run_logs(job, console, address))


@app.command()
def status(
    runs_dir: Annotated[Path, typer.Argument(help="The work_dir that runs write into.")] = Path("runs"),
    address: Annotated[
        str | None,
        typer.Option("--address", help="List the jobs of this Ray cluster instead.", show_default=False),
    ] = None,
) -> None:
    """List the runs of a folder: state, step, rate, time left, best evaluation."""
    if address is not None:
        from jobs.commands.submit import list_jobs

        guarded(lambda console: list_jobs(str(address), console))
        return
    from jobs.commands.status import run_status

    guarded(lambda console: run_status(runs_dir, console))


@app.command()
def register(config: ConfigOption, overrides: SetOption = None) -> None:
    """Register the evaluated model in MLflow as challenger."""
    from jobs.commands.versions import run_register

    execute(config, overrides, run_register)


@app.command()
def promote(
    config: ConfigOption,
    version: Annotated[
        str, typer.Option("--version", help="Registered version to promote.", show_default=False)
    ],
    override: Annotated[
        bool, typer.Option("--override", help="Promote it whatever the gate said; needs --reason.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, for the record.", show_default=False)
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Make a version champion if the gate let it pass, or the first one if it beats the lexical floor; exit 1
    when it does not.
    """
    if override != (reason is not None):
        raise typer.BadParameter("--override and --reason go together", param_hint="--override")
    from jobs.commands.versions import run_promote

    execute(config, overrides, lambda c, console: run_promote(c, version, console, reason), locked=False)


@app.command()
def rollback(
    config: ConfigOption,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Make the champion before this one champion again."""
    from jobs.commands.versions import run_rollback

    execute(config, overrides, lambda c, console: run_rollback(c, reason, console), locked=False)


@app.command()
def history(config: ConfigOption, overrides: SetOption = None) -> None:
    """Print every promotion and rollback: who, when, why, figures."""
    from jobs.commands.versions import run_history

    execute(config, overrides, run_history, locked=False)


@app.command()
def compare(
    config: ConfigOption,
    version: Annotated[str, typer.Argument(help="A registered version.", show_default=False)],
    other: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Measure two versions on the same test rows and print their differences."""
    from jobs.commands.gate import run_compare

    execute(config, overrides, lambda c, console: run_compare(c, version, other, console))


@app.command()
def report(
    config: ConfigOption,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Registered version; the champion if not given.", show_default=False),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write one self-contained HTML page about a version: verdict, figures, curves, slices, drift, its surest
    errors.
    """
    from jobs.commands.report import run_report

    execute(config, overrides, lambda c, console: run_report(c, version, console))


@app.command()
def export(
    config: ConfigOption,
    task: Annotated[str, typer.Option("--task", help="Task to export.", show_default=False)],
    export_format: Annotated[
        Literal["peft", "merged"],
        typer.Option("--format", help="peft: a LoRA adapter. merged: full weights."),
    ] = "peft",
    version: Annotated[
        str | None,
        typer.Option("--version", help="Registered version; the champion if not given.", show_default=False),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder to write; below the run's folder if not given.", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write one task of a version as a PEFT LoRA adapter or as a plain model, for other tools to load."""
    from jobs.commands.export import run_export

    execute(
        config, overrides, lambda c, console: run_export(c, task, export_format, version, out_dir, console)
    )


def main() -> None:
    """Entry point of the `relevance` command."""
    prepare_environment()
    end_on_sigterm()
    try:
        app()
    except KeyboardInterrupt:  # before the command's own work began
        raise SystemExit(3) from None


if __name__ == "__main__":
    main()
