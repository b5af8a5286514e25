"""Commands about published labels."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.execution import execute_unrecorded, execute_without_config

PlaceArgument = Annotated[
    str,
    typer.Argument(help="Location of `scoring.scores`: a folder, or s3://bucket/prefix.", show_default=False),
]

RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Only labels of this scoring run's inputs, those published earlier too.",
        show_default=False,
    ),
]

LabelTaskOption = Annotated[
    str | None, typer.Option("--task", help="Only labels of this task.", show_default=False)
]


def labels(
    place: PlaceArgument,
    out: Annotated[Path, typer.Argument(help="New file: .parquet, .csv or .csv.gz.", show_default=False)],
    run: RunOption = None,
    task: LabelTaskOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="Only labels published then or later, such as 2026-01-31 or 2026-01-31T12:00:00Z.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write published labels as one table: one row for each row_id, task and model, the first published."""

    def work(command: Any) -> dict[str, Any]:
        from jobs.commands.labels import run_labels
        from pipeline.scoring.published_labels import LabelSelection, parse_time

        selection = LabelSelection(run, task, parse_time(since) if since is not None else None)
        return run_labels(place, out, selection, command)

    execute_without_config("labels", work)


def sample_labels(
    place: PlaceArgument,
    out: Annotated[Path, typer.Argument(help="New file: .csv, .csv.gz or .parquet.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the sample.", show_default=False)],
    run: RunOption = None,
    task: LabelTaskOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 17,
) -> None:
    """Draw published labels by task, market, decision and probability, for people to judge."""

    def work(command: Any) -> dict[str, Any]:
        from jobs.commands.audit import run_sample_labels
        from pipeline.scoring.published_labels import LabelSelection

        return run_sample_labels(place, out, LabelSelection(run, task), rows, seed, command)

    execute_without_config("sample-labels", work)


def audit(
    file: Annotated[
        Path, typer.Argument(help="File of sample-labels with all judgements.", show_default=False)
    ],
) -> None:
    """Print precision and defect rate of each task with 95 % intervals, from a judged sample."""

    def work(command: Any) -> dict[str, Any]:
        from jobs.commands.audit import run_audit

        return run_audit(file, command)

    execute_unrecorded(work)


LABEL_COMMANDS = (labels, sample_labels, audit)
