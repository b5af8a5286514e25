"""Commands about published labels."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.execution import execute_without_config

PlaceArgument = Annotated[
    str,
    typer.Argument(help="Location of `scoring.scores`: a folder, or s3://bucket/prefix.", show_default=False),
]

RunOption = Annotated[
    str | None, typer.Option("--run", help="Only labels of this scoring run.", show_default=False)
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


LABEL_COMMANDS = (labels,)
