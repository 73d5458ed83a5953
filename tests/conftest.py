"""What all tests share: a home of their own, the real data where there is any, one torch thread, fixed examples."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

DATA_VARIABLE = "AMED_DATA_DIR"
DATA_FILES = ("cifar-10-batches-bin/test_batch.bin", "weights/cifar10_resnet20.safetensors")

settings.register_profile(
    "amed",
    deadline=None,
    derandomize=True,
    database=None,
    # A fixture that is made once a test is what these tests mean: temporary folders that each example writes anew.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("amed")

_HOME = pytest.StashKey[Path]()


def pytest_configure(config):
    """Give all tests, and the processes that they start, a home that is thrown away.

    Workers of pytest-xdist inherit it, so what is cached is computed once a session.
    """
    torch.set_num_threads(1)
    if hasattr(config, "workerinput"):
        return
    home = Path(tempfile.mkdtemp(prefix="amed-tests-"))
    config.stash[_HOME] = home
    for variable in (
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
        "MPLCONFIGDIR",
        "AMED_CACHE_DIR",
    ):
        os.environ[variable] = str(home / variable.lower())
    os.environ["HOME"] = str(home)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_unconfigure(config):
    home = config.stash.get(_HOME, None)
    if home is not None:
        shutil.rmtree(home, ignore_errors=True)


def missing_data():
    """Why tests on real data cannot run, or None."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return f"set {DATA_VARIABLE} to the folder that holds {' and '.join(DATA_FILES)}"
    absent = [name for name in DATA_FILES if not (Path(folder) / name).is_file()]
    return f"{', '.join(absent)} not found below {DATA_VARIABLE} ({folder})" if absent else None


def missing_for(marker):
    """Why a test marked `data("task", ...)` cannot run, or None; without arguments it needs CIFAR-10 and ResNet-20."""
    from amed_env.tasks.catalogue import named_network

    reasons = [missing_data(), *(named_network(name).missing() for name in marker.args)]
    return next((reason for reason in reasons if reason is not None), None)


def pytest_collection_finish():
    _collect_garbage()


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("data")
        reason = None if marker is None else missing_for(marker)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def amed_data_dir():
    """The folder of the real data; skips where there is none."""
    reason = missing_data()
    if reason is not None:
        pytest.skip(reason)
    return Path(os.environ[DATA_VARIABLE])


@pytest.fixture(autouse=True, scope="session")
def _equal_networks_are_traced_once():
    """Where tasks and commands trace; tests that import `trace` have the true one."""
    from traced import trace_equals_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amed_env.tracing.trace.trace", trace_equals_once)
        yield


@pytest.fixture(autouse=True)
def _one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _little_memory():
    """Two workers must fit beside each other: few results are kept, and what a module of tests held goes with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amed_env.evaluation.post_training.REUSE_MIB", 128)
        yield
    _collect_garbage()  # graphs of networks refer to themselves


def _collect_garbage():
    """Collect all garbage, and let later automatic collections pass over what is left, such as imported modules."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
