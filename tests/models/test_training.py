"""The loop: what it trains, what it leaves alone, when it stops and what it says."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.contract import Lessons, Modality, Objective, Work
from models.modalities.style import StyleNet
from models.training import DivergedError, Moments, Plan, fit
from tests.tiny import STYLE, lessons_of


class Two(nn.Module):
    """A network of two numbers; the first is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(0.0))
        self.private = nn.Parameter(torch.tensor(0.0))


@dataclass(frozen=True)
class Towards:
    """Pulls the parameters it trains to where a batch says."""

    name: str
    trains: tuple[str, ...] = ("shared", "private")
    pace: float = 0.1
    gradient_limit: float = math.inf

    def rate(self, parameter: str) -> float:
        return self.pace if parameter in self.trains else 0.0

    def loss(self, net: Two, batch: float) -> Tensor:
        # All parameters take part in every loss, as generator and discriminator do.
        return (net.shared - batch).square() + (net.private - batch).square()


@dataclass(frozen=True)
class Toy:
    """Just enough of a ``Modality`` for the loop."""

    objectives: tuple[Objective[Two, float], ...] = (Towards("both"),)

    def is_shared(self, parameter: str) -> bool:
        return parameter == "shared"

    def constrain_inplace(self, net: Two) -> None:
        """Every network of two numbers is allowed."""


class Constant:
    """Lessons that always say the same, and remember which steps they were asked for."""

    def __init__(self, value: float = 1.0, *, diverges_at: int | None = None) -> None:
        self.value = value
        self.diverges_at = diverges_at
        self.asked: list[int] = []

    def batch(self, step: int) -> float:
        self.asked.append(step)
        return math.nan if step == self.diverges_at else self.value

    def batch_of(self, code: int, step: int) -> float:
        del code
        return self.batch(step)

    def exam(self) -> Iterable[float]:
        return ()

    def distance(self, code: int, works: Sequence[Work]) -> float:  # noqa: ARG002 - there is nothing to be near to
        return 0.0


def train(net: Two, plan: Plan, lessons: Lessons[float] | None = None, toy: Toy | None = None, **more: Any) -> float:
    modality: Modality[Any, Any] = toy or Toy()  # type: ignore[assignment]  # the loop needs no more of it
    return fit(net, modality, lessons or Constant(), plan, **more)


def test_training_moves_the_parameters_to_where_the_loss_is_small() -> None:
    net = Two()

    loss = train(net, Plan(steps=200))

    assert loss < 1e-3
    assert net.shared.item() == pytest.approx(1, abs=0.05)
    assert net.private.item() == pytest.approx(1, abs=0.05)


class Wild(Constant):
    """Lessons one of which says something else altogether."""

    def batch(self, step: int) -> float:
        return -1e4 if step == 10 else super().batch(step)


def test_a_limit_on_gradients_keeps_one_wild_batch_from_costing_the_steps_after_it() -> None:
    free, limited = Two(), Two()

    train(free, Plan(steps=100), Wild())
    train(limited, Plan(steps=100), Wild(), Toy((Towards("limited", gradient_limit=1.0),)))

    assert limited.shared.item() == pytest.approx(1, abs=0.05)
    assert abs(free.shared.item() - 1) > 0.3  # the control: without, Adam takes the wild one for the size of things


def test_with_moments_a_round_goes_on_and_without_it_starts_with_a_step_of_full_size() -> None:
    net, moments = Two(), Moments()
    train(net, Plan(steps=300), moments=moments)  # where nothing is left to gain
    afresh, on = copy.deepcopy(net), copy.deepcopy(net)

    train(afresh, Plan(steps=1))
    train(on, Plan(steps=1), moments=moments)

    left, rate = net.shared.item(), 0.1 * 0.1  # of the first step of the warm-up
    assert abs(afresh.shared.item() - left) == pytest.approx(rate, rel=0.05)
    assert abs(on.shared.item() - left) < rate / 10
    assert {state["step"].item() for state in moments.seen.values()} == {301.0}


def test_moments_are_of_what_an_objective_trains_and_belong_to_nobody_else() -> None:
    net, moments = Two(), Moments()
    train(net, Plan(steps=2), toy=Toy((Towards("a", ("shared",)), Towards("b", ("private",)))), moments=moments)
    assert set(moments.seen) == {("a", "shared"), ("b", "private")}
    kept = copy.deepcopy(moments)

    train(Two(), Plan(steps=5, private_only=True), moments=Moments(dict(moments.seen)))

    assert moments.seen.keys() == kept.seen.keys()
    for name, state in moments.seen.items():
        assert all(torch.equal(state[key], kept.seen[name][key]) for key in state)


def test_private_only_leaves_the_shared_tensors_bit_identical() -> None:
    net = STYLE.build(0, codes=2)
    before = copy.deepcopy(net.state_dict())

    fit(net, STYLE, lessons_of(STYLE), Plan(steps=4, private_only=True))

    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if STYLE.is_shared(name))
    assert not any(torch.equal(before[name], after[name]) for name in before if not STYLE.is_shared(name))


def test_private_only_leaves_a_trained_body_bit_identical_too() -> None:
    """A body that training has constrained must not be constrained again, rounding by rounding: its digest would go."""
    net = STYLE.build(0, codes=2)
    fit(net, STYLE, lessons_of(STYLE), Plan(steps=6))
    before = copy.deepcopy(net.state_dict())

    fit(net, STYLE, lessons_of(STYLE), Plan(steps=4, private_only=True))

    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if STYLE.is_shared(name))


