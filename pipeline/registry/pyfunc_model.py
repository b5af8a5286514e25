"""The registered model as MLflow serves it: a frame of pairs in, calibrated judgements out."""

from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc.model import PythonModel

from pipeline.schema import ROW_SCHEMA, TEXT_COLUMNS

REQUIRED = ("task", "query", "ad_title")

OUTPUTS = (
    ("probability", "double"),
    ("label", "long"),
    ("label_name", "string"),
    ("expected_grade", "double"),
    ("decision", "string"),
)

BATCH_TOKENS = 4096


def signature() -> Any:
    """Columns in and out; texts of the ad other than its title may be left out."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    inputs: Any = [
        ColSpec("string", name, required=name in REQUIRED) for name in ("task", *TEXT_COLUMNS, "market")
    ]
    outputs: Any = [ColSpec(kind, name) for name, kind in OUTPUTS]
    return ModelSignature(Schema(inputs), Schema(outputs))


def input_example(task: str) -> pd.DataFrame:
    """One made-up pair."""
    texts = {
        "query": "red running shoes",
        "ad_title": "Running shoes, red, size 9",
        "ad_description": None,
        "ad_keyword": None,
        "landing_page": None,
    }
    return pd.DataFrame([{"task": task, **texts}]).astype("object")


class InputError(MlflowException, ValueError):  # type: ignore[misc]
    """The input cannot be judged. `mlflow models serve` answers with its message and 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class RelevanceModelCode(PythonModel):  # type: ignore[misc]
    """Loads the bundle among the model's artifacts, file by file against its hashes, and judges frames."""

    def load_context(self, context: Any) -> None:
        from pathlib import Path

        from pipeline.inference.predictor import load_judge

        self.judge, self.bundle = load_judge(Path(context.artifacts["bundle"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One output row for each input row, in order. InputError: a column is missing, a required text is
        null, a task is unknown.
        """
        from pipeline.config.tasks import check_known_task
        from pipeline.errors import ConfigError
        from pipeline.inference.labels import ScoringContext, score_rows

        check_frame(model_input)
        parts = []
        for name, rows in model_input.groupby("task", sort=False):
            try:
                task = check_known_task(str(name), self.judge.tasks, "the input")
            except ConfigError as error:
                raise InputError(str(error)) from error
            scored = score_rows(
                self.judge, contract_rows(rows), task, ScoringContext(BATCH_TOKENS, "", self.bundle.sha256)
            )
            parts.append(scored.select([n for n, _ in OUTPUTS]).to_pandas().set_index(rows.index))
        if not parts:
            return pd.DataFrame(columns=[name for name, _ in OUTPUTS])
        return pd.concat(parts).loc[model_input.index]


def check_frame(frame: pd.DataFrame) -> None:
    """InputError naming the columns that are missing or hold nulls where a text is required."""
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise InputError(
            f"the input lacks {', '.join(missing)}; it needs {', '.join(REQUIRED)} and takes "
            f"{', '.join((*TEXT_COLUMNS, 'market'))}"
        )
    empty = [name for name in REQUIRED if frame[name].isna().any()]
    if empty:
        raise InputError(f"{', '.join(empty)} must not be null; leave such rows out")
    if not frame.index.is_unique:
        raise InputError("the frame's index repeats; call reset_index(drop=True) first")


def contract_rows(frame: pd.DataFrame) -> pa.Table:
    """The frame's texts as contract rows."""
    texts = {
        name: [None if pd.isna(v) else str(v) for v in frame[name]] if name in frame else [None] * len(frame)
        for name in TEXT_COLUMNS
    }
    given = {**texts, "row_id": [str(i) for i in range(len(frame))], "market": markets(frame)}
    return pa.table(
        {field.name: pa.array(given.get(field.name, [None] * len(frame)), field.type) for field in ROW_SCHEMA}
    )


def markets(frame: pd.DataFrame) -> list[str]:
    """The market of each row; one without has the thresholds of the whole task."""
    return (
        ["" if pd.isna(value) else str(value) for value in frame["market"]]
        if "market" in frame
        else [""] * len(frame)
    )
