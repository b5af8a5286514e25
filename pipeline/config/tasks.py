"""Config block of a task: name, label scale and text template."""

from collections.abc import Sequence
from string import Formatter

from pydantic import Field, field_validator, model_validator

from pipeline.config.strict_model import StrictModel, validate_name
from pipeline.errors import ConfigError
from pipeline.schema import MAX_LABELS, TEXT_COLUMNS


class Task(StrictModel):
    """A relevance question with its own label scale. A new task needs one block and no code."""

    name: str  # name of the task, also of its folder task=<name>
    labels: tuple[str, ...] = Field(min_length=2, max_length=MAX_LABELS)  # label names from worst to best
    relevant_from: int  # lowest label index that counts as relevant
    template: str  # input text with {query} and ad columns; null is empty text
    sampling_weight: float = Field(default=1.0, gt=0)  # factor on the task's share of a training epoch
    target_precision: float = Field(
        default=0.9, gt=0, lt=1
    )  # precision at which the decision threshold is set

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return validate_name(name, "task")

    @model_validator(mode="after")
    def _check_labels_and_template(self) -> "Task":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels of task {self.name} repeat a name; give each label its own name")
        if not 1 <= self.relevant_from < len(self.labels):
            raise ValueError(
                f"relevant_from of task {self.name} must lie in 1..{len(self.labels) - 1}, so that some "
                "labels are irrelevant and some relevant"
            )
        parsed = list(Formatter().parse(self.template))
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ValueError(
                f"template of task {self.name} has a format or conversion; write the column alone: {{query}}"
            )
        fields = [name for _, name, _, _ in parsed if name is not None]
        unknown = sorted(set(fields) - set(TEXT_COLUMNS))
        if unknown:
            raise ValueError(
                f"template of task {self.name} names unknown columns: {', '.join(unknown)}; known columns: "
                f"{', '.join(TEXT_COLUMNS)}"
            )
        if fields.count("query") != 1 or len(fields) != len(set(fields)) or len(fields) < 2:
            raise ValueError(
                f"template of task {self.name} must name {{query}} and at least one column of the ad, "
                "each exactly once"
            )
        return self

    @property
    def ad_columns(self) -> tuple[str, ...]:
        """Ad columns of the template, in its order."""
        return tuple(
            name for _, name, _, _ in Formatter().parse(self.template) if name not in (None, "query")
        )


def check_known_task(name: str, tasks: Sequence[Task], where: str) -> Task:
    """Return the task called `name`.

    Args:
        name: Task name from outside the config.
        tasks: Configured tasks.
        where: Origin of the name, for the error message.

    Raises:
        ConfigError: No task has that name.
    """
    for task in tasks:
        if task.name == name:
            return task
    raise ConfigError(
        f"task {name!r} in {where} is not configured; configured: {', '.join(t.name for t in tasks)}"
    )
