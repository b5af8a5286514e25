"""Trial of an adapter config on a small random model of a backbone's architecture.

Some architectures read a linear's weight themselves, flatten rows and tokens, or leave a linear unused. An
adapter on such a linear raises an error or gets no gradient. In others, rows depend on their padding. The
trial finds this in a second, without the backbone's weights.

Shape legend: B rows, S tokens, C labels.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.adapters.adapted_linear import AdaptedLinear
from models.adapters.injection import (
    Targets,
    adapted_layers,
    find_targets,
    fused_experts,
    inject_targets,
    is_suffix,
    transformer_layers,
)
from models.config import AdapterConfig
from models.heads import Pooling, TaskHeads, trunk_states
from models.padding import check_padding
from models.relevance import RelevanceModel
from models.trunks import build_small_trunk, trunk_pooling

logger = logging.getLogger(__name__)

MIN_TOKEN_ID, MAX_TOKEN_ID = 5, 100  # ids outside are often control tokens
ROW_LENGTHS = (7, 4, 6, 5)  # in tokens; the padded length is not a multiple of the number of rows
NUM_TASKS = 2
MAX_PARAMETERS = 150_000_000  # of a small model; most have under 10 million
RANDOM_STD = 0.05
MAX_NAMES = 6  # linears in a message
MODULE_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, or of an expert in it


class AdapterTrialError(ValueError):
    """Adapters on some of the configured linears cannot be trained."""


@dataclass(frozen=True)
class TrialFailure:
    """The linears whose adapters cannot be trained, and the reason."""

    names: list[str]
    reason: str


@dataclass(frozen=True)
class Trial:
    """A small random trunk on which adapters are trained for one pass."""

    trunk: Any
    pooling: Pooling
    width: int  # of the pooled states

    def check_padding(self) -> None:
        """Check that a row gets the same pooled state alone and padded beside a longer row.

        Raises:
            BackboneUnavailableError: A row depends on its padding.
        """
        ids_BS, mask_BS, _ = _rows(self.trunk)
        long, short = ids_BS[0].tolist(), ids_BS[1, : int(mask_BS[1].sum())].tolist()
        check_padding(self._build([]).eval(), short, long, pad_id=0)

    def find_failure(self, targets: Targets) -> TrialFailure | None:
        """Return the targets that cannot be trained, with the reason of the first; None if all can.

        A pass shows one failure. So it is repeated without the failed targets until it succeeds.
        """
        failed: list[TrialFailure] = []
        while targets:
            failure = self._run(targets)
            if failure is None:
                break
            failed.append(failure)
            names = set(failure.names)
            targets = [target for target in targets if target[0] not in names]
        if not failed:
            return None
        return TrialFailure([name for failure in failed for name in failure.names], failed[0].reason)

    def run_without_adapters(self) -> None:
        """Run a pass without adapters in training mode, which may raise any error."""
        with torch.no_grad():
            self._build([]).train()(*_rows(self.trunk))

    def _run(self, targets: Targets) -> TrialFailure | None:
        """Run a training pass with adapters on the targets and return its first failure."""
        model = self._build(targets).train()
        try:
            return self._train(model, targets)
        finally:
            for name, layer in adapted_layers(self.trunk).items():
                self.trunk.set_submodule(name, layer.base)

    def _train(self, model: RelevanceModel, targets: Targets) -> TrialFailure | None:
        """Run a forward and a backward pass."""
        running = _track_running(model.trunk)
        try:
            model(*_rows(model.trunk)).square().sum().backward()
        except Exception as error:  # architectures raise errors of any class
            failed_layer = getattr(error, "obj", None)  # set by AttributeError
            is_bypassed = isinstance(failed_layer, AdaptedLinear)
            if not is_bypassed:
                failed_layer = running[-1] if running else None
            names = [name for name, layer in adapted_layers(model.trunk).items() if layer is failed_layer]
            kinds = {MODULE_INDEX.sub("*", name) for name in names}
            same_kind = [name for name, _ in targets if MODULE_INDEX.sub("*", name) in kinds]
            reason = "the architecture reads its weight itself" if is_bypassed else _error_line(error)
            return TrialFailure(same_kind or [name for name, _ in targets], reason)
        unreached = _without_gradient(model.trunk)
        return TrialFailure(unreached, "no gradient reaches them") if unreached else None

    def _build(self, targets: Targets) -> RelevanceModel:
        """Return a model with random adapters on the targets."""
        routing = inject_targets(self.trunk, targets, NUM_TASKS, seed=0)
        heads = TaskHeads(self.width, (2,) * NUM_TASKS)
        model = RelevanceModel(self.trunk, heads, routing, self.pooling)
        _add_random(parameter for parameter in model.parameters() if parameter.requires_grad)
        return model


def try_adapters(folder: Path, config: AdapterConfig) -> None:
    """Train the configured adapters for one pass, on a small random model of a folder's architecture.

    If no small model of the architecture runs, a warning is logged and nothing is refused.

    Raises:
        AdapterTrialError: Names the linears that cannot be trained, and the setting that leaves them out.
        BackboneUnavailableError: Rows of this architecture depend on their padding.
    """
    with _one_thread():
        trial = _build_trial(folder, config)
        if trial is None:
            return
        trial.check_padding()
        targets = find_targets(trial.trunk, config)
        failure = trial.find_failure(targets)
        if failure is not None:
            _check_trainable(trial)
    fused = " and ".join(fused_experts(trial.trunk))
    fused_note = f"{fused} of all experts are one tensor each, which is not adapted" if fused else ""
    if failure is not None:
        note = f" ({fused_note})" if fused_note else ""
        raise AdapterTrialError(_describe(failure, config, [name for name, _ in targets]) + note)
    if fused_note and config.target_modules == "all-linear":
        logger.info(f"  {fused_note}")


def _build_trial(folder: Path, config: AdapterConfig) -> Trial | None:
    """Return a trial whose trunk runs without adapters; log a warning and return None if none does.

    Small widths may break a relation between the sizes of a model. Then the widths of the folder are tried.
    """
    errors = []
    for keep_widths in (False, True):
        try:
            trunk = build_small_trunk(folder, MAX_PARAMETERS, keep_widths)
            find_targets(trunk, config)
            _add_random(trunk.parameters())
            pooling = trunk_pooling(trunk)
            ids_BS, mask_BS, _ = _rows(trunk)
            with torch.no_grad():
                width = trunk_states(trunk, ids_BS, mask_BS, pooling).shape[-1]
            return Trial(trunk, pooling, width)
        except Exception as error:  # anything may go wrong in a model of unusual widths
            errors.append(_error_line(error))
    logger.warning(
        f"  adapters are not tried before workers start: no small model ({errors[0]}; with its own widths: "
        f"{errors[1]})"
    )
    return None


def _check_trainable(trial: Trial) -> None:
    """Raise AdapterTrialError if the trunk runs in evaluation mode but not in training mode."""
    try:
        trial.run_without_adapters()
    except Exception as error:
        raise AdapterTrialError(
            f"this backbone cannot be trained: {_error_line(error)}; use another backbone"
        ) from error


def _describe(failure: TrialFailure, config: AdapterConfig, targets: list[str]) -> str:
    """Return the message about adapters that cannot be trained: the linears, the reason and the remedy."""
    failed = set(failure.names)
    kinds = list(dict.fromkeys(MODULE_INDEX.sub("*", name) for name in failure.names))
    if len(kinds) > MAX_NAMES:
        kinds = [*kinds[:MAX_NAMES], f"{len(kinds) - MAX_NAMES} others"]
    message = f"adapters on {', '.join(kinds)} cannot be trained ({failure.reason})"
    kept = [name for name in targets if name not in failed]
    if not kept:
        return f"{message}; use other adapter.target_modules, another adapter.method or another backbone"
    excluded = list(dict.fromkeys(shortest_suffix(name, kept) for name in failure.names))
    if config.target_modules == "all-linear" or not set(excluded) <= set(config.target_modules):
        excluded = [*config.exclude_modules, *excluded]
        return f"{message}; set adapter.exclude_modules: [{', '.join(excluded)}]"
    return f"{message}; remove {', '.join(excluded)} from adapter.target_modules"


def shortest_suffix(name: str, others: list[str]) -> str:
    """Return the shortest suffix of a module's name, in dotted parts, that no other name has."""
    parts = name.split(".")
    for start in range(len(parts) - 1, 0, -1):
        suffix = ".".join(parts[start:])
        if not any(is_suffix(suffix, other) for other in others):
            return suffix
    return name


