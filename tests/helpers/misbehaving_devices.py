"""Devices that fail in every way that a device can, importable by a second process."""

import os
import sys
import time
from pathlib import Path

from amed_env.errors import UnsupportedPrecisionError
from amed_env.hardware import Capabilities, HardwareBackend


class Steady(HardwareBackend):
    """Latency is MACs x weight bits."""

    name = "steady"
    bits = (2, 4, 8)
    timeout_s = 20.0

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-6}


class Troubled(Steady):
    """Does something bad where the first layer has 2 bits, as often as its counter file says."""

    name = "troubled"
    retries = 0

    def __init__(self, trouble, times=10**6, counter=None):
        self.trouble, self.times, self.counter = trouble, times, counter

    def evaluate(self, workload, allocation):
        if next(iter(allocation.values())).weight_bits == 2 and self._again():
            getattr(self, self.trouble)()
        return super().evaluate(workload, allocation)

    def layer_cost(self, layer, precision):
        cost = super().layer_cost(layer, precision)
        return {"latency_ms": float("nan")} if self.trouble == "nan" and precision.weight_bits == 2 else cost

    def _again(self):
        if self.counter is None:
            return True
        path = Path(self.counter)
        done = int(path.read_text()) if path.exists() else 0
        path.write_text(str(done + 1))
        return done < self.times

    def nan(self):
        pass

    def hang(self):
        time.sleep(3600)

    def fail(self):
        raise RuntimeError("the licence server is away")

    def leave(self):
        sys.exit(3)

    def die(self):
        sys.stderr.write("out of registers")
        sys.stderr.flush()
        os.abort()

    def babble(self):
        while True:
            sys.stdout.write("x" * 9999)

    def refuse(self):
        raise UnsupportedPrecisionError("no 2 bits on Tuesdays")


class TroubledChain(Troubled):
    """The same with costs that do not add up, so that every allocation is a call."""

    name = "troubled-chain"

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)


class CannotStart(Steady):
    """Cannot be made again in another process."""

    def __reduce__(self):
        return os.path.join, (3,)
