"""Tests of the stop signal."""

from pathlib import Path

from pipeline.training.stop_signal import StopSignal


def test_only_rank_zero_sees_a_request(tmp_path: Path) -> None:
    driver = StopSignal(tmp_path / "stop")
    workers = [StopSignal(driver.path, rank) for rank in (0, 1)]
    assert [worker.is_requested() for worker in workers] == [False, False]
    driver.request()
    assert [worker.is_requested() for worker in workers] == [True, False]
    driver.clear()
    driver.clear()
    assert not workers[0].is_requested()