def _without_gradient(trunk: Any) -> list[str]:
    """Return the adapted linears that no gradient reached.

    Linears that differ only by an index inside a layer, such as experts, count as reached if one is: a few
    tokens do not reach every expert.
    """
    layers_name = transformer_layers(trunk)[0] + "."
    by_kind: dict[str, list[tuple[str, bool]]] = {}
    for name, layer in adapted_layers(trunk).items():
        index, _, inner = name.removeprefix(layers_name).partition(".")
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
        is_reached = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        by_kind.setdefault(f"{index}.{MODULE_INDEX.sub('*', inner)}", []).append((name, is_reached))
    return [
        name
        for linears in by_kind.values()
        if not any(is_reached for _, is_reached in linears)
        for name, _ in linears
    ]


def _track_running(trunk: Any) -> list[AdaptedLinear]:
    """Return a list that hooks keep up to date: it holds the adapted layer whose forward is running.

    After an error in that layer, the list still holds it.
    """
    running: list[AdaptedLinear] = []
    for layer in adapted_layers(trunk).values():
        layer.register_forward_pre_hook(lambda layer, _: running.append(layer))
        layer.register_forward_hook(lambda *_: running.clear())
    return running


def _error_line(error: Exception) -> str:
    """Return the first line of an error's message, without the remedy after a semicolon."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(";")[0] if lines else type(error).__name__


@torch.no_grad()
def _add_random(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add random numbers to parameters: zeros would block gradients, and small weights hide padding."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.add_(RANDOM_STD * torch.randn(parameter.shape, generator=generator))


def _rows(trunk: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids (B, S), their mask (B, S) and task ids (B,)."""
    mask_BS = (torch.arange(max(ROW_LENGTHS)) < torch.tensor(ROW_LENGTHS)[:, None]).long()
    generator = torch.Generator().manual_seed(0)
    end = min(MAX_TOKEN_ID, len(trunk.get_input_embeddings().weight))  # vocabularies of proteins are tiny
    ids_BS = torch.randint(MIN_TOKEN_ID, end, mask_BS.shape, generator=generator) * mask_BS
    return ids_BS, mask_BS, torch.arange(len(ROW_LENGTHS)) % NUM_TASKS


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread, which is faster for small operations, and keep its random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
