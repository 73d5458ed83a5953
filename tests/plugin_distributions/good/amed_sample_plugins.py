"""A device and an agent as another distribution provides them."""

from amed_env import Agent, HardwareBackend


class SampleDevice(HardwareBackend):
    """A device whose latency is that of reading the weights."""

    metrics = {"latency_ms": "ms"}  # noqa: RUF012 - as a user writes it

    def layer_cost(self, layer, precision):
        """A million bits a millisecond."""
        return {"latency_ms": layer.weight_elements * precision.weight_bits / 1e6}


class SampleGuardedDevice(SampleDevice):
    """The same device in a process of its own, with a limit on its time."""

    timeout_s = 60.0


class SampleAgent(Agent):
    """Tries the uniform widths, wide ones first."""

    def explore(self, session):
        """Ask for every width that the task has."""
        for bits in reversed(session.task.bits):
            session.evaluate(session.task.workload.uniform(bits))
