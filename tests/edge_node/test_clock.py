"""The federation's time: counted from the last contact, whoever sets this machine's clock."""

import math
import time
from pathlib import Path

import pytest

from edge_node import clock
from edge_node.config import Home
from export.errors import IntegrityError

NOON = 1_700_000_000.0


class Machine:
    """A machine's clocks: one that is set, and one that only counts from its start."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.system, self.counted, self.boot = 0.0, 50.0, "first start"
        patch.setattr(time, "time", lambda: self.system)
        patch.setattr(clock, "since_boot_s", lambda: self.counted)
        patch.setattr(clock, "boot_id", lambda: self.boot)

    def passes(self, seconds: float) -> None:
        self.system += seconds
        self.counted += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_before_the_first_contact_it_is_the_systems(home: Home, machine: Machine) -> None:
    machine.system = 123.0

    assert clock.now_s(home) == clock.expiry_s(home) == 123.0
    assert clock.anchored(home) is None


def test_after_a_contact_it_is_the_coordinators_and_goes_on(home: Home, machine: Machine) -> None:
    clock.learn(home, NOON)
    machine.passes(60)

    assert clock.now_s(home) == NOON + 60


@pytest.mark.parametrize("system", [0.0, NOON - 600, NOON + 10, NOON + 10 * 365 * 86400])
def test_setting_the_systems_clock_does_not_move_it(home: Home, machine: Machine, system: float) -> None:
    clock.learn(home, NOON)
    machine.passes(1)
    machine.system = system

    assert clock.now_s(home) == NOON + 1


def test_a_new_start_of_the_machine_forgets_what_was_counted(home: Home, machine: Machine) -> None:
    clock.learn(home, NOON)
    machine.boot, machine.counted, machine.system = "second start", 1.0, 77.0

    assert clock.anchored(home) is None
    assert clock.now_s(home) == 77.0


def test_what_was_signed_later_than_the_clock_says_holds_for_what_expires(home: Home, machine: Machine) -> None:
    clock.know_at_least(home, NOON)
    clock.know_at_least(home, NOON - 1000)

    assert clock.expiry_s(home) == NOON
    assert clock.now_s(home) == 0.0
    machine.system = NOON + 5
    assert clock.expiry_s(home) == NOON + 5


def test_a_contact_keeps_what_was_known_to_be_signed(home: Home, machine: Machine) -> None:
    clock.know_at_least(home, NOON)
    clock.learn(home, NOON - 3600)  # the coordinator's clock was mended

    assert clock.now_s(home) == NOON - 3600
    assert clock.expiry_s(home) == NOON
    del machine


def test_a_contact_that_says_nothing_new_is_not_written(home: Home, machine: Machine) -> None:
    clock.learn(home, NOON)
    written = home.clock_file.stat().st_ino
    machine.passes(10)

    clock.learn(home, NOON + 10.4)
    assert home.clock_file.stat().st_ino == written
    clock.learn(home, NOON + 10.6)
    assert home.clock_file.stat().st_ino != written
    assert clock.now_s(home) == NOON + 10.6


@pytest.mark.parametrize("told", [0.0, -5.0, math.nan, math.inf, 1e12])
def test_an_impossible_time_is_refused(home: Home, machine: Machine, told: float) -> None:
    clock.learn(home, NOON)

    with pytest.raises(IntegrityError, match="impossible time"):
        clock.learn(home, told)

    assert clock.now_s(home) == NOON
    clock.know_at_least(home, told)
    assert clock.expiry_s(home) == NOON
    del machine


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"anchor": 3, "floor_s": 0}', '{"anchor": null, "floor_s": "x"}', "{" * 2000]
)
def test_a_damaged_note_is_mended_by_the_next_contact(home: Home, machine: Machine, text: str) -> None:
    home.clock_file.write_text(text)
    assert clock.now_s(home) == machine.system

    clock.learn(home, NOON)

    assert clock.now_s(home) == NOON


def test_the_counting_clock_counts_and_a_start_has_a_name(home: Home) -> None:
    first = clock.since_boot_s()

    assert clock.since_boot_s() >= first > 0
    assert clock.boot_id() == clock.boot_id()
    del home
