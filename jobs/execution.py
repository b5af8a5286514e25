"""What every command does around its work: config, lock, log file, exit code."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.environment import end_on_sigterm

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML config of the run.", show_default=False)]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, as in optimizer.learning_rate=1e-4. Repeatable."),
]

LOCK_WAIT_S = 0.5  # `relevance status` looks at locks

Stage = Callable[[Any, Any], dict[str, Any]]


def execute(config_path: Path, overrides: list[str] | None, stage: Stage, locked: bool = True) -> None:
    """Run one stage, third-party output in the run's log file, and with `locked` alone in the run's folder:
    what only changes which version is champion must not wait for a training.
    """
    from pipeline.errors import RetryableError

    def with_config(console: Any) -> dict[str, Any]:
        from filelock import FileLock, Timeout

        from jobs.console import messages_on, third_parties_in
        from pipeline.config.loading import read_config
        from pipeline.registry.mlflow_client import told_errors

        config = read_config(config_path, overrides or [])
        config.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            with (
                FileLock(config.run_dir / ".lock", timeout=LOCK_WAIT_S)
                if locked
                else contextlib.nullcontext()
            ):
                log_path = config.run_dir / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}.log"
                console.say(
                    f"run {config.name}: writing to {config.run_dir}, libraries' output to {log_path}"
                )
                with third_parties_in(log_path) as inner, messages_on(inner), told_errors(config):
                    return stage(config, inner)
        except Timeout as error:
            busy = f"another relevance command is working in {config.run_dir}"
            raise RetryableError(f"{busy}; wait for it or choose another name in the config") from error

    guarded(with_config)


def guarded(work: Callable[[Any], dict[str, Any]]) -> None:
    """Run `work`, print its result as the last line of stdout, turn errors into a sentence and an exit
    code.
    """
    from jobs.console import Console, messages_on
    from pipeline.errors import RelevanceError

    console = Console()
    end_on_sigterm()
    try:
        with messages_on(console):
            result = work(console)
        console.result(json.dumps(result, ensure_ascii=False))
    except RelevanceError as error:
        console.say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        console.say("error: interrupted; run the same command again, it goes on from where it was")
        raise typer.Exit(3) from error
    except OSError as error:
        console.say(
            f"error: {error}; free space or permissions are the usual causes; nothing half-written is "
            "visible, run again"
        )
        raise typer.Exit(3) from error
