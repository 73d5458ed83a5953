"""Devices described by tables of what every layer costs."""
