"""Training gives the same numbers however its work is divided: passes, ranks, ZeRO stages, interruptions."""

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from safetensors.torch import load_file

from models.backbone import resolve_folder
from models.files import file_sha256
from models.serialization.bundle import read_bundle
from pipeline.config.loading import build_config
from pipeline.data.reader import find_partitions
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.errors import DamagedInputError
from pipeline.runtime.progress import SilentProgress
from pipeline.training.checkpoint import check_checkpoint
from pipeline.training.worker_setup import build_sampler
from tests.failures.support.exact_trainings import (
    KILLED,
    LONGER_BY_RANKS,
    LONGER_RUNS,
    RUNS,
    STEPS,
    WAYS,
    WAYS_BY_RANKS,
    World,
    exact_config,
    train_ways,
    whole_checkpoints,
)
from tests.support.planted import write_planted

pytestmark = pytest.mark.e2e

GOLDEN = Path(__file__).parents[1] / "golden" / "training_losses.json"
# float32 sums in another order, carried through Adam, whose first steps divide by numbers of their own size
LOSS_TOLERANCE = 2e-4
BFLOAT16_TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> World:
    root = tmp_path_factory.mktemp("exact")
    write_planted(root)
    config = build_config(exact_config(root, str(tiny_llama)), "planted")
    plan = EncodingPlan(
        find_partitions(root / "judged", config.tasks),
        config.split,
        config.tasks,
        config.encode,
        resolve_folder(config.backbone),
    )
    return World(
        root, str(tiny_llama), publish_encoded(plan, root / "encoded", SilentProgress()), config.tasks
    )


@pytest.fixture(scope="module")
def trained(world: World) -> World:
    """Train most ways on two ranks, and some on one."""
    for world_size, ways in WAYS_BY_RANKS.items():
        train_ways(world, world_size, ways)
    return world


@pytest.fixture(scope="module")
def trained_longer(trained: World) -> World:
    """Train the other ways, and some on four ranks."""
    for world_size, ways in LONGER_BY_RANKS.items():
        train_ways(trained, world_size, ways)
    return trained


@pytest.mark.failures
@pytest.mark.parametrize(("way", "world_size"), LONGER_RUNS)
def test_losses_of_the_other_ways_equal_one_process(trained_longer: World, way: str, world_size: int) -> None:
    test_losses_equal_one_process_with_one_pass_per_step(trained_longer, way, world_size)


@pytest.mark.parametrize(("way", "world_size"), RUNS)
def test_losses_equal_one_process_with_one_pass_per_step(trained: World, way: str, world_size: int) -> None:
    expected, found = trained.losses("zero-0 on 1"), trained.losses(f"{way} on {world_size}")
    assert list(found) == list(range(1, STEPS + 1))
    for step, numbers in expected.items():
        assert found[step] == pytest.approx(numbers, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE), step
    one, other = (
        load_file(trained.root / name / "bundle" / "weights.safetensors")
        for name in ("zero-0 on 1", f"{way} on {world_size}")
    )
    # a step of 0.02 at most, of which Adam's sign may flip early
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 5e-3
    assert trained.probabilities(f"{way} on {world_size}") == pytest.approx(
        trained.probabilities("zero-0 on 1"), abs=2e-3
    )
    assert trained.best(f"{way} on {world_size}") == pytest.approx(trained.best("zero-0 on 1"), abs=2e-3)


@pytest.mark.failures
def test_losses_of_two_ranks_equal_one_process_in_bfloat16(trained: World) -> None:
    ways = {"bfloat16 on 1": {"zero_stage": 0}, "bfloat16 on 2": {"zero_stage": 2}}
    for world_size, (name, deepspeed) in enumerate(ways.items(), 1):
        case = trained.case(name, training={"micro_batch_tokens": 256}, **deepspeed)
        case["settings"]["config"]["backbone"]["dtype"] = "bfloat16"
        trained.train(world_size, [case], name)
    one, two = (trained.losses(name) for name in ways)
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    # eight bits of mantissa; later steps carry the differences of the first
    assert [two[step]["loss"] for step in two] == pytest.approx(
        [numbers["loss"] for numbers in one.values()], rel=BFLOAT16_TOLERANCE
    )
    assert trained.losses("zero-0 on 1")[1]["loss"] != one[1]["loss"]


