"""Children that end are started again, with growing pauses; time stands still but for what the test says."""

import errno
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from export import supervisor as module
from export.processes import Child
from export.supervisor import Supervisor, open_log, stop_signal
from tests.simulators import Clock, FakeChild, until


class Nursery:
    """Starts fake children and remembers them."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []

    def __call__(self) -> Child:
        self.children.append(FakeChild())
        return self.children[-1]  # type: ignore[return-value]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def nursery() -> Nursery:
    return Nursery()


@pytest.fixture
def kept(clock: Clock, nursery: Nursery) -> Supervisor:
    del clock
    supervisor = Supervisor()
    supervisor.keep("runner", nursery)
    return supervisor


def test_a_child_that_runs_is_left_alone(kept: Supervisor, nursery: Nursery, clock: Clock) -> None:
    for _ in range(100):
        clock.sleep(10)
        kept.tend()

    assert len(nursery.children) == 1


def test_a_child_that_ended_is_started_again_after_a_pause(kept: Supervisor, nursery: Nursery, clock: Clock) -> None:
    nursery.children[0].code = 1
    kept.tend()
    clock.sleep(0.9)
    kept.tend()
    assert len(nursery.children) == 1

    clock.sleep(0.1)
    kept.tend()
    assert len(nursery.children) == 2


def pauses(kept: Supervisor, nursery: Nursery, clock: Clock, times: int, lived_s: float = 0.0) -> list[int]:
    """How long it takes until each of several children that end is started again."""
    found = []
    for _ in range(times):
        clock.sleep(lived_s)
        nursery.children[-1].code = 1
        count, began = len(nursery.children), clock.now
        while len(nursery.children) == count:
            kept.tend()
            clock.sleep(0.25)
        found.append(round(clock.now - began - 0.25))
    return found


def test_the_pauses_grow_to_half_a_minute(kept: Supervisor, nursery: Nursery, clock: Clock) -> None:
    assert pauses(kept, nursery, clock, 8) == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_child_that_lived_well_is_started_again_at_once(kept: Supervisor, nursery: Nursery, clock: Clock) -> None:
    pauses(kept, nursery, clock, 5)

    assert pauses(kept, nursery, clock, 2, lived_s=61.0) == [1, 1]


def test_stopping_stops_every_child(clock: Clock, nursery: Nursery) -> None:
    del clock
    supervisor = Supervisor()
    supervisor.keep("one", nursery)
    supervisor.keep("two", nursery)

    supervisor.stop()

    assert [child.is_stopped for child in nursery.children] == [True, True]


def test_a_resting_child_stays_away_until_it_is_wanted(kept: Supervisor, nursery: Nursery, clock: Clock) -> None:
    kept.rest("runner")
    for _ in range(100):
        clock.sleep(10)
        kept.tend()
    assert (len(nursery.children), nursery.children[0].is_stopped) == (1, True)

    kept.resume("runner")
    assert len(nursery.children) == 2
    kept.resume("runner")
    kept.rest("nobody")
    kept.resume("nobody")
    assert len(nursery.children) == 2


def test_a_child_that_cannot_be_started_now_is_started_later(
    clock: Clock, nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor()
    fails: list[OSError] = []

    def start() -> Child:
        if fails:
            raise fails.pop()
        return nursery()

    supervisor.keep("runner", start)
    fails.extend(OSError(errno.EAGAIN, "Resource temporarily unavailable") for _ in range(2))

    assert pauses(supervisor, nursery, clock, 1) == [1 + 2 + 4]
    assert caplog.text.count("runner could not be started (Resource temporarily unavailable)") == 2
    supervisor.rest("runner")
    fails.append(OSError(errno.ENOMEM, "Cannot allocate memory"))
    supervisor.resume("runner")
    assert len(nursery.children) == 2
    clock.sleep(30)
    supervisor.tend()
    assert len(nursery.children) == 3


def test_a_real_child_that_ends_comes_back_and_is_ended_with_the_rest(clock: Clock) -> None:
    supervisor = Supervisor()

    def start() -> Child:
        return Child.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], environment=dict(os.environ))

    first = supervisor.keep("sleeper", start)
    try:
        os.kill(first.keeper_pid, signal.SIGKILL)
        until(lambda: first.exit_code() is not None, "the end of the first child")
        supervisor.tend()
        clock.sleep(1)
        supervisor.tend()
        second = supervisor._kept["sleeper"].child
        assert second is not first
        assert second.exit_code() is None
    finally:
        supervisor.stop()
    assert second.exit_code() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_its_handler_is_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    with stop_signal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(30)
        assert isinstance(stop, threading.Event)

    assert signal.getsignal(number) is before


def test_a_log_is_appended_to_and_begun_anew_when_it_has_grown(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        with open_log(tmp_path / "logs", "flower") as log:
            log.write(text)
    assert (tmp_path / "logs" / "flower.log").read_bytes() == b"one\ntwo\n"

    with (tmp_path / "logs" / "flower.log").open("r+b") as log:
        log.truncate(16 * 2**20 + 1)
    open_log(tmp_path / "logs", "flower").close()

    assert (tmp_path / "logs" / "flower.log").stat().st_size == 0
    assert (tmp_path / "logs" / "flower.log.1").stat().st_size == 16 * 2**20 + 1
