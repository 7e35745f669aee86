"""The privacy budget of this machine's works, for artists who want a bound on what all updates together tell of one work.

A node trains its rounds by DP-SGD then (``models/private_training.py``), and this is the account: what each round cost, charged
on disk before anything of it is sent, and never given back. The unit is one work. What is bounded is what *updates* tell, to
whoever sees them all and knows every other work; the artist's own code and style, which stay here, are fitted to the works as
they are and are outside of it, and so are pictures that are painted with them.

It is refused below 50 works: with few, each is drawn often, and the bound says nothing. And it is no claim about artists: that
somebody takes part is plain to see.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from edge_node import consent, library
from edge_node.config import Config, Home
from edge_node.errors import BudgetSpentError
from export.errors import IntegrityError, NotConfiguredError, RefusedError
from export.files import Digest, read_bounded, write_json
from export.policy import Policy

LEAST_WORKS: Final = 50
_MAX_BYTES: Final = 16 * 2**20
_ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
"""Of the divergence. Whole ones: of fractions near 1 the series may not converge, and is left out with a warning."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one round cost.

    Attributes:
        asked: names the assignment; it is charged once, however often it is asked.
        rate: probability with which each work was drawn in a step.
        noise: multiplier of the clip.
        steps: of the round.
    """

    asked: Digest
    rate: float
    noise: float
    steps: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How the budget stands.

    Attributes:
        spent: epsilon of all rounds so far.
        limit: the artist's.
        delta: the artist's.
        next: epsilon after another round of the present works and policy.
        rounds_left: how many more such rounds the limit allows.
    """

    spent: float
    limit: float
    delta: float
    next: float
    rounds_left: int


def is_kept(config: Config) -> bool:
    """Whether the artist wants rounds trained within a budget."""
    return config.private_epsilon > 0


def charge_of(config: Config, asked: Digest, works: int, steps: int) -> Charge:
    """What a round costs with so many works."""
    return Charge(asked, min(1.0, config.private_batch / works), config.private_noise, steps)


def require_enough_works(config: Config, works: int, steps: int) -> None:
    """Have there be works enough for a bound that says something.

    Raises:
        RefusedError: there are not; it says what a hundred rounds would cost.
        NotConfiguredError: the accountant is not installed.
    """
    if works >= LEAST_WORKS:
        return
    would = epsilon([charge_of(config, Digest(str(number)), works, steps) for number in range(100)], config.private_delta)
    raise RefusedError(
        f"training within a privacy budget takes {LEAST_WORKS} works and the library holds {works}: a hundred rounds would "
        f"cost an epsilon of {would:.1f}",
        advice="Add works, or set private_epsilon = 0 in node.toml: clipping and the policy's noise then stand alone.",
    )


def require_ready(home: Home) -> None:
    """Have a machine that keeps a budget be able to, before it takes part.

    Raises:
        RefusedError, NotConfiguredError: as ``require_enough_works``.
        IntegrityError: the account cannot be read.
    """
    if is_kept(home.config()):
        agreed = consent.accepted(home)
        steps = agreed.policy.steps if agreed else Policy("", 1, "").steps
        require_enough_works(home.config(), usable_works(home), steps)
        epsilon(_load(home), home.config().private_delta)


def usable_works(home: Home) -> int:
    """How many works of the library can be learned from."""
    return sum(entry.state() == "ok" for entry in library.entries(home))


def standing(home: Home, works: int, steps: int) -> Standing:
    """How the budget stands, for the artist.

    Raises:
        NotConfiguredError: the accountant is not installed.
        IntegrityError: the account cannot be read.
    """
    config, charges = home.config(), _load(home)
    limit, delta = config.private_epsilon, config.private_delta

    def after(more: int) -> float:
        return epsilon([*charges, *(charge_of(config, Digest(f"+{n}"), works, steps) for n in range(more))], delta)

    low, high = 0, 1
    while after(high) <= limit and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if after(middle) <= limit else (low, middle)
    return Standing(after(0), limit, delta, after(1), low)


def charge(home: Home, charge_: Charge) -> float:
    """Charge a round, before anything is made for it; gives what is spent then. The same round is charged once.

    Raises:
        BudgetSpentError: it does not fit any more; nothing is charged.
        NotConfiguredError: the accountant is not installed.
        IntegrityError: the account cannot be read.
        ResourceError: it cannot be written.
    """
    config, charges = home.config(), _load(home)
    if charge_.asked not in [one.asked for one in charges]:
        charges = [*charges, charge_]
    spent = epsilon(charges, config.private_delta)
    if spent > config.private_epsilon:
        raise BudgetSpentError(
            f"another round would bring the works' privacy budget to {spent:.2f} of {config.private_epsilon:g}",
            advice="Nothing more is sent of these works. A higher private_epsilon in node.toml is a weaker promise.",
        )
    write_json(home.budget_file, [asdict(one) for one in charges], mode=0o600)
    return spent


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """What rounds cost together, one work more or less: Poisson-subsampled Gaussian mechanisms, by Renyi divergence (Mironov et
    al. 2019, arXiv 1908.10530), as dp-accounting computes it.

    Raises:
        NotConfiguredError: dp-accounting is not installed.
    """
    if not charges:
        return 0.0
    try:
        event: Any = importlib.import_module("dp_accounting.dp_event")
        rdp: Any = importlib.import_module("dp_accounting.rdp")
    except ImportError as error:
        raise NotConfiguredError(
            "a privacy budget needs its accountant, which is not installed", advice="Install it: pip install 'sfumato[private]'"
        ) from error
    accountant = rdp.RdpAccountant(_ORDERS)
    steps: dict[tuple[float, float], int] = {}
    for one in charges:
        steps[one.rate, one.noise] = steps.get((one.rate, one.noise), 0) + one.steps
    for (rate, noise), count in steps.items():
        accountant.compose(event.PoissonSampledDpEvent(rate, event.GaussianDpEvent(noise)), count)
    return float(accountant.get_epsilon(delta))


def _load(home: Home) -> list[Charge]:
    """All charges.

    Raises:
        IntegrityError: they cannot be read; a budget nobody knows is one that is spent.
    """
    try:
        plain = json.loads(read_bounded(home.budget_file, _MAX_BYTES))
        charges = [_charge(one) for one in plain]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable() from error
    if not isinstance(plain, list) or not all(
        0 < one.rate <= 1 and 0 < one.noise < math.inf and one.steps > 0 for one in charges
    ):
        raise _unreadable()
    return charges


def _charge(plain: Any) -> Charge:
    return Charge(Digest(str(plain["asked"])), float(plain["rate"]), float(plain["noise"]), int(plain["steps"]))


def _unreadable() -> IntegrityError:
    return IntegrityError(
        "the account of the privacy budget cannot be read, so nobody knows what is left of it",
        advice="Put budget.json back from a backup, or set private_epsilon = 0 in node.toml and know that there is no bound.",
    )
