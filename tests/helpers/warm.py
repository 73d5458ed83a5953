"""Python in processes of their own that start warm: forked from one that has imported what takes seconds to import.

Their signals, exit codes, streams, folders and environments are real. What a cold start does (which modules are
imported, how long it takes, what an installed wheel holds) needs a new interpreter instead.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

import pytest

PRELOADED = [
    *("amed_env.cli", "amed_env.envs", "amed_env.report", "amed_env.testing", "pytest"),
    *(
        "amed_env.agents.learners.learners",
        "amed_env.evaluation.post_training",
        "amed_env.hardware.simulator.simulator",
    ),
    *("torch.export._trace", "torch._dynamo.aot_compile", "torch._functorch.aot_autograd", "torch.utils.tensorboard"),
    *("stable_baselines3", "sb3_contrib", "sklearn.datasets", "scipy.optimize", "scipy.stats", "sympy.tensor.tensor"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg"),
    "warmed",
]
"""Imported once, in the process that others are forked from; a library's processes of this context fork from it too."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def warm_context():
    """The context whose processes start warm; its server runs then."""
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not tell the server where modules are
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return CONTEXT


class WarmPopen:
    """What `subprocess.Popen` is for `python ARGUMENTS`, with the streams as text.

    Args:
        arguments: `["-m", module, ...]`, `["-c", code, ...]` or `[script, ...]`, as for `python`.
        cwd: The folder it runs in.
        env: Its environment; None is that of the tests.
    """

    def __init__(self, arguments, cwd, env=None):
        self.args = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("out", "err")]
        environment = dict(os.environ if env is None else env)
        self._process = warm_context().Process(target=_become, args=(self.args, str(cwd), environment, self._streams))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired(self.args, timeout)
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._streams)
        return out, err


def run_warm(arguments, cwd, env=None, timeout=240):
    """What `subprocess.run` is for `python ARGUMENTS`; the process does not outlive the call."""
    process = WarmPopen(arguments, cwd, env)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return CompletedProcess(process.args, process.returncode, out, err)


def _become(arguments, folder, environment, streams):
    """Turn this forked process into `python ARGUMENTS`."""
    for descriptor, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, *rest = arguments
    further = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        if kind == "-m":
            sys.path[:0] = ["", *further]
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.path[:0] = ["", *further]
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path[:0] = [str(Path(kind).parent), *further]
            sys.argv = arguments
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves by os._exit
