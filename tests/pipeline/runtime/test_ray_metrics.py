"""Ray metrics of training and scoring, read as Prometheus reads them."""

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
from pipeline.runtime.ray_metrics import MetricTags
from pipeline.scoring.metrics import ScoringGauges
from pipeline.training.event_log import notify
from pipeline.training.metrics import TrainingGauges
from tests.support.training_events import make_evaluation, make_start, make_step

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
gauges = TrainingGauges(MetricTags("demo", "an-id"))
events = (make_step(7, step_s=0.75, tokens_per_s=100.0), make_evaluation(7, macro_pr_auc=0.7), make_start())
for event in events:
    notify(gauges, event)
gauges.count_restart()
scoring = ScoringGauges(MetricTags("demo", "an-id"))
scoring.record_unit("search", 40, 2, False, 1, 12.5)
scoring.record_unit("search", 0, 0, True, 0, 11.0)
node = ray.nodes()[0]
deadline_s = time.monotonic() + 60
while time.monotonic() < deadline_s:
    try:
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(address, timeout=5).read().decode()
    except OSError:
        text = ""
    ours = [line for line in text.splitlines() if line.startswith("ray_relevance_")]
    samples = [line for line in ours if 'run="demo"' in line and 'run_id="an-id"' in line]
    if len(samples) == 10:
        break
    time.sleep(0.5)
for line in samples:
    print(line.split("{")[0], line.rsplit(" ", 1)[1])
"""


def test_training_and_scoring_metrics_are_exported() -> None:
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
