"""Which runtime is fastest: measured once, remembered, measured anew when the machine is another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_node import runtimes
from edge_node.config import Home
from export.errors import NotConfiguredError, ResourceError, UsageError
from export.runtime import Engine, Runtime, open_engine
from models.samplers import Feed
from tests.tiny import STYLE


@dataclass
class Clock:
    """Time that passes only while an engine works."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Timed:
    """An engine that takes as long as it says."""

    runtime: Runtime
    seconds: float
    clock: Clock
    runs: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, feed: Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        self.clock.now += self.seconds
        self.runs.append(feed["photo"].shape)
        return {"picture": feed["photo"]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(runtimes, "time", made)
    monkeypatch.setattr(runtimes, "version", lambda name: f"{name} 1")
    monkeypatch.setattr(runtimes, "_processor", lambda: "a processor")
    return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@dataclass
class Bench:
    """Both runtimes with the times given, and which of them were opened."""

    clock: Clock
    seconds: dict[Runtime, float]
    opened: list[Runtime] = field(default_factory=list)

    def engines(self) -> dict[Runtime, Callable[[], Engine]]:
        def opener(name: Runtime) -> Callable[[], Engine]:
            def open_() -> Engine:
                self.opened.append(name)
                return Timed(name, self.seconds[name], self.clock)

            return open_

        return {name: opener(name) for name in self.seconds}


def fastest(home: Home, bench: Bench, kind: str = "style int8") -> Runtime:
    return runtimes.fastest(home, kind, STYLE.signature, bench.engines())


@pytest.mark.parametrize(("times", "best"), [((0.02, 0.01), "openvino"), ((0.01, 0.02), "onnxruntime")])
def test_the_faster_runtime_is_chosen(home: Home, clock: Clock, times: tuple[float, float], best: Runtime) -> None:
    assert fastest(home, Bench(clock, {"onnxruntime": times[0], "openvino": times[1]})) == best


def test_what_was_measured_once_is_not_measured_again(home: Home, clock: Clock) -> None:
    fastest(home, Bench(clock, {"onnxruntime": 0.02, "openvino": 0.01}))
    later = Bench(clock, {"onnxruntime": 0.01, "openvino": 0.02})

    assert fastest(home, later) == "openvino"
    assert later.opened == []


def test_graphs_of_another_kind_are_measured_for_themselves(home: Home, clock: Clock) -> None:
    fastest(home, Bench(clock, {"onnxruntime": 0.02, "openvino": 0.01}))

    assert fastest(home, Bench(clock, {"onnxruntime": 0.01, "openvino": 0.02}), "style fp32") == "onnxruntime"
    assert fastest(home, Bench(clock, {"onnxruntime": 0.01, "openvino": 0.02})) == "openvino"


@pytest.mark.parametrize("what", ["version", "_processor"])
def test_another_machine_or_version_is_measured_anew(
    home: Home, clock: Clock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    fastest(home, Bench(clock, {"onnxruntime": 0.02, "openvino": 0.01}))
    monkeypatch.setattr(runtimes, what, lambda *_: "another")

    assert fastest(home, Bench(clock, {"onnxruntime": 0.01, "openvino": 0.02})) == "onnxruntime"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"machine": 1, "milliseconds": []}', '{"milliseconds": {"style int8": {"x": "y"}}}']
)
def test_a_damaged_record_is_measured_anew(home: Home, clock: Clock, text: str) -> None:
    (home.root / "runtimes.json").write_text(text)

    assert fastest(home, Bench(clock, {"onnxruntime": 0.02, "openvino": 0.01})) == "openvino"


def test_a_runtime_that_was_installed_since_is_measured(home: Home, clock: Clock) -> None:
    assert fastest(home, Bench(clock, {"onnxruntime": 0.02})) == "onnxruntime"

    assert fastest(home, Bench(clock, {"onnxruntime": 0.02, "openvino": 0.01})) == "openvino"


def test_what_cannot_be_remembered_is_measured_again(home: Home, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise ResourceError("the disk is full", advice="Make room.")

    monkeypatch.setattr(runtimes, "write_json", full)
    bench = Bench(clock, {"onnxruntime": 0.02, "openvino": 0.01})

    assert [fastest(home, bench), fastest(home, bench)] == ["openvino", "openvino"]
    assert len(bench.opened) == 4


def test_a_runtime_alone_is_not_measured(home: Home, clock: Clock) -> None:
    bench = Bench(clock, {"onnxruntime": 0.02})

    assert fastest(home, bench) == "onnxruntime"
    assert bench.opened == []


def test_a_name_that_is_no_runtime_is_refused_with_those_there_are() -> None:
    assert runtimes.runtime_choice("openvino") == "openvino"
    with pytest.raises(UsageError, match="no runtime 'cuda'") as caught:
        runtimes.runtime_choice("cuda")
    assert "auto, onnxruntime, openvino" in caught.value.advice


def test_a_runtime_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else name)

    with pytest.raises(NotConfiguredError, match="openvino is not installed") as caught:
        open_engine(b"", "any", runtime="openvino")

    assert "pip install 'sfumato[openvino]'" in caught.value.advice
