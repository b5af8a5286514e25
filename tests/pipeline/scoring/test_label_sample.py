"""Samples of labels follow the strata, the seed and the stated rule for few rows."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.scoring import published_labels
from pipeline.scoring.label_sample import SAMPLE_SCHEMA, LabelSampler, Stratum, plan_sample, share_out
from pipeline.scoring.published_labels import PublishedLabels
from tests.support.score_partitions import publish_input


def draw_sample(root: Path, rows: int, seed: int = 17) -> tuple[pa.Table, LabelSampler]:
    sampler = LabelSampler(PublishedLabels(root / "scores"), rows, seed)
    return sampler.draw(), sampler


def test_sample_follows_strata_with_texts_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_input(tmp_path, "a", ["us"] * 300 + ["de"] * 100)
    publish_input(tmp_path, "b", ["de"] * 50, 1)
    sample, sampler = draw_sample(tmp_path, 60)
    rows = sample.to_pylist()
    assert sample.schema == SAMPLE_SCHEMA and len(rows) == 60 and sampler.missing == {}
    assert {(row["market"], row["decision"]) for row in rows} == {
        (market, decision) for market in ("us", "de") for decision in ("relevant", "irrelevant", "abstain")
    }
    for row in rows:
        assert row["query"] == f"q {row['row_id']}" and row["judgement"] is None
        assert row["weight"] == row["stratum_rows"] / row["stratum_drawn"]
        assert row["stratum"].startswith(f"search | {row['market']} | {row['decision']} | ")
    drawn = Counter(row["stratum"] for row in rows)
    assert all(drawn[row["stratum"]] == row["stratum_drawn"] >= 2 for row in rows)
    assert sum(row["weight"] for row in rows) == pytest.approx(450)
    assert len({row["row_id"] for row in rows}) == 60
    monkeypatch.setattr(published_labels, "BATCH_ROWS", 7)
    assert draw_sample(tmp_path, 60)[0].equals(sample)
    assert not draw_sample(tmp_path, 60, seed=18)[0].equals(sample)


def test_each_label_of_a_stratum_is_drawn_equally_often(tmp_path: Path) -> None:
    publish_input(tmp_path, "a", ["us"] * 40)
    drawn: Counter[str] = Counter()
    for seed in range(150):
        drawn.update({row["row_id"]: row["weight"] for row in draw_sample(tmp_path, 16, seed)[0].to_pylist()})
    assert len(drawn) == 40  # each with the expected weight of 1 a draw
    assert all(90 < total < 220 for total in drawn.values())


@pytest.mark.parametrize("change", ["removed", "altered", "damaged"])
def test_missing_texts_are_named_and_the_rest_is_drawn(tmp_path: Path, change: str) -> None:
    path = publish_input(tmp_path, "a", ["us"] * 30)
    publish_input(tmp_path, "b", ["de"] * 30, 1)
    if change == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"x" if change == "altered" else b"")
    sample, sampler = draw_sample(tmp_path, 40)
    [(missing, reason)] = [(name, reason) for (name, _), reason in sampler.missing.items()]
    assert missing == str(path) and "changed or removed since its rows were labeled" in reason
    texts = {row["row_id"][0]: (row["query"], row["market"], row["stratum"]) for row in sample.to_pylist()}
    assert texts["a"][:2] == (None, None) and "market unknown" in texts["a"][2]
    assert texts["b"][1] == "de" and texts["b"][0].startswith("q b-")


def test_more_rows_than_labels_draw_all(tmp_path: Path) -> None:
    publish_input(tmp_path, "a", ["us"] * 9)
    sample, _ = draw_sample(tmp_path, 100)
    assert sample.num_rows == 9 and set(sample["weight"].to_pylist()) == {1.0}


COUNTS: dict[Stratum, int] = {
    (task, market, decision, band): 10 * (band + 1)
    for task in ("ads", "search")
    for market in ("us", "de", "fr")
    for decision in ("relevant", "irrelevant")
    for band in range(4)
}


@pytest.mark.parametrize(("rows", "num_strata"), [(96, 48), (95, 12), (24, 12), (23, 4), (8, 4), (4, 4)])
def test_few_rows_merge_bands_and_then_markets(rows: int, num_strata: int) -> None:
    plan = plan_sample(COUNTS, rows)
    assert len(plan.sizes) == num_strata and sum(plan.to_draw.values()) == rows
    assert sum(plan.sizes.values()) == sum(COUNTS.values())
    assert min(plan.to_draw.values()) >= (2 if rows >= 8 else 1)


def test_fewer_rows_than_tasks_and_decisions_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="rows too few: 3; give --rows 4 or more, one for each task and dec"
    ):
        plan_sample(COUNTS, 3)


def test_rows_are_shared_out_by_square_roots_within_bounds() -> None:
    assert share_out([10_000, 100], 22, 2) == [20, 2]
    assert share_out([10_000, 400], 60, 2) == [50, 10]
    assert share_out([1, 3, 10_000], 50, 2)[0] == 1 and sum(share_out([1, 3, 10_000], 50, 2)) == 50
    assert share_out([5, 7], 100, 2) == [5, 7]
    rng = np.random.default_rng(3)
    for _ in range(200):
        sizes = rng.integers(1, 500, rng.integers(1, 12)).tolist()
        rows = int(rng.integers(sum(min(2, size) for size in sizes), 700))
        drawn = share_out(sizes, rows, 2)
        assert sum(drawn) == min(rows, sum(sizes))
        assert all(min(2, size) <= count <= size for size, count in zip(sizes, drawn, strict=True))
