"""Analytical simulators: cycles, traffic and energy of a layer on a systolic array or a processor."""
