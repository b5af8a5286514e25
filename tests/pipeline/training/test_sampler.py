"""Tests of the sampler: batches are a function of position, and every row comes as often as it should."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.training.sampler import Sampler, SamplerSettings, epoch_quotas

ROWS_T = (700, 90, 10)


def build_sampler(
    rows_T: Sequence[int] = ROWS_T,
    weights: Sequence[float] | None = None,
    batch_rows: int = 16,
    temperature: float = 1.0,
    seed: int = 5,
    max_task_rows: int | None = None,
) -> Sampler:
    """Return a sampler over rows of random lengths and shuffled tasks."""
    random = np.random.default_rng(0)
    task_N = random.permutation(np.repeat(np.arange(len(rows_T)), rows_T))
    length_N = random.geometric(0.03, len(task_N)).clip(4, 128)
    return Sampler(
        length_N,
        task_N,
        weights or [1.0] * len(rows_T),
        SamplerSettings(batch_rows, temperature, seed, max_task_rows),
    )


def epoch_batches(sampler: Sampler, epoch: int) -> list[np.ndarray]:
    first = epoch * sampler.batches_per_epoch
    return [sampler.global_rows(first + index) for index in range(sampler.batches_per_epoch)]


@pytest.mark.parametrize("batch_rows", [1, 7, 16, 799, 800, 5_000])
def test_every_row_comes_exactly_once_an_epoch(batch_rows: int) -> None:
    sampler = build_sampler(batch_rows=batch_rows)
    for epoch in (0, 1, 7):
        rows = np.concatenate(epoch_batches(sampler, epoch))
        assert np.array_equal(np.sort(rows), np.arange(800))


SHARES = [(2.0, (1.0, 1.0, 1.0)), (2.0, (1.0, 2.0, 0.5)), (1.0, (1.0, 3.0, 3.0)), (5.0, (1.0, 1.0, 4.0))]


@pytest.mark.parametrize(("temperature", "weights"), SHARES)
def test_tasks_fill_their_quotas_with_equally_frequent_rows(
    temperature: float, weights: tuple[float, ...]
) -> None:
    sampler = build_sampler(temperature=temperature, weights=weights)
    share_T = np.array(weights) * np.array(ROWS_T) ** (1 / temperature)
    exact_T = share_T / share_T.sum() * 800
    assert sampler.quota_T.sum() == 800
    assert (np.abs(sampler.quota_T - exact_T) < 1).all()
    for epoch in (0, 3):
        rows = np.concatenate(epoch_batches(sampler, epoch))
        assert np.bincount(sampler.task_N[rows]).tolist() == sampler.quota_T.tolist()
        for task, quota in enumerate(sampler.quota_T):
            members = np.flatnonzero(sampler.task_N == task)
            times = np.bincount(rows, minlength=800)[members]
            assert times.min() == quota // len(members) and times.max() == -(-quota // len(members))


def test_extra_repetitions_go_to_other_rows_each_epoch() -> None:
    sampler = build_sampler((700, 90), weights=(1.0, 3.0))
    often = []
    for epoch in range(3):
        times = np.bincount(np.concatenate(epoch_batches(sampler, epoch)), minlength=790)
        small = np.flatnonzero(sampler.task_N == 1)
        often.append(set(small[times[small] == times[small].max()].tolist()))
    assert 0 < len(often[0]) < 90
    assert often[0] != often[1] != often[2] != often[0]


def test_capped_task_draws_other_rows_each_epoch() -> None:
    sampler = build_sampler(max_task_rows=100)
    assert sampler.quota_T.tolist() == [100, 90, 10]
    seen = []
    for epoch in range(20):
        rows = np.concatenate(epoch_batches(sampler, epoch))
        assert len(rows) == len(set(rows.tolist())) == 200
        seen.append(set(rows[sampler.task_N[rows] == 0].tolist()))
    assert len(seen[0] & seen[1]) < 60
    assert len(set().union(*seen)) > 600


def test_quotas_add_up_to_the_number_of_rows() -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        rows_T = random.integers(0, 50, random.integers(1, 9))
        rows_T[random.integers(len(rows_T))] += 1
        weight_T, temperature = random.uniform(0.01, 10, len(rows_T)), random.uniform(1, 8)
        quota_T = epoch_quotas(rows_T, weight_T, temperature)
        assert quota_T.sum() == rows_T.sum()
        assert (quota_T >= 0).all() and not quota_T[rows_T == 0].any()


def test_task_without_rows_gets_no_quota() -> None:
    sampler = Sampler(np.full(40, 9), np.repeat([0, 2], 20), [1.0, 5.0, 1.0], SamplerSettings(8, 2.0, 0))
    assert sampler.quota_T.tolist() == [20, 0, 20]
    assert set(sampler.task_N[np.concatenate(epoch_batches(sampler, 0))].tolist()) == {0, 2}


PREFIX_LENGTHS = [None, np.array([3, 0, 3]), np.array([0, 0, 0])]  # the shortest row has 4 tokens


@pytest.mark.parametrize("prefix_length_T", PREFIX_LENGTHS)
@pytest.mark.parametrize("rows", [800, 785, 787])
def test_ranks_divide_the_same_batch_for_every_world_size(
    rows: int, prefix_length_T: np.ndarray | None
) -> None:
    sampler = build_sampler((rows - 100, 90, 10))
    for step in range(2 * sampler.batches_per_epoch):
        whole = sorted(sampler.global_rows(step).tolist())
        for world_size in (1, 2, 4):
            parts = [sampler.rank_rows(step, rank, world_size, prefix_length_T) for rank in range(world_size)]
            assert sorted(np.concatenate(parts).tolist()) == whole
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("rows", "sizes"), [(48, [16] * 3), (50, [16] * 3 + [2]), (49, [16] * 3 + [1]), (5, [5]), (16, [16])]
)
def test_last_batch_is_kept_however_small(rows: int, sizes: list[int]) -> None:
    assert Counter(map(len, epoch_batches(build_sampler((rows,)), 0))) == Counter(sizes)


@pytest.mark.parametrize("prefix_length_T", PREFIX_LENGTHS[:2])
@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
@pytest.mark.parametrize("budget", [64, 200, 1_000, 100_000, None])
def test_passes_hold_every_row_once_within_the_budget(
    world_size: int, budget: int | None, prefix_length_T: np.ndarray | None
) -> None:
    sampler = build_sampler(batch_rows=50)
    for step in range(sampler.batches_per_epoch):
        parts_R = [
            sampler.micro_rows(step, rank, world_size, budget, prefix_length_T) for rank in range(world_size)
        ]
        assert len({len(parts) for parts in parts_R}) == 1
        assert sorted(np.concatenate([row for parts in parts_R for row in parts]).tolist()) == sorted(
            sampler.global_rows(step).tolist()
        )
        for part in [part for parts in parts_R for part in parts if len(part) > 1 and budget]:
            assert len(part) * sampler.length_N[part].max() <= budget
    if budget == 64 and world_size == 1:
        assert len(parts_R[0]) > 1
    if budget in (100_000, None):
        assert len(parts_R[0]) == 1


def test_batch_does_not_depend_on_earlier_calls() -> None:
    one, other = build_sampler(), build_sampler()
    steps = list(range(4 * one.batches_per_epoch))
    in_order = [one.global_rows(step) for step in steps]
    for step in np.random.default_rng(2).permutation(steps):
        assert np.array_equal(other.global_rows(int(step)), in_order[step])


@pytest.mark.parametrize("prefix_length_T", PREFIX_LENGTHS[:2])
def test_resumed_run_draws_the_rows_of_an_uninterrupted_one(prefix_length_T: np.ndarray | None) -> None:
    unbroken = [build_sampler().rank_rows(step, 1, 2, prefix_length_T).tolist() for step in range(45, 60)]
    resumed = build_sampler()
    assert [resumed.rank_rows(step, 1, 2, prefix_length_T).tolist() for step in range(45, 60)] == unbroken


def test_seeds_and_epochs_order_rows_differently() -> None:
    plans = [
        np.concatenate(epoch_batches(build_sampler(seed=seed), epoch)) for seed in (1, 2) for epoch in (0, 1)
    ]
    for index, plan in enumerate(plans):
        assert not any(np.array_equal(plan, other) for other in plans[index + 1 :])
        assert (plan == np.arange(800)).mean() < 0.05


def test_batches_of_an_epoch_are_not_ordered_by_length() -> None:
    sampler = build_sampler((8_000,))
    mean_length = [sampler.length_N[rows].mean() for rows in epoch_batches(sampler, 0)]
    assert 0.4 < np.mean(np.diff(mean_length) > 0) < 0.6


def test_batches_mix_tasks() -> None:
    sampler = build_sampler((400, 400))
    mixed = [len(set(sampler.task_N[rows].tolist())) == 2 for rows in epoch_batches(sampler, 0)]
    assert np.mean(mixed) > 0.95


def padding_share(length_N: np.ndarray, batches: list[np.ndarray]) -> float:
    room = sum(length_N[rows].max() * len(rows) for rows in batches)
    return 1 - sum(length_N[rows].sum() for rows in batches) / room


def test_batches_have_far_less_padding_than_random_ones() -> None:
    sampler = build_sampler((3_000, 1_000))
    batches = epoch_batches(sampler, 0)
    at_random = np.split(np.random.default_rng(3).permutation(4_000), range(16, 4_000, 16))
    assert padding_share(sampler.length_N, at_random) > 0.5
    assert padding_share(sampler.length_N, batches) < 0.1


def test_ranks_get_rows_of_similar_lengths() -> None:
    sampler = build_sampler((64,), batch_rows=64)
    ordered = np.sort(sampler.length_N)
    for rank in range(4):
        assert np.sort(sampler.length_N[sampler.rank_rows(0, rank, 4)]).tolist() == ordered[rank::4].tolist()
