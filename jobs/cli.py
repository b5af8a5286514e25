"""The `relevance` command. Commands import what they run when they run it, so that --help answers at once."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.environment import end_on_sigterm, prepare_environment

app = typer.Typer(
    name="relevance",
    help="Query-ad relevance: train multi-task models with MTL-LoRA, promote versions, label pairs in batches.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML config of the run.", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting, as in optimizer.learning_rate=1e-4. Repeatable.")]
SOURCE_KINDS = ("esci", "chorus", "wands", "qadsm", "table")
LOCK_WAIT_S = 0.5  # `relevance status` looks at locks
Stage = Callable[[Any, Any], dict[str, Any]]


@app.command()
def demo(overrides: SetOption = None) -> None:
    """Run the whole path on made-up ads with embedded defaults, in ./runs/demo."""
    from jobs.demo import DEMO_CONFIG, run_demo

    execute(DEMO_CONFIG, overrides, run_demo)


@app.command()
def run(config: ConfigOption, overrides: SetOption = None) -> None:
    """Run the whole path of a config: data, validation, training, evaluation, registry, promotion, scoring."""
    from jobs.run import run_all

    execute(config, overrides, run_all)


@app.command()
def sample(
    out_dir: Annotated[Path, typer.Argument(help="Folder to write judged/, unlabelled/ and truth.parquet into.", show_default=False)],
    rows_per_task: Annotated[int, typer.Option(min=1, help="Judged pairs of each task.")] = 1000,
    unlabelled_rows_per_task: Annotated[int, typer.Option(min=0, help="Pairs of each task without a label, to be scored.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of every random draw.")] = 17,
) -> None:
    """Write the made-up ads marketplace as contract rows."""
    from jobs.sources import sample as write_sample

    guarded(lambda console: write_sample(out_dir, rows_per_task, unlabelled_rows_per_task, seed, console))


@app.command(name="import")
def import_(
    kind: Annotated[str, typer.Argument(help="esci, wands: a folder. chorus, qadsm: a file. table: any table, by --mapping.", show_default=False)],
    path: Annotated[Path, typer.Argument(help="The folder or file to read.", show_default=False)],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write task=<name>/*.parquet into.", show_default=False)],
    mapping: Annotated[Path | None, typer.Option("--mapping", help="table: YAML with its task, columns and labels.", show_default=False)] = None,
    language: Annotated[str | None, typer.Option("--language", help="qadsm: two letters; by the file's name if not given.")] = None,
) -> None:
    """Turn judged pairs into contract rows; lines that cannot be rows go to OUT_DIR/quarantine with a reason."""
    if kind not in SOURCE_KINDS:
        raise typer.BadParameter(f"{kind!r} is not a source; known: {', '.join(SOURCE_KINDS)}", param_hint="KIND")
    for option, value, of_kind in (("--mapping", mapping, "table"), ("--language", language, "qadsm")):
        if value is not None and kind != of_kind:
            raise typer.BadParameter(f"{kind} takes none; it is for {of_kind}", param_hint=option)
    if kind == "table" and mapping is None:
        raise typer.BadParameter("a table needs one: which of its columns is the query, the title, the label", param_hint="--mapping")
    from jobs.sources import import_source

    guarded(lambda console: import_source(kind, path, out_dir, console, mapping, language))


@app.command()
def validate(config: ConfigOption, overrides: SetOption = None) -> None:
    """Judge the config's rows with Great Expectations; exit 1 when they are refused."""
    from jobs.validate import run_validate

    execute(config, overrides, run_validate)


@app.command()
def train(config: ConfigOption, overrides: SetOption = None) -> None:
    """Validate the rows, then train on Ray workers with DeepSpeed; ends with a model bundle."""
    from jobs.train import run_train
    from jobs.validate import run_validate

    execute(config, overrides, lambda c, console: {**run_validate(c, console), **run_train(c, console)})


@app.command()
def evaluate(config: ConfigOption, overrides: SetOption = None) -> None:
    """Calibrate the trained model on the valid split and measure it on the test split."""
    from jobs.evaluate import evaluation_table, run_evaluate

    def stage(c: Any, console: Any) -> dict[str, Any]:
        result = run_evaluate(c, console)
        figures = result.pop("figures")
        console.result(evaluation_table(figures))
        return {**result, "macro_pr_auc": figures["macro_pr_auc"]["model"]["value"]}

    execute(config, overrides, stage)


@app.command()
def register(config: ConfigOption, overrides: SetOption = None) -> None:
    """Register the evaluated model in MLflow as challenger."""
    from jobs.register import run_register

    execute(config, overrides, run_register)


@app.command()
def promote(
    config: ConfigOption,
    version: Annotated[str, typer.Option("--version", help="Registered version to promote.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Make a version champion if it beats the lexical floor; exit 1 when it does not."""
    from jobs.register import run_promote

    execute(config, overrides, lambda c, console: run_promote(c, version, console))


@app.command()
def score(config: ConfigOption, overrides: SetOption = None) -> None:
    """Label every pair that the champion has not labelled yet, each exactly once."""
    from jobs.score import run_score

    execute(config, overrides, run_score)


@app.command()
def status(
    runs_dir: Annotated[Path, typer.Argument(help="The work_dir that runs write into.")] = Path("runs"),
) -> None:
    """List the runs of a folder: state, step, rate, time left, best evaluation."""
    from jobs.status import run_status

    guarded(lambda console: run_status(runs_dir, console))


@app.command()
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


def execute(config_path: Path, overrides: list[str] | None, stage: Stage) -> None:
    """Run one stage under the config's lock, third-party output in the run's log file."""
    from pipeline.errors import RetryableError

    def with_config(console: Any) -> dict[str, Any]:
        from filelock import FileLock, Timeout

        from pipeline.config import read_config
        from pipeline.logs import third_parties_in

        config = read_config(config_path, overrides or [])
        config.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(config.run_dir / ".lock", timeout=LOCK_WAIT_S):
                log_path = config.run_dir / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}.log"
                console.say(f"run {config.name}: writing to {config.run_dir}, libraries' output to {log_path}")
                with third_parties_in(log_path) as inner:
                    return stage(config, inner)
        except Timeout as error:
            busy = f"another relevance command is working in {config.run_dir}"
            raise RetryableError(f"{busy}; wait for it or choose another name in the config") from error

    guarded(with_config)


def guarded(work: Callable[[Any], dict[str, Any]]) -> None:
    """Run `work`, print its result as the last line of stdout, turn errors into a sentence and an exit code."""
    from pipeline.errors import RelevanceError
    from pipeline.logs import Console

    console = Console()
    end_on_sigterm()
    try:
        console.result(json.dumps(work(console), ensure_ascii=False))
    except RelevanceError as error:
        console.say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        console.say("error: interrupted; run the same command again, it goes on from where it was")
        raise typer.Exit(3) from error
    except OSError as error:
        console.say(f"error: {error}; free space or permissions are the usual causes; nothing half-written is visible, run again")
        raise typer.Exit(3) from error


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