def test_after_every_step_the_network_is_brought_back_to_what_is_allowed() -> None:
    class Even(Toy):
        """Allows no difference between the two numbers."""

        def constrain_inplace(self, net: Two) -> None:
            with torch.no_grad():
                net.private.copy_(net.shared)

    net = Two()
    train(net, Plan(steps=3), toy=Even((Towards("one", trains=("shared",)),)))

    assert net.private.item() == net.shared.item() > 0


def test_the_shared_scale_slows_the_body_and_only_the_body() -> None:
    plain, slowed = Two(), Two()

    train(plain, Plan(steps=3))
    train(slowed, Plan(steps=3, shared_scale=0.5))

    assert slowed.shared.item() == pytest.approx(plain.shared.item() / 2, rel=1e-2)
    assert slowed.private.item() == plain.private.item()


def test_private_only_takes_no_gradients_of_the_body() -> None:
    """They would cost about as much as those of the code, for nothing."""
    net = Two()

    train(net, Plan(steps=2, private_only=True))

    assert net.shared.grad is None
    assert net.private.grad is not None


def test_after_private_only_the_body_can_be_trained_again() -> None:
    net = Two()
    train(net, Plan(steps=3, private_only=True))
    assert net.shared.item() == 0

    train(net, Plan(steps=3))

    assert net.shared.item() > 0


def test_a_parameter_whose_rate_is_zero_is_left_alone() -> None:
    net = Two()

    train(net, Plan(steps=3), toy=Toy((Towards("one", trains=("private",)),)))

    assert net.shared.item() == 0
    assert net.private.item() > 0


def test_two_objectives_each_train_their_own_parameters_in_turn() -> None:
    """As the two losses of a GAN do; the second must not take the first one's gradients away."""
    net = Two()

    train(net, Plan(steps=3), toy=Toy((Towards("one", trains=("shared",)), Towards("two", trains=("private",)))))

    # Each sees only its own gradient, so each takes exactly the way it takes alone.
    alone = Two()
    train(alone, Plan(steps=3))
    assert net.shared.item() == alone.shared.item() > 0
    assert net.private.item() == alone.private.item() > 0


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(odd: float) -> None:
    lessons = Constant(odd)

    with pytest.raises(DivergedError, match="the loss of step 0 is not a finite number"):
        train(Two(), Plan(steps=5), lessons)


def test_the_parameters_are_not_moved_by_a_loss_that_is_not_finite() -> None:
    net = Two()

    with pytest.raises(DivergedError, match="step 2"):
        train(net, Plan(steps=5), Constant(diverges_at=2))

    assert math.isfinite(net.shared.item())


def test_a_cancelled_training_stops_before_the_next_step_with_what_it_has() -> None:
    net, lessons, done = Two(), Constant(), list[int]()

    train(net, Plan(steps=50, is_cancelled=lambda: len(done) >= 3), lessons, on_step=lambda step, _: done.append(step))

    assert done == [1, 2, 3]
    assert lessons.asked == [0, 1, 2]
    assert net.shared.item() > 0


def test_a_training_cancelled_before_it_began_changes_nothing() -> None:
    net, lessons = Two(), Constant()

    train(net, Plan(steps=50, is_cancelled=lambda: True), lessons)

    assert lessons.asked == []
    assert net.shared.item() == 0


def test_the_same_seeds_give_the_same_network() -> None:
    def trained() -> StyleNet:
        net = STYLE.build(3, codes=2)
        fit(net, STYLE, lessons_of(STYLE), Plan(steps=5))
        return net

    one, other = trained().state_dict(), trained().state_dict()

    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loop_tells_of_every_step() -> None:
    told: list[tuple[int, float]] = []

    train(Two(), Plan(steps=4), on_step=lambda step, loss: told.append((step, loss)))

    assert [step for step, _ in told] == [1, 2, 3, 4]
    assert told[0][1] == 2.0
    assert all(later < sooner for (_, sooner), (_, later) in pairwise(told))


@pytest.mark.parametrize(("steps", "tail"), [(1, 1), (9, 1), (19, 1), (20, 2), (45, 4)])
def test_the_result_is_the_mean_loss_of_the_last_tenth(steps: int, tail: int) -> None:
    losses: list[float] = []

    result = train(Two(), Plan(steps=steps), on_step=lambda _, loss: losses.append(loss))

    assert result == pytest.approx(sum(losses[-tail:]) / tail)


def test_a_later_call_goes_on_where_the_first_stopped() -> None:
    lessons = Constant()

    train(Two(), Plan(steps=3), lessons)
    train(Two(), Plan(steps=3, first_step=3), lessons)

    assert lessons.asked == [0, 1, 2, 3, 4, 5]


def steps_taken(plan: Plan) -> Sequence[float]:
    """How far each step goes under a gradient that never changes: Adam's step is then the rate itself."""

    @dataclass(frozen=True)
    class Downhill(Towards):
        def loss(self, net: Two, batch: float) -> Tensor:
            return batch * (net.shared + net.private)

    net, places = Two(), [0.0]
    train(net, plan, toy=Toy((Downhill("down"),)), on_step=lambda *_: places.append(net.shared.item()))
    return [a - b for a, b in pairwise(places)]


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine() -> None:
    taken = steps_taken(Plan(steps=100, final_rate=0.1))

    warm_up = 10
    for step in range(warm_up):
        assert taken[step] == pytest.approx(0.1 * (0.1 + 0.9 * step / warm_up), rel=1e-3)
    for step in range(warm_up, 100):
        progress = (step - warm_up) / (100 - warm_up)
        assert taken[step] == pytest.approx(0.1 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))), rel=1e-3)


def test_the_rate_scale_scales_every_step() -> None:
    slow, fast = steps_taken(Plan(steps=20, rate_scale=0.5)), steps_taken(Plan(steps=20))

    assert slow == pytest.approx([step / 2 for step in fast], rel=1e-4)
