"""Training in which no work can be told by what comes of it: DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).

The unit is one work with all its crops. Each work has lessons of its own, so that no statistic is taken over several: of the
works that a step draws, each by itself and with the same probability (Poisson sampling, which the accountant counts on), the
gradient is clipped to a bound; their sum gets noise, and is divided by how many works a step draws on average. What is made of
that is nobody's secret any more, Adam's memory included.

What the private works touch is the body and the *working code* that goes with it here, which starts from a public code. An
artist's own code, fitted to the works as it is, must have no part in it: through it every gradient would tell of every work.
Public works are rehearsed without noise.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models import privacy, training
from models.contract import Lessons, Modality, Objective
from models.training import DivergedError, Moments, Plan

_REHEARSED_SHARE: Final = 0.25  # of the gradient; in other trainings a quarter of the batches is about others, too

_SECRET: Final = secrets.SystemRandom()

Net = TypeVar("Net", bound=nn.Module)
Batch = TypeVar("Batch")
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Privacy:
    """What a step costs, and what it hides.

    Attributes:
        rate: probability with which each work is drawn in a step.
        noise: standard deviation of the noise, as a multiple of ``clip``.
        clip: greatest L2 norm of what one work says in a step.
    """

    rate: float
    noise: float
    clip: float


def fit(
    net: Net,
    modality: Modality[Net, Batch],
    lessons: Lessons[Batch],
    rows: Sequence[int],
    public: Sequence[int],
    plan: Plan,
    bounds: Privacy,
    moments: Moments | None = None,
    draw: Callable[[], float] = _SECRET.random,
    noise: Callable[[int], Doubles] = privacy.secret_gaussian,
) -> None:
    """Train body and working code in place.

    Args:
        net: trained in place. It has a code for each private work, in ``rows``, which are one and the same: the working code.
            Parameters that are not shared have a row for each code.
        modality: whose objectives are taken in turn.
        lessons: of each code by itself.
        rows: the codes that stand for a private work each.
        public: the codes that are rehearsed.
        plan: as for ``training.fit``.
        bounds: see ``Privacy``.
        moments: go on from these, and leave them as they are in the end.
        draw: a number of [0, 1), secret; another one in tests alone.
        noise: so many independent standard normal numbers, secret; others in tests alone.

    Raises:
        DivergedError: a loss was NaN or infinite; the network is then spoilt.
    """
    optimisers = [training.optimiser_of(net, modality, index, plan) for index in range(len(modality.objectives))]
    if moments is not None:
        training.recall_inplace(optimisers, net, modality, moments)
    shape = _Shape.of(net, modality, rows)
    for step in range(plan.steps):
        drawn = [row for row in rows if draw() < bounds.rate]
        number = plan.first_step + step
        for objective, (optimiser, schedule) in zip(modality.objectives, optimisers, strict=True):
            training.listen_inplace(net, optimiser)
            total: Doubles = np.zeros(shape.size)
            for row in drawn:
                total += _clipped(shape.gradient(net, objective.loss(net, lessons.batch_of(row, number)), row), bounds.clip)
            total += bounds.noise * bounds.clip * noise(shape.size)
            total /= bounds.rate * len(rows)
            told = total if not public else _mixed(total, shape, net, objective, lessons, public[number % len(public)], number)
            shape.set_inplace(net, told)
            torch.nn.utils.clip_grad_norm_(training.trained_by(optimiser), objective.gradient_limit)
            optimiser.step()
            schedule.step()
            modality.constrain_inplace(net)
    if moments is not None:
        training.note_inplace(moments, optimisers, net, modality)


def _mixed(
    total: Doubles,
    shape: _Shape,
    net: Net,
    objective: Objective[Net, Batch],
    lessons: Lessons[Batch],
    row: int,
    step: int,
) -> Doubles:
    """The private gradient and that of a public code, whose own row is left alone."""
    rehearsed = shape.gradient(net, objective.loss(net, lessons.batch_of(row, step)), None)
    return (1 - _REHEARSED_SHARE) * total + _REHEARSED_SHARE * rehearsed


def _clipped(gradient: Doubles, bound: float) -> Doubles:
    length = float(np.linalg.norm(gradient))
    return gradient if length <= bound else gradient * (bound / length)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where each number of a private gradient belongs: the body, and of what has a row for each code, the working code's."""

    shared: tuple[str, ...]
    private: tuple[str, ...]
    rows: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, net: Net, modality: Modality[Net, Batch], rows: Sequence[int]) -> _Shape:
        parameters = dict(net.named_parameters())
        shared = tuple(name for name in parameters if modality.is_shared(name))
        private = tuple(name for name in parameters if not modality.is_shared(name))
        size = sum(parameters[name].numel() for name in shared) + sum(parameters[name][0].numel() for name in private)
        return cls(shared, private, tuple(rows), size)

    def gradient(self, net: nn.Module, loss: Tensor, row: int | None) -> Doubles:
        """(size,) of a loss, the working code's part from a row or left out; the network's own gradients are left empty."""
        if not torch.isfinite(loss):
            raise DivergedError("the loss of a private step is not a finite number")
        net.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        parameters = dict(net.named_parameters())
        parts = [_numbers(parameters[name]) for name in self.shared]
        for name in self.private:
            of_row = _numbers(parameters[name])[0 if row is None else row]
            parts.append(np.zeros_like(of_row) if row is None else of_row)
        net.zero_grad(set_to_none=True)
        return np.concatenate([part.ravel() for part in parts]).astype(np.float64)

    def set_inplace(self, net: nn.Module, gradient: Doubles) -> None:
        """Make it the network's gradient: each row of the working code gets the same, so that they stay one."""
        parameters, start = dict(net.named_parameters()), 0
        for name in (*self.shared, *self.private):
            parameter = parameters[name]
            like = parameter if name in self.shared else parameter[0]
            part = torch.from_numpy(gradient[start : start + like.numel()]).to(like).reshape(like.shape)
            start += like.numel()
            if name in self.shared:
                parameter.grad = part if parameter.requires_grad else None
            elif parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                parameter.grad[list(self.rows)] = part


def _numbers(parameter: nn.Parameter) -> npt.NDArray[np.float32]:
    grad = parameter.grad
    found: npt.NDArray[np.float32] = (torch.zeros_like(parameter) if grad is None else grad).detach().cpu().numpy()
    return found
