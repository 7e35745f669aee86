"""One training loop for every modality, on an artist's node, at the coordinator's gate and for the base body.

It knows objectives and batches and nothing of what they are about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from models.contract import Lessons, Modality

Net = TypeVar("Net", bound=nn.Module)
Batch = TypeVar("Batch")
Optimiser: TypeAlias = tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]


class DivergedError(ArithmeticError):
    """A loss was not finite; the network must not be used."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and what to train.

    Attributes:
        steps: batches to learn from, at least 1.
        private_only: leave every shared tensor as it is.
        first_step: number of the first batch, so that a later call goes on instead of seeing the same batches again.
        rate_scale: multiplies every learning rate.
        shared_scale: multiplies those of the shared tensors once more.
        final_rate: fraction of the rate that is left at the last step (cosine decay in between).
        is_cancelled: asked before each step; when true the training ends early with what it has.
    """

    steps: int
    private_only: bool = False
    first_step: int = 0
    rate_scale: float = 1.0
    shared_scale: float = 1.0
    final_rate: float = 0.1
    is_cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Moments:
    """What Adam has seen of the gradients, kept from one call of ``fit`` to the next by whoever trains in rounds.

    Adam's first steps after a start are of one size for every parameter, whatever its gradient. In a round of twenty steps
    that is a good part of them.

    Attributes:
        seen: Adam's state of each parameter, by objective and the parameter's name.
    """

    seen: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)


def fit(
    net: Net,
    modality: Modality[Net, Batch],
    lessons: Lessons[Batch],
    plan: Plan,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
    moments: Moments | None = None,
) -> float:
    """Train a network in place.

    Args:
        net: trained in place.
        modality: whose objectives are taken in turn, one batch each.
        lessons: where batches come from.
        plan: see ``Plan``.
        on_step: told the number of steps done and the loss of the last.
        moments: go on from these, and leave them as they are in the end; without, the optimiser starts afresh.

    Returns:
        The mean loss of the last tenth of the steps; NaN if there was none.

    Raises:
        DivergedError: a loss was NaN or infinite; the network is then spoilt.
    """
    optimisers: list[Optimiser] = [optimiser_of(net, modality, index, plan) for index in range(len(modality.objectives))]
    if moments is not None:
        recall_inplace(optimisers, net, modality, moments)
    losses: list[float] = []
    for step in range(plan.steps):
        if plan.is_cancelled():
            break
        batch = lessons.batch(plan.first_step + step)
        for objective, (optimiser, schedule) in zip(modality.objectives, optimisers, strict=True):
            listen_inplace(net, optimiser)
            loss = objective.loss(net, batch)
            if not torch.isfinite(loss):
                raise DivergedError(f"the loss of step {step} is not a finite number")
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(trained_by(optimiser), objective.gradient_limit)
            optimiser.step()
            schedule.step()
            if not plan.private_only:  # even a projection that changes nothing may round, and the body has a digest
                modality.constrain_inplace(net)
            losses.append(loss.item())
        on_step(step + 1, losses[-1])
    if moments is not None:
        note_inplace(moments, optimisers, net, modality)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail) if tail else math.nan


def recall_inplace(optimisers: Sequence[Optimiser], net: nn.Module, modality: Modality[Net, Batch], moments: Moments) -> None:
    """Have optimisers go on from what was seen."""
    for objective, (optimiser, _) in zip(modality.objectives, optimisers, strict=True):
        for name, parameter in net.named_parameters():
            known = moments.seen.get((objective.name, name))
            if known is not None:
                optimiser.state[parameter] = {key: value.clone() for key, value in known.items()}


def note_inplace(moments: Moments, optimisers: Sequence[Optimiser], net: nn.Module, modality: Modality[Net, Batch]) -> None:
    """Note what optimisers have seen."""
    for objective, (optimiser, _) in zip(modality.objectives, optimisers, strict=True):
        for name, parameter in net.named_parameters():
            if parameter in optimiser.state:
                moments.seen[objective.name, name] = {key: v.clone() for key, v in optimiser.state[parameter].items()}


def optimiser_of(net: Net, modality: Modality[Net, Batch], index: int, plan: Plan) -> Optimiser:
    """Adam over what the objective trains, with a short warm-up and a cosine decay."""
    objective = modality.objectives[index]
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        rate = objective.rate(name) * plan.rate_scale
        if modality.is_shared(name):
            rate *= 0.0 if plan.private_only else plan.shared_scale
        if rate > 0:
            groups.setdefault(rate, []).append(parameter)
    optimiser = torch.optim.Adam([{"params": group, "lr": rate} for rate, group in groups.items()], betas=(0.9, 0.99))
    warm_up = max(1, min(20, plan.steps // 10))
    rising = torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, total_iters=warm_up)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, _Cosine(max(1, plan.steps - warm_up), plan.final_rate))
    return optimiser, torch.optim.lr_scheduler.SequentialLR(optimiser, [rising, falling], milestones=[warm_up])


def listen_inplace(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Let exactly what an optimiser trains take gradients, and forget those of the objective before it."""
    net.zero_grad(set_to_none=True)
    trained = {id(parameter) for parameter in trained_by(optimiser)}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def trained_by(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimiser trains."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


@dataclass(frozen=True, slots=True)
class _Cosine:
    """1 → ``final`` over ``steps``."""

    steps: int
    final: float

    def __call__(self, step: int) -> float:
        progress = min(1.0, step / self.steps)
        return self.final + (1 - self.final) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))
