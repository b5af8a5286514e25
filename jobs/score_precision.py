"""Which precision a scoring run judges in."""

from jobs.cluster import ray_cluster
from pipeline.config import RunConfig
from pipeline.fetched import FetchedVersion
from pipeline.files import remove_tree
from pipeline.int8_measure import measure_on_ray
from pipeline.logs import Console
from pipeline.precision import NATIVE, PrecisionChoice, choice_lines, keep_choice, read_choice
from pipeline.score import actor_settings
from pipeline.store import open_store

NOT_FOR_ALL = "  int8: not used with --all-tasks, where one pass for all tasks has no merged weights; labels are of the native precision"


def choose_precision(config: RunConfig, champion: FetchedVersion, console: Console, all_tasks: bool = False) -> PrecisionChoice:
    """What was chosen for this model and place, or is measured and chosen now; told in any case where int8 is asked for."""
    scoring, place = config.scoring, config.scores_place
    if not scoring.int8:
        return NATIVE
    if all_tasks:
        console.say(NOT_FOR_ALL)
        return NATIVE
    choice = read_choice(place, champion.bundle_sha256, scoring.int8_tolerance)
    if choice is None:
        console.say(f"  int8: measured now, once for version {champion.version} and these labels")
        measuring_dir = config.run_dir / "scoring" / "int8"
        measuring_dir.mkdir(parents=True, exist_ok=True)
        with ray_cluster(scoring.threads_per_actor):
            measured = measure_on_ray(actor_settings(config, champion, measuring_dir), config.to_score_place, config.tasks)
        choice = keep_choice(place, champion.bundle_sha256, scoring.int8_tolerance, measured)
        remove_tree(measuring_dir)
    for line in choice_lines(choice, open_store(place).place):
        console.say(f"  {line}")
    return choice


def known_precision(config: RunConfig, champion: FetchedVersion, console: Console, all_tasks: bool = False) -> PrecisionChoice:
    """The same without measuring: what is not chosen yet is taken for int8, under which no label is published yet."""
    if all_tasks or not config.scoring.int8:
        return NATIVE
    choice = read_choice(config.scores_place, champion.bundle_sha256, config.scoring.int8_tolerance)
    if choice is None:
        console.say("  int8: not measured yet; if it is refused, what was labelled in the native precision is not labelled again")
    return choice or PrecisionChoice("int8")
