"""Layers timed on this machine with ONNX Runtime's CPU kernels; needs the extra `measure`.

A time is CPU time of the calling thread, which alone computes, in batches of runs that last about a millisecond: the
smallest mean of a batch, and the spread (median minus minimum). Each layer runs alone with its data in the cache,
so what happens between layers is not measured. What was measured is kept by shape, precision, runtime version and CPU.
Nothing is smoothed: where fewer bits are slower, the times say so. Only what is noisy is measured again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amed_env.errors import BackendError, DeviceError
from amed_env.hardware.external.onnx_layers import PAIRS, layer_model
from amed_env.hardware.protocol import Capabilities, HardwareBackend
from amed_env.problem.allocation import Precision
from amed_env.problem.workload import Layer, Workload
from amed_env.support.cache import cached_array
from amed_env.support.machine import cpu_name

_MEASUREMENT = 2  # part of the key of what is kept; grows when the way of measuring changes
# A batch of a millisecond is long against the clock's resolution and short against the time between interruptions,
# so that the fastest of some batches met none.
_BATCH_NS = 1_000_000
_NOISY = 0.1  # spread as a share of the time; idle machines are at 1 to 3 %
_TRIES = 3
_MOST_SECONDS = 0.5  # CPU time of one measurement, if its batches are long


class OnnxRuntimeCpu(HardwareBackend):
    """This machine's CPU with ONNX Runtime, measured layer by layer.

    Float and 8 bit for all kinds of layers, and weights of 4 and 2 bits for linear ones.

    Args:
        batches: Batches of runs, of which the fastest counts.

    Raises:
        DeviceError: If onnx or onnxruntime is not installed.
    """

    name = "onnxruntime-cpu"
    description = "this machine's CPU, timed layer by layer with ONNX Runtime (one thread, CPU time, minimum)"
    metrics: Mapping[str, str] = {"latency_ms": "ms", "latency_spread_ms": "ms"}
    bits = (2, 4, 8, 32)

    def __init__(self, batches: int = 20) -> None:
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise DeviceError(
                f"device {self.name!r} needs {' and '.join(missing)}; install them: pip install 'amed-env[measure]'."
            )
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise DeviceError(f"device {self.name!r}: batches is {batches!r}; give a whole number of at least 1.")
        self.batches = batches
        self._noisy: dict[str, npt.NDArray[np.float64]] = {}

    def capabilities(self) -> Capabilities:
        """The kernels that the runtime has; measured, so not deterministic."""
        weight_bits, activation_bits, pairs = {}, {}, {}
        for kind, precisions in PAIRS.items():
            weight_bits[kind] = tuple(sorted({p.weight_bits for p in precisions}))
            activation_bits[kind] = tuple(sorted({p.activation_bits for p in precisions}))
            pairs[kind] = tuple((p.weight_bits, p.activation_bits) for p in precisions)
        return Capabilities(weight_bits, activation_bits, dict(self.metrics), deterministic=False, pairs=pairs)

    def allowed_precisions(
        self, workload: Workload, precisions: Sequence[Precision]
    ) -> Sequence[Collection[Precision]]:
        """What the runtime has kernels for; nothing is measured to learn it."""
        return super().allowed_precisions(workload, precisions)

    def layer_cost(self, layer: Layer, precision: Precision) -> Mapping[str, float]:
        """Time of one layer: the fastest batch, and by how much the median of the batches is slower.

        A spread above 10 % is measured again, three times at most. What is noisy even so is good for this device object
        alone; the next program measures it anew.

        Raises:
            UnsupportedPrecisionError: If the runtime has no kernel for it.
            BackendError: If the runtime fails.
        """
        self.capabilities().require(layer, precision, self.name)

        key = self._key(layer, precision)

        def measure() -> npt.NDArray[np.float64]:
            if key in self._noisy:
                return self._noisy[key]
            return least_noisy(_runner(layer, precision), self.batches)

        times = cached_array("onnxruntime-cpu", key, (2,), measure, worth_keeping=lambda found: not is_noisy(found))
        if is_noisy(times):
            self._noisy[key] = times
        fastest, median = times
        return {"latency_ms": float(fastest) * 1e-6, "latency_spread_ms": float(median - fastest) * 1e-6}

    def _key(self, layer: Layer, precision: Precision) -> str:
        shape = (layer.kind, layer.m, layer.n, layer.k, layer.groups, layer.kernel, layer.stride)
        return repr((_MEASUREMENT, _runtime_version(), cpu_name(), self.batches, shape, tuple(precision)))


def is_noisy(times: npt.NDArray[np.float64]) -> bool:
    """Whether the median of the batches is much slower than the fastest of them."""
    fastest, median = times
    return bool(median > (1 + _NOISY) * fastest)


def least_noisy(run: Callable[[], object], batches: int) -> npt.NDArray[np.float64]:
    """Fastest and median batch in nanoseconds, of the first measurement that is not noisy, or the least noisy one.

    Args: as `batch_times`.
    """
    found = []
    for _ in range(_TRIES):
        times = batch_times(run, batches)
        found.append(np.array([min(times), float(np.median(times))]))
        if not is_noisy(found[-1]):
            return found[-1]
    return min(found, key=lambda times: float(times[1] / times[0]))


def batch_times(run: Callable[[], object], batches: int, clock: Callable[[], int] = time.thread_time_ns) -> list[float]:
    """Mean times of one run in nanoseconds, a number for every batch; stops early when half a second is used up.

    Args:
        run: What is timed; it is called a few times before.
        batches: Batches, at least one is timed.
        clock: Nanoseconds of CPU time of this thread.
    """
    run()  # the first run allocates, and packs the weights
    start = clock()
    run()
    runs = max(1, _BATCH_NS // max(1, clock() - start))
    times: list[float] = []
    began = clock()
    while len(times) < batches and (not times or clock() - began < _MOST_SECONDS * 1e9):
        start = clock()
        for _ in range(runs):
            run()
        times.append((clock() - start) / runs)
    return times


def _runtime_version() -> str:
    return importlib.metadata.version("onnxruntime")


def _runner(layer: Layer, precision: Precision) -> Callable[[], object]:
    """A function that runs a layer once, in this thread alone."""
    import onnxruntime  # an optional dependency, whose absence the constructor reports

    made = layer_model(layer, precision)
    options = onnxruntime.SessionOptions()
    # CPU time of this thread is the time of the layer only if no other thread helps.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(made.model, options, providers=["CPUExecutionProvider"])
        session.run(None, made.inputs)
    except Exception as error:
        raise BackendError(
            f"ONNX Runtime {_runtime_version()} cannot run layer {layer.name!r} ({layer.kind}) at {precision}: {error}."
        ) from error
    return lambda: session.run(None, made.inputs)
