"""Processes and folders for tests of what is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**changes):
    """This process's variables without those that lead Python to packages; what is None is removed."""
    found = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    found.update(changes)
    return found


def run(*command, cwd, env=None):
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env or environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments, cwd):
    """Run pip without any network."""
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


def copy_of(folder, target):
    """The sources below a folder, without what tools and runs leave behind."""
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    return shutil.copytree(folder, target, ignore=leave)
