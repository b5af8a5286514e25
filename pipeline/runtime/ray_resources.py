"""CPUs and GPUs of the connected Ray cluster, for messages."""

from collections.abc import Mapping


def free_resources() -> dict[str, float]:
    """Return the CPUs and GPUs of the connected cluster that nobody uses."""
    import ray

    free = ray.available_resources()
    return {name: free.get(name, 0.0) for name in ("CPU", "GPU")}


def format_resources(resources: Mapping[str, float]) -> str:
    """Return resources as text, such as "2 CPUs and 1 GPU"; GPUs only if there are any."""
    numbers = {name: f"{number:g}" for name, number in resources.items() if number or name == "CPU"}
    return " and ".join(f"{number} {name}{'' if number == '1' else 's'}" for name, number in numbers.items())
