"""Tests that a distribution with devices of its own inherits: the promises of a device, one test each.

    from amed_env.testing import HardwareConformance


    class TestMyNpu(HardwareConformance):
        def make_backend(self):
            return MyNpu()

pytest collects the class by its name and runs every promise; nothing else has to be written. unittest works as well,
with `unittest.TestCase` as a second base.
"""

from __future__ import annotations

import warnings

from amed_env.hardware.check import CHECKS, conformance_workload, warn_if_not_monotone
from amed_env.hardware.costs import backend_capabilities
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.workload import Workload


class HardwareConformance:
    """The behaviour that every device owes; override `make_backend`.

    The checks are those of `amed_env.check_hardware`.
    """

    def make_backend(self) -> HardwareBackend:
        """The device under test; called anew for every test."""
        raise NotImplementedError(f"{type(self).__name__} must override make_backend().")

    def make_workload(self) -> Workload | None:
        """The network to test with; None takes the device's own, or a small one with all kinds that it supports."""
        return None

    def _check(self, promise: str) -> None:
        backend = self.make_backend()
        workload = conformance_workload(backend, self.make_workload())
        CHECKS[promise](backend, backend_capabilities(backend), workload)

    def test_declared_metrics_have_units(self) -> None:
        """Every metric has a unit, and known metrics have theirs."""
        self._check("declared metrics have units")

    def test_costs_are_finite_complete_and_not_negative(self) -> None:
        """Every declared metric is there, in totals and in a breakdown, and is a cost."""
        self._check("costs are finite, complete and not negative")

    def test_totals_are_the_sum_over_the_layers(self) -> None:
        """If costs add up: the totals are those of the breakdown."""
        self._check("totals are the sum over the layers")

    def test_the_table_equals_evaluate(self) -> None:
        """If costs add up: the table and the evaluation of allocations agree."""
        self._check("the table equals evaluate")

    def test_many_answers_equal_single_ones(self) -> None:
        """`evaluate_many` answers what `evaluate` does."""
        self._check("many answers equal single ones")

    def test_lower_bounds_are_not_above_the_costs(self) -> None:
        """If costs do not add up: what `lower_bound` promises holds."""
        self._check("lower bounds are not above the costs")

    def test_equal_calls_give_equal_answers(self) -> None:
        """If it is deterministic: the order of calls does not matter."""
        self._check("equal calls give equal answers")

    def test_it_can_be_pickled(self) -> None:
        """A copy in another process answers the same."""
        self._check("it can be pickled")

    def test_unsupported_widths_and_kinds_are_refused(self) -> None:
        """What `capabilities` excludes raises `UnsupportedPrecisionError`."""
        self._check("unsupported widths and kinds are refused")

    def test_unknown_layers_are_refused_or_costed(self) -> None:
        """Layers that it has never seen get a cost or the right error."""
        self._check("unknown layers are refused or costed")

    def test_where_fewer_bits_cost_more_is_a_warning_only(self) -> None:
        """Real devices do that: pytest lists the warning, the test passes."""
        backend = self.make_backend()
        workload = conformance_workload(backend, self.make_workload())
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warn_if_not_monotone(backend, backend_capabilities(backend), workload)
