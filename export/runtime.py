"""Open a compiled graph and run it: ``run(arrays) -> arrays``, bounded in threads.

Whoever calls ``open_engine`` has verified the bytes. ONNX Runtime's CPU provider is always there, OpenVINO where it was
installed; the engine says which of them it really is, since a silent fallback is the commonest lie in this trade.

ONNX Runtime, from 1.29 on, tells its makers of every process and session, on Linux too, unless the environment says otherwise
before it is loaded. Here it says so, for this process and those it starts, whatever it said before; nothing of ours loads it in
another place.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

from export.errors import IntegrityError, NotConfiguredError
from models.samplers import Feed

Precision = Literal["fp32", "int8"]
Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: Final[tuple[Runtime, ...]] = ("onnxruntime", "openvino")
DEFAULT_THREADS = 2
_SIZES: Final = 4  # picture sizes an engine is ready for: OpenVINO with a compiled graph


class Engine(Protocol):
    """A compiled graph that can be run again and again."""

    @property
    def runtime(self) -> Runtime:
        """The runtime that really runs it."""
        ...

    def run(self, feed: Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        """Named inputs in, named outputs out."""
        ...


@dataclass(frozen=True, slots=True)
class OnnxRuntimeEngine:
    """An ONNX Runtime session on the CPU, bound to arrays it reads and writes where they lie.

    What comes out of inputs of a size is known after the first time; until then ONNX Runtime makes room for it itself.
    """

    session: ort.InferenceSession
    runtime: Runtime = "onnxruntime"
    _outputs: OrderedDict[tuple[tuple[int, ...], ...], Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]] = field(
        default_factory=OrderedDict
    )

    def run(self, feed: Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        """See ``Engine.run``."""
        sizes = tuple(array.shape for array in feed.values())
        if sizes not in self._outputs:
            names = [output.name for output in self.session.get_outputs()]
            made = dict(zip(names, self.session.run(names, dict(feed)), strict=True))
            self._outputs[sizes] = {name: (array.shape, array.dtype) for name, array in made.items()}
            while len(self._outputs) > _SIZES:
                self._outputs.popitem(last=False)
            return made
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self._outputs[sizes].items()}
        binding = self.session.io_binding()
        given = {name: np.ascontiguousarray(array) for name, array in feed.items()}  # the binding keeps none of them alive
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        for name, array in arrays.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        self.session.run_with_iobinding(binding)
        return arrays


@dataclass(slots=True)
class OpenVinoEngine:
    """A graph OpenVINO compiles for the CPU, once for each of the sizes it was last given.

    A graph of fixed size runs without working out shapes, and its kernels are chosen for that size.
    """

    model: Any
    options: Mapping[str, object]
    runtime: Runtime = "openvino"
    _requests: OrderedDict[tuple[tuple[int, ...], ...], Any] = field(default_factory=OrderedDict)

    def run(self, feed: Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        """See ``Engine.run``."""
        with _kept_signal_stack():
            try:
                request = self._request(feed)
            except Exception as error:  # a plain RuntimeError for all that can be wrong
                raise RuntimeFailedError(f"OpenVINO cannot run a graph here ({_first_line(error)})") from error
            arrays = {o.any_name: np.empty(tuple(o.shape), o.get_element_type().to_dtype()) for o in request.model_outputs}
            for name, array in arrays.items():
                request.set_tensor(name, _openvino().Tensor(array, shared_memory=True))
            request.infer(dict(feed), share_inputs=True)
        return arrays

    def _request(self, feed: Feed) -> Any:
        sizes = tuple(feed[name.any_name].shape for name in self.model.inputs)
        if sizes not in self._requests:
            fixed = self.model.clone()
            fixed.reshape({name.any_name: list(feed[name.any_name].shape) for name in self.model.inputs})
            compiled = _openvino().Core().compile_model(fixed, "CPU", dict(self.options))
            self._requests[sizes] = compiled.create_infer_request()
            while len(self._requests) > _SIZES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(sizes)
        return self._requests[sizes]


class RuntimeFailedError(RuntimeError):
    """A runtime that is installed does not work on this machine."""


def installed() -> tuple[Runtime, ...]:
    """The runtimes this machine has."""
    return tuple(runtime for runtime in RUNTIMES if importlib.util.find_spec(runtime) is not None)


def open_engine(model: bytes, what: str, threads: int = DEFAULT_THREADS, runtime: Runtime = "onnxruntime") -> Engine:
    """Open verified ONNX bytes.

    Args:
        model: a serialised graph; external data is refused by ONNX Runtime for a graph from memory.
        what: names the graph in an error.
        threads: CPU threads of one run.
        runtime: to run it.

    Raises:
        IntegrityError: the runtime cannot open it.
        NotConfiguredError: the runtime is not installed.
        RuntimeFailedError: OpenVINO is installed and cannot be loaded; later, when run: it cannot compile the graph.
    """
    if runtime not in installed():
        raise NotConfiguredError(
            f"{runtime} is not installed", advice=f"Install it with: pip install 'sfumato[{runtime}]', or use --runtime auto."
        )
    try:
        return _OPENERS[runtime](model, threads)
    except RuntimeFailedError:
        raise
    except Exception as error:  # both raise a dozen unrelated types
        raise IntegrityError(
            f"the {what} graph cannot be opened",
            advice="Install the release again with: sfumato release install",
        ) from error


def _open_onnxruntime(model: bytes, threads: int) -> Engine:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads spin while a picture is made, where waking them between two dozen operators would cost a tenth of the time,
    # and stop with it: spinning on would take the second core from whoever else needs it between two pictures.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return OnnxRuntimeEngine(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))


def _open_openvino(model: bytes, threads: int) -> Engine:
    read = _openvino().Core().read_model(model)
    # Without the hint it computes in bfloat16 what is called fp32, and a bare wall in int8 comes out in other tones.
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return OpenVinoEngine(read, options)


_OPENERS: Final = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux, see sigaltstack(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_DISABLED: Final = 2  # SS_DISABLE


@contextmanager
def _kept_signal_stack() -> Iterator[None]:
    """Give the thread back the stack its signal handlers run on.

    OpenVINO's CPU kernels put their own in its place (seen with 2026.4) and free it with the graph. Python's handlers run on
    that stack if there is one, so the next signal, a Ctrl-C or the end of a service, would crash the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if libc.sigaltstack(ctypes.byref(before), None):  # too small by now for the processor's registers: go without
            libc.sigaltstack(ctypes.byref(_SignalStack(None, _DISABLED, 0)), None)


def _openvino() -> Any:
    """The package, an extra, kept from reporting its import to its makers' analytics: it does that unless it cannot."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # means: not to be found
    try:
        import openvino  # noqa: PLC0415 - an extra
    except Exception as error:  # a library that is missing, a processor it was not built for
        raise RuntimeFailedError(f"OpenVINO cannot be loaded ({_first_line(error)})") from error

    return openvino


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def inputs_of(engine: Engine) -> tuple[str, ...]:
    """Names of a graph's inputs."""
    if isinstance(engine, OnnxRuntimeEngine):
        return tuple(i.name for i in engine.session.get_inputs())
    if isinstance(engine, OpenVinoEngine):
        return tuple(i.any_name for i in engine.model.inputs)
    return ()