def impatient_case(trained: World, name: str, die_at: int | None = None) -> dict[str, Any]:
    """Return a training whose learning rate undoes its first steps."""
    training = {"evaluate_every_steps": 2, "patience": 3, "epochs": 4}
    case = trained.case(name, die_at=die_at, training=training, zero_stage=2)
    case["settings"]["config"]["optimizer"] = {
        "learning_rate": 0.5,
        "head_learning_rate": 0.5,
        "warmup_share": 0.2,
    }
    return case


@pytest.fixture(scope="module")
def impatient(trained: World) -> World:
    """Train one that ends by early stopping."""
    trained.train(2, [impatient_case(trained, "patience unbroken")], "patience unbroken")
    return trained


def test_early_stopping_publishes_the_best_evaluation(
    impatient: World,
) -> None:
    evaluations = [line for line in impatient.lines("patience unbroken") if "evaluated_after" in line]
    steps = [line["evaluated_after"] for line in evaluations]
    best = max(evaluations, key=lambda line: (line["macro_pr_auc"], -line["macro_log_loss"]))
    assert steps == list(range(2, best["evaluated_after"] + 7, 2)) and steps[-1] < 48
    record = read_bundle(impatient.root / "patience unbroken" / "bundle").description["training"]
    assert record["best"] == {
        "step": best["evaluated_after"],
        "macro_pr_auc": best["macro_pr_auc"],
        "log_loss": best["macro_log_loss"],
    }
    assert record["steps"] == steps[-1]


@pytest.mark.failures
def test_best_weights_survive_killed_ranks(impatient: World) -> None:
    case = impatient_case(impatient, "patience", die_at=6)
    impatient.train(2, [case], "patience, killed", KILLED)
    impatient.train(2, [{**case, "die_at": None}], "patience, going on")
    bundles = [read_bundle(impatient.root / name / "bundle") for name in ("patience", "patience unbroken")]
    assert bundles[0].sha256 == bundles[1].sha256


OTHER_WAYS = ("zero-0", "zero-1", "zero-2", "zero-2 offload", "zero-3 offload", "recomputed")
MORE_KILLED = [pytest.param(way, marks=pytest.mark.failures) for way in OTHER_WAYS]


@pytest.mark.parametrize("way", ["zero-3", *MORE_KILLED])
def test_ranks_killed_during_a_checkpoint_resume_bit_for_bit(counts: Any, trained: World, way: str) -> None:
    name, (training, deepspeed) = f"killed, {way}", WAYS[way]
    trained.train(
        2, [trained.case(name, die_at=6, training=training, **deepspeed)], f"{name}, killed", KILLED
    )
    counts.add("kills")
    # the checkpoint of step 6 may be whole by then
    assert whole_checkpoints(trained, name) in (["step-00000003"], ["step-00000003", "step-00000006"])
    trained.train(2, [trained.case(name, training=training, **deepspeed)], f"{name}, going on")
    unbroken, found = trained.losses(f"{way} on 2"), trained.losses(name)
    counts.compare(
        [found[step]["loss"] for step in unbroken], [numbers["loss"] for numbers in unbroken.values()]
    )
    assert found == unbroken
    assert trained.weights(name) == trained.weights(f"{way} on 2")
    assert not list((trained.root / name / "checkpoints").glob(".step-*"))
    counts.add("resumed")


# (ranks, stage) before and after
OTHERS = [
    ((2, 2), (4, 2)),
    ((4, 3), (2, 1)),
    ((2, 2), (1, 2)),
    ((1, 3), (4, 3)),
    ((2, 0), (2, 3)),
    ((4, 1), (1, 0)),
]


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(*pair, marks=pytest.mark.failures) for pair in OTHERS],
)
def test_other_ranks_or_stage_resume_the_training(
    counts: Any, trained: World, before: tuple[int, int], after: tuple[int, int]
) -> None:
    name = f"other ranks, {before} then {after}"
    trained.train(before[0], [trained.case(name, die_at=9, zero_stage=before[1])], f"{name}, killed", KILLED)
    counts.add("kills")
    trained.train(after[0], [trained.case(name, zero_stage=after[1])], f"{name}, going on")
    expected, found = trained.losses("zero-0 on 1"), trained.losses(name)
    assert list(found) == list(expected)
    for step in expected:
        assert found[step] == pytest.approx(expected[step], rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE), step
    counts.add("resumed")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


