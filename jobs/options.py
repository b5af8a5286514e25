"""Command-line options that commands share."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cluster import INSECURE

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML config of the run.", show_default=False)]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: --set optimizer.learning_rate=1e-4. Repeatable."),
]

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Dashboard of the Ray cluster, such as http://head:8265.",
        show_default=False,
    ),
]


def _allow_open_cluster(is_given: bool) -> None:
    if is_given:
        os.environ[INSECURE] = "1"


InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Use a Ray cluster that asks for no token, though others can reach it.",
        callback=_allow_open_cluster,
        expose_value=False,
    ),
]

VersionOption = Annotated[
    str | None,
    typer.Option("--version", help="Registered version; default: the champion.", show_default=False),
]

ReasonOption = Annotated[
    str, typer.Option("--reason", help="Reason, kept in the promotion log.", show_default=False)
]

LogicalDateOption = Annotated[
    str | None,
    typer.Option("--logical-date", help="Value of {date} in data.to_score.", show_default=False),
]

UntilOption = Annotated[
    str | None,
    typer.Option("--until", help="Last day; every day from --logical-date on.", show_default=False),
]

AllTasksOption = Annotated[
    bool,
    typer.Option("--all-tasks", help="Label each pair for every task, not only its folder's task."),
]


def check_days(logical_date: str | None, until: str | None) -> None:
    """Raise BadParameter if there is a last day without a first one."""
    if until is not None and logical_date is None:
        raise typer.BadParameter("it needs --logical-date, the first day", param_hint="--until")


def check_against(version: str | None, against: str | None) -> None:
    """Raise BadParameter if there is a version to compare with and none to check."""
    if version is None and against is not None:
        raise typer.BadParameter("it needs --version, the version to check", param_hint="--against")


TaskOption = Annotated[str, typer.Option("--task", help="Task of the config.", show_default=False)]

ExportFormatOption = Annotated[
    Literal["peft", "merged"],
    typer.Option("--format", help="peft: a LoRA adapter. merged: a plain model with all weights."),
]

AdDescriptionOption = Annotated[
    str | None, typer.Option("--ad-description", help="Body text of the ad.", show_default=False)
]

AdKeywordOption = Annotated[
    str | None, typer.Option("--ad-keyword", help="Keyword the advertiser bid on.", show_default=False)
]

LandingPageOption = Annotated[
    str | None,
    typer.Option("--landing-page", help="Text or address of the landing page.", show_default=False),
]

MarketOption = Annotated[
    str | None,
    typer.Option(
        "--market", help="Market of the pair; some have thresholds of their own.", show_default=False
    ),
]
