"""Loss of a node during scoring: its unit is scored elsewhere, the others once."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.scoring.label_store import read_published
from tests.support.patches import write_patch
from tests.support.places import ROOT
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import ROWS, World

pytestmark = pytest.mark.e2e

UNITS, NODES = 8, 2

NOTING = """
def instead_of(plan_probabilities):
    def noted(predictor, table, *arguments, **options):
        with open({journal!r}, "a") as file:
            file.write(table.column("row_id")[0].as_py() + chr(10))
        time.sleep(2)
        return plan_probabilities(predictor, table, *arguments, **options)
    return noted
"""

ON_NODES = """
import json, sys
from jobs.environment import prepare_environment
prepare_environment()
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from pipeline.config.loading import build_config
from pipeline.registry.version_files import VersionFiles
from pipeline.scoring.actor_settings import build_actor_settings
from pipeline.inference.attempts import create_attempts_dir
from pipeline.scoring.actor import score_on_ray
from tests.support.scoring_world import plan

plain, bundle_dir, sha256, nodes = json.loads(sys.argv[1])
config = build_config(plain, "test")
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
lost, *_ = [cluster.add_node(num_cpus=1) for _ in range(nodes)]
ray.init(address=cluster.address, log_to_driver=False)
errors = []
version = VersionFiles("1", Path(bundle_dir), sha256)
attempts_dir = create_attempts_dir(config.run_dir, "scoring", "a-run")
settings = build_actor_settings(config.scoring, config.scores_location, version, attempts_dir)
for result in score_on_ray(plan(config, sha256)[0], settings):
    errors.append(result.error)
    if len(errors) == 2:
        cluster.remove_node(lost, allow_graceful=False)
ray.shutdown()
cluster.shutdown()
print("ERRORS " + json.dumps(errors))
"""


@pytest.mark.failures
def test_only_units_of_a_lost_node_are_scored_again(tmp_path: Path, tiny_llama: Path) -> None:
    world = World(tmp_path, tiny_llama)
    for number in range(2, UNITS):
        write_rows(
            planted_rows("two", ROWS, 10 + number, labeled=False),
            tmp_path / "to_score" / "task=two" / f"part-1{number}-good.parquet",
        )
    plain = {**world.plain, "scoring": {**world.plain["scoring"], "num_actors": NODES, "hang_timeout_s": 60}}
    journal = tmp_path / "journal"
    write_patch(
        tmp_path / "patch",
        "pipeline.inference.labels",
        "plan_probabilities",
        NOTING.format(journal=str(journal)),
    )
    command = [
        sys.executable,
        "-c",
        ON_NODES,
        json.dumps([plain, str(tmp_path / "bundle"), world.sha256, NODES]),
    ]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'patch'}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ERRORS "))
    assert json.loads(line.removeprefix("ERRORS ")) == [""] * UNITS
    rows = Counter(read_published(world.scores_dir).column("row_id").to_pylist())
    assert len(rows) == UNITS * ROWS and set(rows.values()) == {1}
    begun = Counter(journal.read_text().split())
    assert len(begun) == UNITS and sum(begun.values()) <= UNITS + 1, (
        "only the unit that the lost node was scoring"
    )
