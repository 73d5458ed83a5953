"""Devices that are another program, another process, or this machine itself."""
