"""Shared frame of all commands: config, lock, log, run record, exit code."""

import contextlib
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jobs.environment import end_on_signals
from jobs.supervisor import report_record

if TYPE_CHECKING:
    from jobs.command_run import CommandRun
    from pipeline.runtime.run_record import RunRecorder

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 0.5  # for a command that is just ending

DEFAULT_WORK_DIR = Path("runs")  # of commands without a config

Work = Callable[["CommandRun"], dict[str, Any]]
Stage = Callable[[Any, "CommandRun"], dict[str, Any]]  # (config, run) -> result


@dataclass(frozen=True)
class CommandSpec:
    """Name of a command, and whether it needs its run folder alone."""

    name: str  # as typed: "train"
    is_exclusive: bool = True  # alone in its run folder; False for commands that may run beside a training


def execute(command: CommandSpec, config_path: Path, overrides: list[str] | None, stage: Stage) -> None:
    """Run a command with its config; print its result as the last line of stdout, exit with its code."""
    with _errors_as_exit_codes():
        from pipeline.config.loading import read_config

        config = read_config(config_path, overrides or [])
        config.run_dir.mkdir(parents=True, exist_ok=True)
        given = ["--config", str(config_path)]
        for override in overrides or []:
            given += ["--set", override]
        with _run_lock(config.run_dir) if command.is_exclusive else contextlib.nullcontext():
            _run_recorded(command.name, config.run_dir, config, given, stage)


def execute_without_config(name: str, work: Work) -> None:
    """Run a command that has no run folder: its log and record go to ./runs."""
    with _errors_as_exit_codes():
        _run_recorded(name, DEFAULT_WORK_DIR.absolute(), None, [], lambda _, run: work(run))


def execute_unrecorded(work: Work) -> None:
    """Run a command that only reads runs or sends a job: it writes no log and no record."""
    from jobs.command_run import CommandRun
    from jobs.console import Console

    with _errors_as_exit_codes():
        console = Console()
        console.result(json.dumps(work(CommandRun(console)), ensure_ascii=False))


def _run_recorded(name: str, folder: Path, config: Any, given: list[str], stage: Stage) -> None:
    from jobs.command_run import CommandRun, command_line
    from jobs.console import libraries_in, messages_on
    from pipeline.registry.mlflow_errors import translate_mlflow_errors
    from pipeline.runtime.run_log import logging_to, new_run_id
    from pipeline.runtime.run_record import DONE, RunRecorder

    run_id = new_run_id()
    recorder = RunRecorder(folder, run_id, name, config.name if config else None, command_line())
    with contextlib.ExitStack() as stack:
        stack.enter_context(recorder)
        report_record(recorder.path)
        stack.enter_context(logging_to(recorder.log, "command"))
        console = stack.enter_context(libraries_in(recorder.log.libraries_path))
        stack.enter_context(messages_on(console))
        stack.enter_context(_errors_as_exit_codes(recorder))
        if config:
            stack.enter_context(translate_mlflow_errors(config.tracking_uri))
        title = f"{name} {config.name}" if config and config.name != name else name
        logger.info("%s: run %s, log %s", title, run_id, recorder.log.path)
        result = {"run_id": run_id, **stage(config, CommandRun(console, recorder, given))}
        if result.get("next"):
            logger.info("next: %s", result["next"])
        recorder.update(state=DONE, exit_code=0, next=result.get("next"))
        console.result(json.dumps(result, ensure_ascii=False))


@contextlib.contextmanager
def _run_lock(run_dir: Path) -> Iterator[None]:
    """Lock a run folder; RetryableError if another command works there."""
    from filelock import FileLock, Timeout

    from pipeline.errors import RetryableError

    lock = FileLock(run_dir / ".lock", timeout=LOCK_WAIT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise RetryableError(
            f"run folder busy: {run_dir}; wait for the other relevance command or choose another name in "
            "the config"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _errors_as_exit_codes(recorder: "RunRecorder | None" = None) -> Iterator[None]:
    """Log an error as one sentence, close the record with it, and exit with its code.

    An error that is not for users is a defect of this project: its traceback is logged too, by the handlers,
    which hide accounts. With a record these are the handlers of the run, so a command has two such contexts.
    """
    from jobs.console import Console, messages_on

    end_on_signals()
    with contextlib.nullcontext() if recorder else messages_on(Console()):
        try:
            yield
        except (SystemExit, typer.Exit):  # reported already
            raise
        except BaseException as error:
            failure = _describe_failure(error, recorder.record.command if recorder else "")
            logger.error("error: %s", failure.reason, exc_info=None if failure.is_expected else error)
            if recorder:
                recorder.update(state=failure.state, exit_code=failure.exit_code, reason=failure.reason)
            raise typer.Exit(failure.exit_code) from error


@dataclass(frozen=True)
class _Failure:
    exit_code: int
    reason: str
    state: str = "failed"
    is_expected: bool = True


def _describe_failure(error: BaseException, command: str) -> _Failure:
    from jobs.run_texts import interruption_reason, repetition_exit_code
    from pipeline.errors import RelevanceError, translate_os_error
    from pipeline.uris import hide_credentials

    if isinstance(error, OSError):
        error = translate_os_error(error)
    if isinstance(error, RelevanceError):
        return _Failure(error.exit_code, hide_credentials(str(error)))
    if isinstance(error, KeyboardInterrupt):
        return _Failure(repetition_exit_code(command), interruption_reason(command), state="interrupted")
    reason = hide_credentials("".join(traceback.format_exception_only(error)).strip())
    return _Failure(1, reason, is_expected=False)
