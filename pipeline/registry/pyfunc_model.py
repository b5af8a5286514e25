"""Registered model as MLflow serves it: data frame of pairs in, calibrated labels out.

MLflow imports this module from the installed package. A registered version has no code of its own.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from models.serialization.bundle import Bundle
from pipeline.data.visible_text import is_blank
from pipeline.inference.predictor import Predictor
from pipeline.schema import ROW_SCHEMA, TEXT_COLUMNS

REQUIRED_COLUMNS = ("task", "query", "ad_title")

OUTPUTS = (
    ("probability", "double"),
    ("label", "long"),
    ("label_name", "string"),
    ("expected_grade", "double"),
    ("decision", "string"),
)

BATCH_TOKENS = 4096


def signature() -> Any:
    """Return the signature of the served model."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    inputs: Any = [
        ColSpec("string", name, required=name in REQUIRED_COLUMNS)
        for name in ("task", *TEXT_COLUMNS, "market")
    ]
    outputs: Any = [ColSpec(kind, name) for name, kind in OUTPUTS]
    return ModelSignature(Schema(inputs), Schema(outputs))


class InputError(MlflowException, ValueError):  # type: ignore[misc]
    """Input that cannot be scored; `mlflow models serve` answers 400 with the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


def _load_pyfunc(data_path: str) -> "ServedModel":
    """Verify a registered version and load it; MLflow calls this by its name.

    Args:
        data_path: Folder of the version's files, inside the folder of MLflow's model.

    Raises:
        RelevanceError: The version was altered, is not in the champion line, or computes other probabilities
            here.
    """
    from pipeline.config.scoring import ScoringConfig
    from pipeline.evaluation.score_reference import check_canaries
    from pipeline.inference.predictor import load_predictor
    from pipeline.registry.served_version import BUNDLE_DIR, check_served_version

    files = Path(data_path)
    sha256 = check_served_version(files.parents[1])
    predictor, bundle = load_predictor(files / BUNDLE_DIR, sha256)
    check_canaries(predictor, bundle, BATCH_TOKENS, ScoringConfig().canary_tolerance)
    return ServedModel(predictor, bundle)


class ServedModel:
    """A loaded version that scores data frames."""

    def __init__(self, predictor: Predictor, bundle: Bundle) -> None:
        self.predictor, self.bundle = predictor, bundle

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row of OUTPUTS per input row, in order.

        Raises:
            InputError: A column is missing, a required text is null or blank, or a task is unknown.
        """
        from pipeline.config.tasks import check_known_task
        from pipeline.errors import ConfigError
        from pipeline.inference.labels import ScoringContext, plan_scores

        check_frame(model_input)
        score_context = ScoringContext(BATCH_TOKENS, "", self.bundle.sha256)
        parts = []
        for task_name, rows in model_input.groupby("task", sort=False):
            try:
                task = check_known_task(str(task_name), self.predictor.tasks, "the input")
            except ConfigError as error:
                raise InputError(str(error)) from error
            scored = plan_scores(self.predictor, contract_rows(rows), task, score_context).run()
            parts.append(scored.select([name for name, _ in OUTPUTS]).to_pandas().set_index(rows.index))
        if not parts:
            return pd.DataFrame(columns=[name for name, _ in OUTPUTS])
        return pd.concat(parts).loc[model_input.index]


def check_frame(frame: pd.DataFrame) -> None:
    """Raise InputError if columns are missing or required texts are null or blank."""
    missing = [name for name in REQUIRED_COLUMNS if name not in frame.columns]
    if missing:
        raise InputError(
            f"the input lacks {', '.join(missing)}; it needs {', '.join(REQUIRED_COLUMNS)} and takes "
            f"{', '.join((*TEXT_COLUMNS, 'market'))}"
        )
    empty = [name for name in REQUIRED_COLUMNS if frame[name].isna().any()]
    if empty:
        raise InputError(f"{', '.join(empty)} must not be null; leave such rows out")
    blank = [name for name in ("query", "ad_title") if frame[name].map(str).map(is_blank).any()]
    if blank:
        raise InputError(f"{', '.join(blank)} must hold a visible character; leave such rows out")
    if not frame.index.is_unique:
        raise InputError("the frame's index repeats; call reset_index(drop=True) first")


def contract_rows(frame: pd.DataFrame) -> pa.Table:
    """Return the pairs as contract rows."""
    texts = {
        name: [None if pd.isna(v) else str(v) for v in frame[name]] if name in frame else [None] * len(frame)
        for name in TEXT_COLUMNS
    }
    columns = {**texts, "row_id": [str(i) for i in range(len(frame))], "market": _markets(frame)}
    return pa.table(
        {
            field.name: pa.array(columns.get(field.name, [None] * len(frame)), field.type)
            for field in ROW_SCHEMA
        }
    )


def _markets(frame: pd.DataFrame) -> list[str]:
    """Return the market of each row; empty: the thresholds of the whole task apply."""
    if "market" not in frame:
        return [""] * len(frame)
    return ["" if pd.isna(value) else str(value) for value in frame["market"]]
