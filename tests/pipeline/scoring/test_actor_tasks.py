"""Tasks between training and scoring: each row is scored by the head of its own task, in whatever order."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.inference.predictor import Predictor
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.label_store import read_published
from tests.support.planted import planted_rows, write_rows
from tests.support.scoring_world import World, build_scorer, plan

NAMES = ("two", "brand", "colour")
MTL = {"method": "mtl_lora", "target_modules": ["q_proj", "v_proj"], "rank": 4, "task_layers": 1}


def tasks_of(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return tasks that differ in nothing but their names: no shape shows that two were exchanged."""
    template = "Query: {query}\nAd: {ad_title}"
    return [
        {"name": name, "labels": ["bad", "good"], "relevant_from": 1, "template": template} for name in names
    ]


class TrainedWorld(World):
    """A bundle whose tasks have heads and adapters of their own, and rows to score for each task."""

    def __init__(self, root: Path, tiny_llama: Path, names: tuple[str, ...]) -> None:
        super().__init__(root, tiny_llama, prepare=self.stir, tasks=tasks_of(names), adapter=MTL)
        shutil.rmtree(root / "to_score")
        for number, name in enumerate(NAMES):
            rows = planted_rows("two", 4, number, labeled=False)
            write_rows(rows, root / "to_score" / f"task={name}" / "part-0.parquet")

    def stir(self, predictor: Predictor) -> None:
        """Change all trained weights, and keep the predictor."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in predictor.model.trainable_state().values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.predictor = predictor

    def with_tasks(self, names: tuple[str, ...]) -> RunConfig:
        """Return a config of its own scores whose tasks have another order."""
        scoring = {**self.plain["scoring"], "scores": str(self.root / f"scores-{'-'.join(names)}")}
        return build_config({**self.plain, "tasks": tasks_of(names), "scoring": scoring}, "test")

    def score(self, names: tuple[str, ...], all_tasks: bool) -> dict[tuple[str, str], float]:
        """Score with tasks in an order, and return the probabilities by (row id, task)."""
        config = self.with_tasks(names)
        attempts_dir = self.root / f"attempts-{'-'.join(names)}"
        attempts_dir.mkdir(exist_ok=True)
        scorer = build_scorer(config, self.version, attempts_dir)
        for unit in plan(config, self.sha256, all_tasks)[0]:
            result = scorer.score_unit(unit)
            assert not result.error, result.error
        published = read_published(Path(str(config.scores_location))).to_pylist()
        assert len({(row["row_id"], row["task"]) for row in published}) == len(published)
        return {(row["row_id"], row["task"]): row["probability"] for row in published}

    def expected(self, trained: tuple[str, ...], all_tasks: bool) -> dict[tuple[str, str], float]:
        """Compute the probabilities row by row, with each task's number in the training."""
        probabilities = {}
        for name in NAMES:
            table = pq.read_table(self.root / "to_score" / f"task={name}" / "part-0.parquet").cast(ROW_SCHEMA)
            encoded = self.predictor.encode({name: table})
            for row, row_id in enumerate(table["row_id"].to_pylist()):
                ids_1S = torch.tensor(encoded.ids_of(row))[None].long()
                for scored in NAMES if all_tasks else (name,):
                    task_1 = torch.tensor([trained.index(scored)])
                    with torch.no_grad():
                        logits_1C = self.predictor.model.eval()(ids_1S, torch.ones_like(ids_1S), task_1)
                    probabilities[row_id, scored] = float(logits_1C.softmax(1)[0, 1])
        return probabilities


ORDERS = list(itertools.permutations(NAMES))


@pytest.mark.parametrize(
    "orders", [ORDERS[3:4], pytest.param(ORDERS, marks=pytest.mark.failures)], ids=["one", "all"]
)
def test_no_order_of_tasks_exchanges_their_scores(
    tmp_path: Path, tiny_llama: Path, orders: list[tuple[str, ...]]
) -> None:
    exchanged = []
    for trained in orders:
        world = TrainedWorld(tmp_path / "-".join(trained), tiny_llama, trained)
        for configured, all_tasks in ((trained[::-1], False), (trained[1:] + trained[:1], True)):
            expected = world.expected(trained, all_tasks)
            found = world.score(configured, all_tasks)
            if found != pytest.approx(expected, abs=1e-5):
                exchanged.append((trained, configured, all_tasks))
        of_a_row = {round(expected["two-0-0", name], 3) for name in NAMES}
        assert len(of_a_row) == len(NAMES), "an exchange would show"
    assert exchanged == []


def test_removed_or_new_task_is_refused_with_the_known_names(tmp_path: Path, tiny_llama: Path) -> None:
    world = TrainedWorld(tmp_path, tiny_llama, NAMES)
    with pytest.raises(ConfigError, match="colour.*two, brand"):
        plan(world.with_tasks(("two", "brand")), world.sha256)
    write_rows(
        planted_rows("two", 6, 9, labeled=False), tmp_path / "to_score" / "task=fresh" / "part-0.parquet"
    )
    config = world.with_tasks((*NAMES, "fresh"))
    (tmp_path / "attempts").mkdir()
    scorer = build_scorer(config, world.version, tmp_path / "attempts")
    errors = {unit.task: scorer.score_unit(unit).error for unit in plan(config, world.sha256)[0]}
    assert {task for task, error in errors.items() if error} == {"fresh"}
    assert "two, brand, colour" in errors["fresh"]
