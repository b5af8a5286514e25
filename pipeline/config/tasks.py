"""A relevance task: its name, its grading scale and the text the model reads. A new task is one block of
config and no code.
"""

from collections.abc import Sequence
from string import Formatter

from pydantic import Field, field_validator, model_validator

from pipeline.config.strict_model import Frozen
from pipeline.errors import ConfigError
from pipeline.names import check_name
from pipeline.schema import MAX_LABELS, TEXT_COLUMNS


class Task(Frozen):
    """One way of judging a query-ad pair."""

    name: str  # names the partition folder task=<name>
    labels: tuple[str, ...] = Field(min_length=2, max_length=MAX_LABELS)  # from worst to best
    relevant_from: int  # lowest label index that counts as relevant
    template: str  # text with {query} and any of the ad's columns; a missing column reads as empty
    sampling_weight: float = Field(default=1.0, gt=0)  # multiplies the task's share of a training epoch
    target_precision: float = Field(default=0.9, gt=0, lt=1)  # precision the decision threshold aims at

    @field_validator("name")
    @classmethod
    def _name_obeys_the_rule(cls, name: str) -> str:
        try:
            return check_name(name, "task")
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _scale_and_template_fit(self) -> "Task":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels of task {self.name} repeat a name")
        if not 1 <= self.relevant_from < len(self.labels):
            raise ValueError(
                f"relevant_from of task {self.name} must lie in 1..{len(self.labels) - 1}: some label "
                "must be irrelevant, some relevant"
            )
        parsed = list(Formatter().parse(self.template))
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ValueError(
                f"template of task {self.name} formats a column; name it plainly, such as {{query}}"
            )
        fields = [name for _, name, _, _ in parsed if name is not None]
        unknown = sorted(set(fields) - set(TEXT_COLUMNS))
        if unknown:
            raise ValueError(
                f"template of task {self.name} names {', '.join(unknown)}; columns a template may use: "
                f"{', '.join(TEXT_COLUMNS)}"
            )
        if fields.count("query") != 1 or len(fields) != len(set(fields)) or len(fields) < 2:
            raise ValueError(
                f"template of task {self.name} must name {{query}} once and at least one column of the "
                "ad, each once"
            )
        return self

    @property
    def ad_columns(self) -> tuple[str, ...]:
        """The ad's columns the template reads, in the order it reads them."""
        return tuple(
            name for _, name, _, _ in Formatter().parse(self.template) if name not in (None, "query")
        )


def check_known_task(name: str, tasks: Sequence[Task], where: str) -> Task:
    """The task called `name`; ConfigError naming the known ones if there is none."""
    for task in tasks:
        if task.name == name:
            return task
    raise ConfigError(
        f"task {name!r} in {where} is not configured; configured: {', '.join(t.name for t in tasks)}"
    )
