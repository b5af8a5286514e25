"""Texts about a cluster's resources."""

from pipeline.runtime.ray_resources import format_resources


def test_resources_are_listed_with_their_numbers():
    assert format_resources({"CPU": 1, "GPU": 0}) == "1 CPU"
    assert format_resources({"CPU": 0.5, "GPU": 2.0}) == "0.5 CPUs and 2 GPUs"
    assert format_resources({"CPU": 0.0, "GPU": 0.0}) == "0 CPUs"
