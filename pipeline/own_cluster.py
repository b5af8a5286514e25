"""Ray Train on the one machine of a command, without what it keeps for clusters that are shared.

Each of Ray's processes wakes a hundred times a second even where it has nothing to do, and each time a product that runs on all cores waits for the
one that was taken from it: on two cores an actor costs training some hundredth of its speed.
"""

from typing import Any


def go_without_sharing(trainer: Any) -> None:
    """Have Ray's trainer start no actor that a cluster of one machine and one job has no use for. `free_places` must be called before it starts."""
    # it frees the workers' places should the controller die: so does `free_places`
    leave_out_callback(trainer, "PlacementGroupCleanerCallback")
    run = trainer._initialize_and_run_controller

    def run_at_fixed_size(**parts: Any) -> Any:
        # the policy asks an actor of its own for machines
        parts["scaling_policy"].after_controller_start = ask_for_none
        parts["scaling_policy"]._maybe_send_resource_request = ask_for_none
        return run(**parts)

    trainer._initialize_and_run_controller = run_at_fixed_size


def leave_out_callback(trainer: Any, kind: str) -> None:
    """Have Ray's trainer go without the one of its own callbacks that is of the class named so."""
    callbacks = trainer._create_default_callbacks()
    trainer._create_default_callbacks = lambda: [one for one in callbacks if type(one).__name__ != kind]


def ask_for_none(*_: Any) -> None:
    """There are no more machines to be had."""


def free_places() -> None:
    """Take back all places of workers: for what a controller that died had reserved the next one would wait in vain."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for identity in placement_group_table():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))
