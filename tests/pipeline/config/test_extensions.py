"""Extensions of other distributions are found by their entry point and work like built-in ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.extensions import ExtensionTable
from pipeline.config.loading import build_config
from pipeline.errors import ConfigError
from tests.support.places import ROOT
from tests.support.planted import planted_config, planted_rows, write_rows

EXTENSION = ROOT / "tests" / "support" / "shop_extension.py"

USE_EACH = """
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

root = Path(sys.argv[1])

# importer: a config names it, the first stage of a run reads it
from pipeline.config.loading import build_config
from tests.support.planted import planted_config

plain = planted_config(root, "package:x", sources=[{"kind": "shop", "rows": 2}])
plain["adapter"] = {"method": "gated_lora", "steepness": 2.0, "rank": 4, "target_modules": ["q"]}
plain["promotion"] = {"tolerances": {"lower case": 0.2}}
del plain["data"]
config = build_config(plain, "test")
assert build_config(config.model_dump(mode="json"), "a worker's") == config
from jobs.command_run import CommandRun
from jobs.commands.data import import_sources
from jobs.console import Console

import_sources(config, CommandRun(Console()))
import pyarrow.dataset as ds

rows = ds.dataset(f"{config.judged_location}/task=two").to_table()
assert rows.column("row_id").to_pylist() == ["shop-0", "shop-1"], rows

# adapter method: put into a trunk by its name
from models.adapters.injection import inject
from models.adapters.routing import TaskRouting

trunk = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8)})])})
inject(trunk, config.adapter, 2, seed=0)
layer = trunk["layers"][0]["q"]
assert type(layer).__name__ == "GatedLoRALinear" and layer.config.steepness == 2.0
with torch.no_grad():
    layer.up_OR.normal_()
x = torch.randn(3, 8)
with layer.routing.task_context(torch.tensor([0, 1, 0])):
    assert not torch.equal(layer(x), layer.base(x))
from models.adapters.adapted_linear import NotMergeableError

try:
    layer.merged_weight(0)
    raise AssertionError("a gate has no weight")
except NotMergeableError:
    pass

# promotion rule
from pipeline.evaluation.results import Comparison, Interval
from pipeline.registry.promotion_gate import Evidence, judge_version

evidence = Evidence(Comparison({}, (), Interval(0.1, 0.1, 0.1), 1.0), (), True)
verdict = judge_version("2", "1", evidence, config.promotion)
assert verdict.refusals() == ["nothing passes: an example of a rule"], verdict

# behavioral test
from pipeline.evaluation import behavioral_tests
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.inference.calibration import Calibration
from pipeline.schema import ROW_SCHEMA
import pyarrow as pa

changed = behavioral_tests.changed_rows({"two": rows.select(ROW_SCHEMA.names)})
task = next(task for task in config.tasks if task.name == "two")
logits = {"two": np.zeros((len(changed["two"]), len(task.labels)))}
version = PredictedVersion((task,), {"two": Calibration()}, logits)
cases = behavioral_tests.judge_cases(version, changed, config.promotion.tolerances)
assert [(case.case, case.at_most) for case in cases][-1] == ("lower case", 0.2)

# data check: the gate quarantines the row, and Great Expectations agrees
from validation.gate.runner import GateRun, validate
from pipeline.config.gates import GateConfig

loose = GateConfig(max_quarantined_share=0.9, max_reason_share=0.9)
report = validate(GateRun(root / "judged", config.tasks, root / "out", root / "accepted", config=loose))
assert report.passed and report.tasks["two"].reasons == {"query_no_phone": 1}, report
print("all five")
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the extension as pip installs it."""
    site = tmp_path / "site"
    about = site / "shop_extension-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "shop_extension.py").write_text(EXTENSION.read_text())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-extension\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[relevance.extensions]\nshop = shop_extension\n")
    return site


def test_external_extension_of_each_kind_is_used(tmp_path: Path, installed: Path) -> None:
    rows = planted_rows("two", 8, 1)
    rows[3]["query"] = "call 555-0199 for shoes"
    write_rows(rows, tmp_path / "judged" / "task=two" / "part-0.parquet")
    write_rows(planted_rows("three", 8, 1), tmp_path / "judged" / "task=three" / "part-0.parquet")
    path = os.pathsep.join([str(installed), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", USE_EACH, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0 and done.stdout.endswith("all five\n"), done.stderr[-3000:]


def test_broken_extension_is_named(tmp_path: Path, installed: Path) -> None:
    (installed / "shop_extension.py").write_text("import nothing_of_this_name")
    code = (
        "from pipeline.config.loading import build_config\n"
        f"build_config({planted_config(tmp_path, 'package:x')!r}, 'test')"
    )
    path = os.pathsep.join([str(installed), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert "extension shop (shop_extension) cannot be loaded: ModuleNotFoundError" in done.stderr, done.stderr


def test_duplicate_extension_name_is_refused() -> None:
    table: ExtensionTable[int] = ExtensionTable("importer")
    table.register("shop", 1)
    with pytest.raises(ValueError, match="importer 'shop' is registered twice; rename or uninstall one"):
        table.register("shop", 2)
    assert table["shop"] == 1 and table.names() == ["shop"]


def test_tolerance_of_unknown_behavioral_test_is_refused(tmp_path: Path) -> None:
    plain = planted_config(tmp_path, "package:x", promotion={"tolerances": {"uper case": 0.1}})
    with pytest.raises(
        ConfigError, match="behavioral test is unknown: 'uper case'; known: upper case, word order"
    ):
        build_config(plain, "test")