MORE_DAMAGE = [
    pytest.param(name, marks=pytest.mark.failures)
    for name in ("weights.safetensors", "state.json", "manifest.json")
]


@pytest.mark.failures
@pytest.mark.parametrize("name", ["optimizer-1.safetensors", *MORE_DAMAGE])
def test_damaged_newest_checkpoint_does_not_change_the_result(counts: Any, trained: World, name: str) -> None:
    run = f"damaged {name}"
    trained.train(2, [trained.case(run, die_at=9, zero_stage=2)], f"{run}, killed", KILLED)
    newest = trained.root / run / "checkpoints" / whole_checkpoints(trained, run)[-1]
    flip(newest / name)
    counts.add("kills")
    counts.add("damaged")
    trained.train(2, [trained.case(run, zero_stage=2)], f"{run}, going on")
    assert trained.losses(run) == trained.losses("zero-2 on 2")
    assert trained.weights(run) == trained.weights("zero-2 on 2")
    starts = [line["starts_after"] for line in trained.lines(run) if "starts_after" in line]
    assert starts[-1] == int(newest.name.removeprefix("step-")) - 3
    counts.add("detected")
    counts.add("resumed")


def damage(random: Random, folder: Path) -> str:
    """Damage a file as storage may; return a description."""
    path = random.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    kind = random.choice(["flipped", "cut", "gone", "swapped"])
    if kind == "flipped":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        # a missing line break at the end would be no damage
        path.write_bytes(content[: random.randrange(len(content) - 1)])
    elif kind == "gone":
        path.unlink()
    else:
        other = random.choice([one for one in sorted(folder.iterdir()) if one != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    return f"{path.name} {kind}"


@pytest.mark.failures
def test_random_damage_is_always_detected(counts: Any, trained: World, tmp_path: Path) -> None:
    # the best of steps 10 and before beside step 12 or 15: no two files are the same
    trained.train(
        2,
        [trained.case("to damage", die_at=15, training={"evaluate_every_steps": 10}, zero_stage=2)],
        "to damage",
        KILLED,
    )
    whole = trained.root / "to damage" / "checkpoints" / whole_checkpoints(trained, "to damage")[-1]
    check_checkpoint(whole)
    assert (whole / "best.safetensors").is_file()
    random = Random(7)
    for number in range(100):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        damaged = damage(random, folder)
        counts.add("damaged")
        with pytest.raises(DamagedInputError):
            check_checkpoint(folder)
            pytest.fail(f"{damaged} was not detected")
        counts.add("detected")


# where the stop is requested, and the steps done by then: no step follows, and evaluations are cut short
STOPS = {
    "before any step": (None, 0),
    "in a step": (("step", 7), 8),
    "in an evaluation": (("evaluation", 12), 12),
    "in the last evaluation": (("evaluation", 20), 20),
}


@pytest.mark.failures
@pytest.mark.parametrize("when", STOPS)
def test_stopped_ranks_keep_their_state(trained: World, when: str) -> None:
    (stop_in, kept), name = STOPS[when], f"stopped {when}"
    case = trained.case(name, zero_stage=2)
    if stop_in is None:
        Path(case["settings"]["stop_path"]).touch()
    output = trained.train(2, [{**case, "stop_in": stop_in}], f"{name}, asked", exit_code=1)
    assert (
        "training was stopped as asked"
        + (f", and its state after step {kept} is kept" if kept else " before its first step")
        in output
    )
    assert whole_checkpoints(trained, name)[-1:] == ([f"step-{kept:08d}"] if kept else [])
    assert kept not in [line["evaluated_after"] for line in trained.lines(name) if "evaluated_after" in line]
    Path(case["settings"]["stop_path"]).unlink()
    trained.train(2, [case], f"{name}, going on")
    assert trained.losses(name) == trained.losses("zero-2 on 2")
    assert trained.weights(name) == trained.weights("zero-2 on 2")
    assert trained.best(name) == trained.best("zero-2 on 2")


def test_token_budgets_give_one_two_and_four_passes(world: World) -> None:
    config = build_config(world.case("passes")["settings"]["config"], "test")
    encoded = read_encoded(world.encoded_dir, "train", world.tasks)
    sampler = build_sampler(encoded, config.tasks, config.training, config.seed)
    passes = {
        budget: [len(sampler.micro_rows(step, 0, 2, budget)) for step in range(sampler.batches_per_epoch)]
        for budget in (None, 256, 128)
    }
    assert set(passes[None]) == {1} and max(passes[256]) >= 2 and max(passes[128]) >= 4


@pytest.mark.failures
@pytest.mark.parametrize("passes", [True, False])
def test_each_row_is_trained_on_once_despite_killed_ranks(counts: Any, trained: World, passes: bool) -> None:
    name, training = f"rows {passes}", {"micro_batch_tokens": 256} if passes else {}
    trained.train(
        2, [trained.case(name, die_at=9, training=training, zero_stage=2)], f"{name}, killed", KILLED
    )
    counts.add("kills")
    trained.train(2, [trained.case(name, training=training, zero_stage=2)], f"{name}, going on")
    seen: dict[tuple[int, int], list[int]] = {}
    for rank in (0, 1):
        lines = [
            json.loads(line) for line in (trained.root / name / f"rows-{rank}.jsonl").read_text().splitlines()
        ]
        starts = [n for n, line in enumerate(lines) if n == 0 or line["step"] < lines[n - 1]["step"]]
        assert len(starts) == 2  # steps after the checkpoint were done twice
        resumed_at = lines[starts[1]]["step"]
        for line in [line for line in lines[: starts[1]] if line["step"] < resumed_at] + lines[starts[1] :]:
            seen.setdefault((line["step"], rank), []).extend(line["rows"])
    encoded = read_encoded(trained.encoded_dir, "train", trained.tasks)
    batches = -(-len(encoded) // 16)
    epoch = [row for (step, _), rows in seen.items() for row in rows if step < batches]
    counts.add("rows_duplicated", len(epoch) - len(set(epoch)))
    counts.add("rows_missing", len(encoded) - len(set(epoch)))
    assert sorted(epoch) == list(range(len(encoded)))
    counts.add("resumed")


def test_losses_equal_the_golden_ones(trained: World) -> None:
    # WRITE_GOLDEN=1 writes the file; otherwise a failure means that the arithmetic has changed
    found = {step: numbers["loss"] for step, numbers in trained.losses("zero-2 on 1").items()}
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    written = {int(step): loss for step, loss in json.loads(GOLDEN.read_text()).items()}
    assert found == pytest.approx(written, rel=1e-3)  # processors round differently


def packs_rows(world: World, way: str) -> bool:
    """Return whether no step had padding, and some processed a shared prefix once."""
    steps = [line for line in world.lines(way) if "step" in line]
    return not any(line["padding"] for line in steps) and any(
        line["tokens_computed"] < line["tokens"] for line in steps
    )


@pytest.mark.parametrize("way", ["zero-2 on 1", "zero-2 on 2", "zero-3 on 2", "recomputed on 2"])
def test_passes_have_no_padding_and_one_instruction(trained: World, way: str) -> None:
    assert packs_rows(trained, way)


@pytest.mark.failures
def test_compiled_passes_have_no_padding_either(trained_longer: World) -> None:
    assert packs_rows(trained_longer, "compiled on 2")


@pytest.mark.failures
def test_two_trainings_of_one_config_are_equal_bit_for_bit(trained: World) -> None:
    trained.train(2, [trained.case("again", zero_stage=2)], "again")
    assert trained.losses("again") == trained.losses("zero-2 on 2")
    assert file_sha256(trained.root / "again" / "bundle" / "manifest.json") == file_sha256(
        trained.root / "zero-2 on 2" / "bundle" / "manifest.json"
    )
