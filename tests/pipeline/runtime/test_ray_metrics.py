"""Ray metrics of a training and of a scoring, as Prometheus would fetch them."""

import subprocess
import sys

import pytest

from tests.support.places import ROOT

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys, time, urllib.request
from jobs.environment import prepare_environment
prepare_environment()
import ray
from pipeline.scoring.metrics import ScoringGauges
from pipeline.training.metrics import TrainingGauges

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
gauges, seen = TrainingGauges("demo"), []
tell = gauges.watching(seen.append)
for line in ({"step": 7, "step_s": 0.75, "tokens_per_s": 100.0}, {"macro_pr_auc": 0.7}, {"starts_after": 0}):
    tell(line)
gauges.restarted()
scoring = ScoringGauges("demo")
scoring.unit_done("search", 40, 2, False, 1, 12.5)
scoring.unit_done("search", 0, 0, True, 0, 11.0)
assert [len(line) for line in seen] == [3, 1, 1]
node = ray.nodes()[0]
deadline_s = time.monotonic() + 60
while time.monotonic() < deadline_s:
    try:
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(address, timeout=5).read().decode()
    except OSError:
        text = ""
    found = [line for line in text.splitlines() if line.startswith("ray_relevance_") and 'run="demo"' in line]
    if len(found) == 10:
        break
    time.sleep(0.5)
for line in found:
    print(line.split("{")[0], line.rsplit(" ", 1)[1])
"""


def test_what_a_training_and_a_scoring_do_is_exported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()[-10:]) == [
        "ray_relevance_scoring_errors_total 2.0",
        "ray_relevance_scoring_failed_units_total 1.0",
        "ray_relevance_scoring_labels_total 40.0",
        "ray_relevance_scoring_pairs_per_second 11.0",
        "ray_relevance_scoring_units_left 0.0",
        "ray_relevance_training_restarts_total 1.0",
        "ray_relevance_training_step 7.0",
        "ray_relevance_training_step_seconds 0.75",
        "ray_relevance_training_tokens_per_second 100.0",
        "ray_relevance_training_valid_macro_pr_auc 0.7",
    ]
