"""Devices described by YAML files."""
