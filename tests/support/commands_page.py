"""Write jobs/README.md: every command with its options, from the command-line interface.

python -m tests.support.commands_page
"""

from pathlib import Path
from typing import Any

import typer

from jobs.cli import app
from tests.support.places import ROOT

PAGE = ROOT / "jobs" / "README.md"
HEAD = """# Commands

This page is written from the command-line interface by `python -m tests.support.commands_page`.

Every command takes one YAML config (`--config`, settings in `jobs/configs/README.md`), except where its usage
says otherwise. It prints messages and progress on stderr. The last line of stdout of a
command that is done is one JSON object with `next`, the next sensible command, and `run_id` if the command
has one (see Runs). One that is not done prints `error: ` and the reason as the last line of stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | data or promotion gate refused, some units failed for good, \
a rollback that may not be repeated unseen, or a defect with its traceback |
| 2 | bad config or usage |
| 3 | a retry may succeed: the same command continues |
| 4 | damaged input |

## Environment

| variable | effect |
|---|---|
| `RAY_ADDRESS` | cluster: `host:port`, `ray://host:port`, `auto`; unset or `local`: one of its own |
| `RAY_API_SERVER_ADDRESS` | `--address` of `submit` and `logs` if left out; `status` needs the option |
| `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` | `token`, and the cluster's token or its file; a \
cluster that others can reach and that asks for no token is refused without `--insecure` |
| `MLFLOW_TRACKING_PASSWORD`, `PGPASSWORD`, `AWS_SECRET_ACCESS_KEY`, `HF_TOKEN`, ... | accounts: never in \
the config, see `pipeline/registry/README.md` |
| `RAY_TMPDIR` | folder of Ray's sessions; set a short one if TMPDIR is long |
| `HOME` | if it is unset or cannot be written: `relevance-home-<uid>` below TMPDIR |

Output, logs and files are UTF-8 in every locale; what cannot be encoded becomes `?`. Control characters and
direction marks of data are spelled out, such as `\\u202e`. New files have mode 0640 and folders 0750, less
what the user's umask takes away.

## Runs

A command has a run id: UTC time plus a random part, so ids sort by time. It is on the first line of stderr,
in the JSON object, and in these files:

| file | content |
|---|---|
| `<work_dir>/<name>/logs/<run id>.jsonl` | log of the command and its Ray workers: time, level, run id, \
process, work unit, message |
| `<work_dir>/<name>/logs/<run id>.libraries.log` | output of libraries |
| `<work_dir>/<name>/records/<run id>.json` | run record: state, progress, counts, exit code, reason, \
evidence, next command |

`sample`, `import`, `labels` and `sample-labels` have no config; their files are in `./runs/logs` and
`./runs/records`. `status`, `runs`, `submit`, `logs` and `audit` only read files or send a job: they have no
run id, log or record of their own.

A command runs in a child process. If Ray or the kernel ends it, its parent says so, closes the record
as `failed` with exit code 3, and kills what it left; the same command continues. Ctrl-C, SIGTERM and
SIGHUP end a command with 3 too. `rollback` alone ends with 1 then: repeated, it goes back one more champion.

A record's state is `running`, `done`, `failed`, `interrupted`, or `died`: the command
and its parent ended without closing the record (power cut, SIGKILL of the parent).
`relevance status` shows the last command of every run folder,
`relevance runs` all commands, `relevance runs RUN_ID` one command with its errors and the next step.

## Where the code is

| file | subject |
|---|---|
| `cli.py`, `cli_versions.py`, `cli_labels.py`, `options.py` | commands and their options |
| `commands/` | one file a command or a group of commands |
| `execution.py`, `command_run.py` | config, lock, log, record, exit code; console and record for a command |
| `supervisor.py` | parent process of a command: signals, and the end of a command that died |
| `console.py` | streams, progress bars, tables |
| `score_progress.py`, `score_summary.py`, `train_progress.py` | progress, summary of scoring and training |
| `run_texts.py` | sentences of `relevance status` and `relevance runs` |
| `submit_paths.py` | check of a config's paths before `relevance submit` |
| `cluster.py` | the Ray cluster: the one of `RAY_ADDRESS`, or a local one |
| `environment.py` | variables of the libraries, home folder, encoding, signals |
"""


def usage_of(command: Any, name: str) -> str:
    """Return the usage line of a command."""
    words = ["relevance", name]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            metavar = parameter.name.upper()
            words.append(metavar if parameter.required else f"[{metavar}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {parameter.name.upper()}")
    return " ".join([*words, "[OPTIONS]"])


def rows_of(command: Any) -> list[str]:
    """Return one table row for each argument and option."""
    rows = []
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        names = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
        default = parameter.default
        shown = "" if parameter.required or default in (None, False, (), []) else f"`{default}`"
        rows.append(f"| `{names}` | {shown} | {parameter.help or ''} |".replace("|  |", "| |"))
    return rows


def build_page() -> str:
    """Return the whole page."""
    group: Any = typer.main.get_command(app)
    parts = [HEAD]
    for name, command in group.commands.items():
        help_text = " ".join((command.help or "").split())
        parts += [f"## relevance {name}\n", help_text + "\n", f"    {usage_of(command, name)}\n"]
        rows = rows_of(command)
        if rows:
            parts.append("| argument | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def write_page(path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(build_page())


if __name__ == "__main__":
    write_page()
