"""Plug-ins that end the program where they should raise."""

import sys

sys.exit("no licence")
