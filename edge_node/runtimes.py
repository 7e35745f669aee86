"""Which runtime is fastest on this machine: measured once, remembered until the machine or a runtime changes.

Neither runtime is the faster one everywhere: it depends on the processor's instructions, on threads and on precision.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np

from edge_node.config import Home
from export.errors import IntegrityError, ResourceError, UsageError
from export.files import read_bounded, write_json
from export.runtime import Engine, Runtime, RuntimeFailedError, installed
from models.contract import Signature, Work
from models.samplers import Code, paint

_log = logging.getLogger(__name__)

T = TypeVar("T")
RuntimeChoice = Literal["auto", "onnxruntime", "openvino"]
_SIDE: Final = 512  # pixels of the photo that is painted to find out
_WARM_UP: Final = 2
_REPETITIONS: Final = 7
_RECORD_MAX_BYTES: Final = 64 * 2**10


def runtime_choice(text: str) -> RuntimeChoice:
    """A runtime by name.

    Raises:
        UsageError: there is none of that name.
    """
    choice: RuntimeChoice = chosen("runtime", text, get_args(RuntimeChoice))
    return choice


def chosen(what: str, text: str, choices: tuple[T, ...]) -> T:
    """The choice of that name.

    Raises:
        UsageError: there is none of that name.
    """
    for choice in choices:
        if choice == text:
            return choice
    raise UsageError(f"there is no {what} {text!r}", advice=f"Use one of {', '.join(map(str, choices))}.")


def fastest(
    home: Home,
    kind: str,
    signature: Signature,
    engines: Mapping[Runtime, Callable[[], Engine]],
    code: Code | None = None,
) -> Runtime:
    """The runtime to use, from what was measured here or, the first time, by measuring now.

    Args:
        home: this machine's folder; remembers.
        kind: what sort of graph it is: graphs of one kind cost the same.
        signature: of the graphs.
        engines: how each runtime that could be used opens its form of the graph; one that does not work here is not used.
        code: to paint with, for an exact graph.
    """
    if len(engines) == 1:
        return next(iter(engines))
    machine = _machine()
    remembered = _remembered(home)
    known = dict(remembered["milliseconds"]) if remembered.get("machine") == machine else {}
    if set(known.get(kind, {})) != set(engines):
        known = {**known, kind: _milliseconds(signature, engines, code)}
        if set(known[kind]) == set(engines):  # one that does not work may be mended by next time
            with contextlib.suppress(ResourceError):  # then it is measured again next time
                write_json(_file(home), {"machine": machine, "milliseconds": known})
    return min(known[kind], key=lambda runtime: float(known[kind][runtime]))


def _milliseconds(signature: Signature, engines: Mapping[Runtime, Callable[[], Engine]], code: Code | None) -> dict[str, float]:
    """Median time of a picture with each runtime, in turn, so that a busy moment hits all of them."""
    photo = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    opened = {runtime: engine for runtime, open_ in engines.items() if (engine := _working(open_, signature, photo, code))}
    seconds: dict[Runtime, list[float]] = {runtime: [] for runtime in opened}
    for _ in range(_WARM_UP + _REPETITIONS):
        for runtime, engine in opened.items():
            started = time.perf_counter()
            paint(engine.run, signature, photo, code)
            seconds[runtime].append(time.perf_counter() - started)
    return {runtime: round(1000 * median(times[_WARM_UP:]), 3) for runtime, times in seconds.items()}


def _working(open_engine: Callable[[], Engine], signature: Signature, photo: Work, code: Code | None) -> Engine | None:
    """The engine, if it paints at all."""
    try:
        engine = open_engine()
        paint(engine.run, signature, photo, code)
    except RuntimeFailedError as error:
        _log.warning("%s", error)
        return None
    return engine


def _machine() -> dict[str, str]:
    """What the measurement holds for."""
    return {"processor": _processor(), **{runtime: version(runtime) for runtime in installed()}}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _remembered(home: Home) -> dict[str, Any]:
    """What was measured here before; nothing if it cannot be read, for then it is measured anew."""
    try:
        plain = json.loads(read_bounded(_file(home), _RECORD_MAX_BYTES))
        kinds = {str(kind): {str(r): float(ms) for r, ms in times.items()} for kind, times in plain["milliseconds"].items()}
        return {"machine": plain["machine"], "milliseconds": kinds}
    except (OSError, IntegrityError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _file(home: Home) -> Path:
    return home.root / "runtimes.json"
