"""Open a compiled graph and run it: ``run(arrays) -> arrays``, bounded in threads.

Whoever calls ``open_engine`` has verified the bytes. Only ONNX Runtime's CPU provider is asked for here; the engine says
which runtime and precision it really is, since a silent fallback is the commonest lie in this trade.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from export.errors import IntegrityError
from models.samplers import Feed

Precision = Literal["fp32", "int8"]
DEFAULT_THREADS = 2


class Engine(Protocol):
    """A compiled graph that can be run again and again."""

    @property
    def runtime(self) -> str:
        """The runtime that really runs it."""
        ...

    def run(self, feed: Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        """Named inputs in, named outputs out."""
        ...


@dataclass(frozen=True, slots=True)
class OnnxRuntimeEngine:
    """An ONNX Runtime session on the CPU."""

    session: ort.InferenceSession
    runtime: str = "onnxruntime"

    def run(self, feed: Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        """See ``Engine.run``."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(feed)), strict=True))


def open_engine(model: bytes, what: str, threads: int = DEFAULT_THREADS) -> OnnxRuntimeEngine:
    """Open verified ONNX bytes.

    Args:
        model: a serialised graph; external data is refused by ONNX Runtime for a graph from memory.
        what: names the graph in an error.
        threads: CPU threads of one run.

    Raises:
        IntegrityError: ONNX Runtime cannot open it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the second core from whoever else needs it between two pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise IntegrityError(
            f"the {what} graph cannot be opened",
            advice="Install the release again with: sfumato release install",
        ) from error
    return OnnxRuntimeEngine(session)


def inputs_of(engine: Engine) -> tuple[str, ...]:
    """Names of a graph's inputs."""
    if isinstance(engine, OnnxRuntimeEngine):
        return tuple(i.name for i in engine.session.get_inputs())
    return ()
