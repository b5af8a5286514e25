"""Schedules of infra/: one idempotent command a day, retried only if a retry may help."""

import re
import shlex
import subprocess
import sys
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from jobs.cli import app
from tests.support.infra_files import CRONJOB, JOBS, MOUNTED_CONFIG, OBJECTS, TEXTS, YESTERDAY


def parse_command(command: str) -> dict[str, Any]:
    """Return the parameters of a `relevance` command line, with those of the command that it submits."""
    name, *options = shlex.split(command)
    commands = typer.main.get_command(app).commands
    context = commands[name].make_context(name, options)
    if name != "submit":
        return dict(context.params)
    given = ["--config", str(context.params["config"]), *context.args]
    submitted = commands[context.params["command"]].make_context(name, given)
    return {**submitted.params, **context.params}


def airflow_commands(
    monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> tuple[dict[str, Any], list[list[str]], list[Exception]]:
    """Run the DAG of 2026-01-31 with stand-ins for Airflow's classes.

    Returns:
        The DAG's settings, the commands its task ran, and the errors it raised.
    """
    settings: dict[str, Any] = {}
    ran: list[list[str]] = []
    raised: list[Exception] = []
    errors = {name: type(name, (Exception,), {}) for name in ("AirflowException", "AirflowFailException")}

    class Dag:
        def __init__(self, name: str, **given: Any) -> None:
            settings.update(given, name=name)

        def __enter__(self) -> "Dag":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def operator(python_callable: Any, op_kwargs: dict[str, str], task_id: str) -> None:
        arguments = {name: value.replace("{{ ds }}", "2026-01-31") for name, value in op_kwargs.items()}
        try:
            python_callable(**arguments)
        except Exception as error:
            raised.append(error)

    interval = lambda cron, timezone: (cron, timezone)  # noqa: E731
    contents = {
        "airflow": {},
        "airflow.sdk": {"DAG": Dag, "CronDataIntervalTimetable": interval},
        "airflow.sdk.exceptions": errors,
        "airflow.providers": {},
        "airflow.providers.standard": {},
        "airflow.providers.standard.operators": {},
        "airflow.providers.standard.operators.python": {"PythonOperator": operator},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        subprocess, "run", lambda command: ran.append(command) or types.SimpleNamespace(returncode=exit_code)
    )
    exec(compile(TEXTS["schedules/airflow_dag.py"], "airflow_dag.py", "exec"), {"__name__": "dag"})
    return settings, ran, raised


def test_all_schedules_score_the_day_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_shell = subprocess.run  # airflow_commands replaces it
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://ray-head:8265")
    (cron,) = [
        line for line in TEXTS["schedules/crontab"].splitlines() if re.match(r"[\d*]+( [\d*]+){4} ", line)
    ]
    _, airflow, _ = airflow_commands(monkeypatch, 0)
    cron_line, _, log = cron.split(" ", 5)[5].partition(" >> ")
    assert log == '"$HOME/relevance-score.log" 2>&1'
    lines = {
        "cron": cron_line,
        "airflow": shlex.join(airflow[0]),
        "kubernetes": CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][0],
        "kuberay": JOBS["raycronjob-score.yaml"]["entrypoint"],
    }
    for kind, line in lines.items():
        found = parse_command(YESTERDAY.sub("2026-01-31", line).removeprefix("relevance "))
        assert str(found["config"]) == MOUNTED_CONFIG and found["logical_date"] == "2026-01-31", kind
        assert found["overrides"] == ["name=production-scoring", "data.to_score=/storage/rows/{date}"], kind
        assert not any(found.get(name) for name in ("until", "dry_run", "again", "no_wait")), kind
    (tmp_path / "relevance").write_text("#!/bin/sh\necho $*\n")
    (tmp_path / "relevance").chmod(0o755)
    for kind in ("cron", "kubernetes", "kuberay"):
        line = lines[kind].replace("\\%", "%")  # cron does the same
        done = run_shell(
            ["/bin/sh", "-c", line],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        assert f"data.to_score=/storage/rows/{{date}} --logical-date {yesterday}" in done.stdout, kind
    assert "\\%F" in cron and all("\\%" not in line for kind, line in lines.items() if kind != "cron"), (
        "only cron treats % specially"
    )


def test_schedules_are_daily_exclusive_and_retry_only_exit_code_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dag, _, raised = airflow_commands(monkeypatch, 3)
    assert type(raised[0]).__name__ == "AirflowException"
    for code in (1, 2, 4):
        assert type(airflow_commands(monkeypatch, code)[2][0]).__name__ == "AirflowFailException"
    spec, job = CRONJOB["spec"], CRONJOB["spec"]["jobTemplate"]["spec"]
    ray = OBJECTS["raycronjob-score.yaml"]["spec"]
    assert dag["schedule"] == ("15 3 * * *", "UTC") and {spec["schedule"], ray["schedule"]} == {"15 3 * * *"}
    assert spec["timeZone"] == ray["timeZone"] == "Etc/UTC"
    assert dag["max_active_runs"] == 1 and spec["concurrencyPolicy"] == "Forbid"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "submit", "operator": "In", "values": [1, 2, 4]},
    }
    assert job["backoffLimit"] == dag["default_args"]["retries"] == 3
    assert JOBS["raycronjob-score.yaml"]["backoffLimit"] == 1, (
        "each retry costs a cluster, even after a refusal"
    )
    assert spec["startingDeadlineSeconds"] <= 20 * 3600, "a later start would score another day"
