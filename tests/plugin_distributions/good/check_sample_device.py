"""The tests of this distribution: everything that a device owes, inherited. pytest runs the file by its name."""

from amed_sample_plugins import SampleDevice

from amed_env.testing import HardwareConformance


class TestSampleDevice(HardwareConformance):
    """The one override that is needed."""

    def make_backend(self):
        """The device."""
        return SampleDevice()
