"""Training within a privacy budget: what one work says is bounded, depends on no other work, and is hidden by noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import private_training
from models.contract import Work
from models.modalities.style import StyleNet
from models.private_training import Doubles, Privacy, fit
from models.training import DivergedError, Moments, Plan
from tests import pictures
from tests.tiny import STYLE, glasses

PUBLIC, ROWS = [0, 1], [2, 3, 4]


class Rows(nn.Module):
    """A shared tensor of three numbers, and a private one with a row of two for each code."""

    def __init__(self, codes: int = 5) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(3))
        self.private = nn.Parameter(torch.zeros(codes, 2))


@dataclass(frozen=True)
class Linear:
    """A loss whose gradient is what the batch says: for the body, and for a row."""

    name: str = "linear"
    gradient_limit: float = math.inf

    def rate(self, _parameter: str) -> float:
        return 0.1

    def loss(self, net: Rows, batch: tuple[int, Tensor, Tensor]) -> Tensor:
        row, body, code = batch
        return (net.shared * body).sum() + (net.private[row] * code).sum()


@dataclass(frozen=True)
class Toy:
    """Just enough of a ``Modality``."""

    objectives: tuple[Linear, ...] = (Linear(),)

    def is_shared(self, parameter: str) -> bool:
        return parameter == "shared"

    def constrain_inplace(self, net: Rows) -> None:
        """Anything is allowed."""


@dataclass
class Said:
    """Lessons in which each code says the same at every step."""

    body: dict[int, list[float]]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def batch_of(self, code: int, step: int) -> tuple[int, Tensor, Tensor]:
        self.asked.append((code, step))
        said = torch.tensor(self.body.get(code, [0.0, 0.0, 0.0]))
        return code, said, said[:2] * 0 + float(code >= 2)


def train(
    net: Rows,
    lessons: Said,
    monkeypatch: pytest.MonkeyPatch,
    bounds: Privacy,
    *,
    public: list[int] | None = None,
    draws: Iterator[float] | None = None,
    noise: Callable[[int], Doubles] = np.zeros,
    steps: int = 1,
) -> list[Doubles]:
    """Train; gives the gradient of each step as Adam is told it."""
    told: list[Doubles] = []
    set_inplace = private_training._Shape.set_inplace

    def noting(self: Any, network: nn.Module, gradient: Doubles) -> None:
        told.append(gradient.copy())
        set_inplace(self, network, gradient)

    monkeypatch.setattr(private_training._Shape, "set_inplace", noting)
    toy: Any = Toy()
    draw = (lambda: 0.0) if draws is None else (lambda: next(draws))
    fit(net, toy, lessons, ROWS, public or [], Plan(steps), bounds, draw=draw, noise=noise)  # type: ignore[arg-type]
    return told


def test_a_step_is_the_sum_of_what_each_work_says_clipped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = Said({2: [3.0, 0.0, 0.0], 3: [0.0, 400.0, 0.0], 4: [0.0, 0.0, -0.1]})

    (told,) = train(Rows(), lessons, monkeypatch, Privacy(rate=1.0, noise=0.0, clip=2.0))

    each = [np.array([*lessons.body[row], 1.0, 1.0]) for row in ROWS]
    wanted = sum(one * min(1.0, 2.0 / np.linalg.norm(one)) for one in each) / 3
    np.testing.assert_allclose(told, wanted, rtol=1e-6)


@pytest.mark.parametrize("loudness", [1.0, 1e3, 1e8])
def test_however_loud_one_work_is_it_moves_a_step_by_the_clip_at_most(monkeypatch: pytest.MonkeyPatch, loudness: float) -> None:
    bounds = Privacy(rate=0.5, noise=0.0, clip=2.0)
    quiet = {2: [1.0, 0.0, 0.0], 3: [0.0, 1.0, 0.0], 4: [0.0, 0.0, 0.0]}

    told = [
        train(Rows(), Said({**quiet, 4: [loudness * more, 0.0, loudness * more]}), monkeypatch, bounds, draws=iter(draws))[0]
        for more, draws in ((1.0, [0, 0, 0]), (0.0, [0, 0, 0.9]))
    ]

    assert np.linalg.norm(told[0] - told[1]) <= 2.0 / (0.5 * 3) * (1 + 1e-9)


def test_noise_is_added_once_a_step_at_the_stated_size(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = np.ones

    told = train(Rows(), Said({}), monkeypatch, Privacy(0.5, noise=3.0, clip=2.0), draws=iter([0.9] * 6), noise=ones, steps=2)

    np.testing.assert_allclose(told, np.full((2, 5), 3.0 * 2.0 / (0.5 * 3)))


def test_without_being_told_otherwise_the_noise_and_the_draws_are_secret_ones() -> None:
    """Two trainings of the same differ, and by as much as the noise says."""
    toy: Any = Toy()
    found = []
    for _ in range(2):
        net = Rows()
        fit(net, toy, Said({}), ROWS, [], Plan(5), Privacy(0.5, 1.0, 1.0))  # type: ignore[arg-type]
        found.append(net.shared.detach().clone())

    assert not torch.equal(found[0], found[1])


def test_each_work_is_drawn_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = Said({})

    train(Rows(), lessons, monkeypatch, Privacy(0.3, 0.0, 1.0), draws=iter([0.29, 0.3, 0.0, 0.9, 0.9, 0.9]), steps=2)

    assert lessons.asked == [(2, 0), (4, 0)]


def test_the_rows_of_the_working_code_stay_one_and_the_public_ones_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Rows()

    train(net, Said({2: [1.0, 2.0, 3.0]}), monkeypatch, Privacy(0.5, 1.0, 1.0), public=PUBLIC, noise=np.ones, steps=3)

    assert torch.equal(net.private[2], net.private[3])
    assert torch.equal(net.private[3], net.private[4])
    assert net.private[2].abs().min() > 0
    assert not net.private[:2].any()


def test_public_works_are_rehearsed_in_turn_without_clip_or_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = Said({0: [100.0, 0.0, 0.0], 1: [0.0, 100.0, 0.0]})

    told = train(Rows(), lessons, monkeypatch, Privacy(0.5, 0.0, 1.0), public=PUBLIC, draws=iter([0.9] * 6), steps=2)

    np.testing.assert_allclose(told, [[25.0, 0, 0, 0, 0], [0, 25.0, 0, 0, 0]])


def test_a_loss_that_is_no_number_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DivergedError, match="not a finite number"):
        train(Rows(), Said({3: [math.nan, 0.0, 0.0]}), monkeypatch, Privacy(1.0, 0.0, 1.0))


def test_moments_are_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    toy: Any = Toy()
    moments = Moments()
    for _ in range(2):
        fit(Rows(), toy, Said({}), ROWS, [], Plan(3), Privacy(1.0, 1.0, 1.0), moments)  # type: ignore[arg-type]

    assert {state["step"].item() for state in moments.seen.values()} == {6.0}


# --- With the style modality ---------------------------------------------------------------------------------------------


def gradients(works: list[Work], step: int) -> list[Doubles]:
    """What each work says in a step, of the same network."""
    targets: list[list[Work]] = [[], *([work] for work in works)]
    lessons = STYLE.lessons(targets, [pictures.shapes((136, 160), seed=9)], glasses(STYLE), 1)
    net: StyleNet = STYLE.build(3, codes=len(targets))
    STYLE.set_codes_inplace(net, np.repeat(STYLE.codes(net)[:1], len(targets), axis=0))
    shape = private_training._Shape.of(net, STYLE, range(1, len(targets)))
    return [
        shape.gradient(net, STYLE.objectives[0].loss(net, lessons.batch_of(row, step)), row) for row in range(1, len(targets))
    ]


@pytest.mark.parametrize("step", [0, 7])
def test_what_a_work_says_depends_on_no_other_work(step: int) -> None:
    """Which is what the clip bounds: taking one work away changes nothing of what the others say."""
    works = [pictures.shapes((130, 150), seed=seed) for seed in range(3)]

    whole, without_first = gradients(works, step), gradients(works[1:], step)

    for one, other in zip(whole[1:], without_first, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7 * float(np.abs(one).max()))
    assert np.linalg.norm(whole[0] - whole[1]) > 1e-3 * np.linalg.norm(whole[0])  # the control: works do differ
