"""A device, an agent and a metric as another distribution provides them."""

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


class SampleMetric:
    """The share of samples that are wrong."""

    higher_is_better = False

    def __init__(self):
        self.wrong = self.samples = 0

    def update(self, outputs, targets):
        """Count."""
        wrong = outputs.argmax(dim=1) != targets
        self.wrong, self.samples = self.wrong + int(wrong.sum()), self.samples + len(targets)
        return wrong.float()

    def compute(self):
        """The share."""
        return self.wrong / self.samples
