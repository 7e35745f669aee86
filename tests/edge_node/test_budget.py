"""The privacy budget: what rounds cost, that it is charged before, once, and never beyond the limit."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from edge_node import budget, library, train
from edge_node.__main__ import app
from edge_node.budget import Charge
from edge_node.config import Home
from edge_node.errors import BudgetSpentError
from edge_node.train import RoundTraining
from export import release, settings
from export.errors import IntegrityError, NotConfiguredError, RefusedError
from export.files import Digest
from export.ledger import Ledger
from export.signing import VerifiedRelease
from models.update import Assignment, Declined, Update
from tests import simulators
from tests.command_line import CommandLine

DELTA = 1e-5


def charges(count: int, rate: float = 0.1, noise: float = 1.0, steps: int = 60) -> list[Charge]:
    return [Charge(Digest(f"{number:064x}"), rate, noise, steps) for number in range(count)]


def keeping(home: Home, **changes: object) -> Home:
    settings.save(home.config_file, replace(home.config(), **{"private_epsilon": 8.0, **changes}))  # type: ignore[arg-type]
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return keeping(simulators.make_node(tmp_path / "home"), private_epsilon=20.0)


def test_nothing_costs_nothing() -> None:
    assert budget.epsilon([], DELTA) == 0


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (5.0, 60), (30.0, 1000)])
def test_with_every_work_in_every_step_it_is_what_the_gaussian_mechanism_costs(noise: float, steps: int) -> None:
    """A second opinion: Renyi divergence of the Gaussian mechanism in closed form (Mironov 2017, arXiv 1702.07476, corollary 3
    and proposition 3), over the best order."""
    orders = [1 + x / 100 for x in range(1, 100_000)]
    loose = min(a * steps / (2 * noise**2) + math.log(1 / DELTA) / (a - 1) for a in orders)

    found = budget.epsilon(charges(1, rate=1.0, noise=noise, steps=steps), DELTA)

    assert 0.75 * loose < found <= loose * 1.001


def test_more_rounds_and_less_noise_and_more_draws_cost_more() -> None:
    base = budget.epsilon(charges(10), DELTA)

    assert budget.epsilon(charges(20), DELTA) > base
    assert budget.epsilon(charges(10, noise=0.8), DELTA) > base
    assert budget.epsilon(charges(10, rate=0.2), DELTA) > base
    assert budget.epsilon(charges(10, steps=30), DELTA) < base
    assert budget.epsilon(charges(10)[:5] + charges(10)[5:], DELTA) == base


def test_a_round_is_charged_once_however_often_it_is_asked(home: Home) -> None:
    first = budget.charge(home, charges(1)[0])

    assert budget.charge(home, charges(1)[0]) == first
    keeping(home, private_epsilon=100.0)
    assert budget.charge(home, charges(2)[1]) > first
    assert len(json.loads(home.budget_file.read_bytes())) == 2
    assert home.budget_file.stat().st_mode & 0o077 == 0


def test_beyond_the_limit_nothing_is_charged(home: Home) -> None:
    within = budget.charge(home, charges(1)[0])
    keeping(home, private_epsilon=within * 1.01)
    before = home.budget_file.read_bytes()

    with pytest.raises(BudgetSpentError, match="would bring the works' privacy budget to") as caught:
        budget.charge(home, charges(2)[1])

    assert "Nothing more is sent" in caught.value.advice
    assert home.budget_file.read_bytes() == before
    assert budget.charge(home, charges(1)[0]) == within


def test_as_many_rounds_fit_as_it_says(home: Home) -> None:
    standing = budget.standing(home, works=80, steps=20)

    assert standing.spent == 0
    assert standing.rounds_left > 1
    for number in range(standing.rounds_left):
        budget.charge(home, budget.charge_of(home.config(), Digest(str(number)), 80, 20))
    after = budget.standing(home, works=80, steps=20)
    assert after.rounds_left == 0
    assert after.spent <= after.limit < after.next
    with pytest.raises(BudgetSpentError):
        budget.charge(home, budget.charge_of(home.config(), Digest("another"), 80, 20))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'[{"asked": "a", "rate": 2, "noise": 1, "steps": 1}]', b"[" * 10_000])
def test_an_account_that_cannot_be_read_is_not_taken_for_an_empty_one(home: Home, raw: bytes) -> None:
    home.budget_file.write_bytes(raw)

    with pytest.raises(IntegrityError, match="nobody knows what is left"):
        budget.charge(home, charges(1)[0])
    assert home.budget_file.read_bytes() == raw


@pytest.mark.parametrize(("works", "is_refused"), [(1, True), (49, True), (50, False), (500, False)])
def test_it_takes_fifty_works(home: Home, works: int, *, is_refused: bool) -> None:
    if not is_refused:
        budget.require_enough_works(home.config(), works, 60)
        return
    with pytest.raises(
        RefusedError, match=rf"takes 50 works and the library holds {works}: .* would cost an epsilon of \d+\.\d"
    ):
        budget.require_enough_works(home.config(), works, 60)


def test_without_its_accountant_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(NotConfiguredError, match="is not installed") as caught:
        budget.epsilon(charges(1), DELTA)
    assert "sfumato[private]" in caught.value.advice


# --- In rounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def member(home: Home, tmp_path: Path, world: VerifiedRelease) -> Home:
    """A member with fifty works, who keeps a budget."""
    del world
    simulators.write_works(tmp_path / "works", count=50)
    library.add(home, tmp_path / "works")
    return simulators.agreeing(simulators.trusting(home))


def assigned(packaged: VerifiedRelease, number: int = 1) -> Assignment:
    layout = simulators.body_layout()
    body = layout.flatten(release.body_of(packaged))
    return Assignment("guild", "style-studio", number, simulators.POLICY.digest, body, layout.digest)


@pytest.mark.slow
def test_a_round_is_trained_within_the_budget_and_says_no_loss(member: Home, world: VerifiedRelease) -> None:
    training = RoundTraining(member)

    first = training.run(assigned(world))
    again = RoundTraining(member).run(assigned(world))
    second = training.run(assigned(world, 2))

    assert isinstance(first, Update)
    assert again == first
    assert (first.loss_before, first.loss_after, first.steps) == (0.0, 0.0, simulators.STEPS)
    assert isinstance(second, Update)
    lines = [entry for entry in Ledger(member.ledger_file).entries() if entry["what"] == "update"]
    spent = [float(str(entry["epsilon"])) for entry in lines]
    assert 0 < spent[0] < spent[1] <= 20.0
    assert not train._code_file(member).exists()


@pytest.mark.slow
def test_when_it_is_spent_the_node_declines_and_sends_nothing(member: Home, world: VerifiedRelease) -> None:
    keeping(member, private_epsilon=0.01)

    assert RoundTraining(member).run(assigned(world)) == Declined(1, "budget-spent")
    assert not member.budget_file.exists()
    assert not member.round_file.exists()


def test_with_too_few_works_a_machine_that_keeps_a_budget_takes_no_part(
    home: Home, tmp_path: Path, world: VerifiedRelease
) -> None:
    simulators.write_works(tmp_path / "works", count=3)
    library.add(home, tmp_path / "works")
    simulators.agreeing(simulators.trusting(home))

    with pytest.raises(RefusedError, match="takes 50 works and the library holds 3"):
        budget.require_ready(home)
    with pytest.raises(RefusedError, match="takes 50 works and the library holds 3"):
        RoundTraining(home).run(assigned(world))
    assert not home.budget_file.exists()


def test_a_machine_that_keeps_none_needs_no_works_for_it(tmp_path: Path) -> None:
    budget.require_ready(simulators.make_node(tmp_path / "other"))


PROGRAM = CommandLine(app)


@pytest.mark.slow
def test_the_command_says_how_it_stands(member: Home) -> None:
    data = PROGRAM.data(member, "budget")
    said = PROGRAM.run(member, "budget").stdout

    assert (data["spent"], data["limit"]) == (0.0, 20.0)
    assert data["rounds_left"] > 0
    assert f"Another round of 50 works brings it to {data['next']:.2f}; {data['rounds_left']} more fit." in " ".join(
        said.split()
    )
    assert "not your own style or its pictures" in " ".join(said.split())


def test_where_no_budget_is_kept_the_command_says_how_to(tmp_path: Path) -> None:
    PROGRAM.assert_refused(
        simulators.make_node(tmp_path / "other"), ["budget"], 3, "not-configured", "no privacy budget is kept here"
    )
