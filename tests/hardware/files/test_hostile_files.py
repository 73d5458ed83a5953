"""Files that nobody would write on purpose: none hangs, takes the memory, or ends in another error than ours."""

import io
import json
import os
import re
import resource
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amed_env import AmedError, Workload
from amed_env.agents.recipe import load_recipe
from amed_env.errors import DeviceError
from amed_env.hardware import load_device
from amed_env.hardware.external.command_config import CommandConfig
from amed_env.hardware.files.config import SystolicConfig
from amed_env.hardware.files.device_files import device_file_digest
from amed_env.hardware.tables.lookup_files import TableConfig
from amed_env.problem.allocation import read_json

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize("suffix", [".yaml", ".csv", ".npy"])
def test_a_pipe_that_nobody_writes_to_is_no_device_file(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(DeviceError, match="it is no regular file"):
        load_device(tmp_path / f"pipe{suffix}")
    with pytest.raises(DeviceError, match="it is no regular file"):
        device_file_digest(tmp_path / f"pipe{suffix}")


def test_pipes_that_files_name_are_refused_too(tmp_path):
    for name in ("pipe.yaml", "pipe.csv", "array.json", "program"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "program").chmod(0o755)
    np.save(tmp_path / "array.npy", np.ones((2, 8, 8)))
    texts = {
        "base.yaml": "extends: pipe.yaml\nname: mine\n",
        "table.yaml": "format: amed-table/1\nname: mine\ntable: pipe.csv\n",
        "array.yaml": "format: amed-table/1\nname: mine\ntable: array.npy\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DeviceError, match="it is no regular file"):
            load_device(tmp_path / name)
    (tmp_path / "program.yaml").write_text("format: amed-command/1\nname: mine\ncommand: ./program\n")
    device = load_device(tmp_path / "program.yaml")
    with pytest.raises(DeviceError, match="cannot start"):
        device.evaluate(network := Workload.parse_csv("name,kind,m,n,k,groups\na,linear,1,2,3,1\n"), network.uniform(8))


@pytest.mark.parametrize("suffix", [".yaml", ".csv", ".npy"])
def test_a_sparse_file_of_a_gibibyte_is_not_read(tmp_path, suffix):
    path = tmp_path / f"large{suffix}"
    with path.open("wb") as stream:
        if suffix == ".npy":
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "<f8", "fortran_order": False, "shape": (2**21, 8, 8)}
            )
        stream.truncate(2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DeviceError, match=r"more than the [0-9]+ MiB that are read"):
        load_device(path)
    with pytest.raises(AmedError, match="more than the"):
        Workload.load_csv(path)
    with pytest.raises(AmedError, match="more than the"):
        read_json(path)
    with pytest.raises(AmedError, match="more than the"):
        load_recipe(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_layers_may_come_through_a_pipe_of_the_shell(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"name,kind,m,n,k,groups\na,linear,1,2,3,1\n")
    os.close(writing)
    assert len(Workload.load_csv(Path(f"/dev/fd/{reading}"))) == 1
    os.close(reading)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.ones((0, 8, 8))), "the table is empty"),
        (npy(np.ones((1, 0, 8, 8))), "the table is empty"),
        (npy(np.float64(3)), "the array has shape"),
        (npy(np.ones((2, 8, 8)))[:-8], "its header announces float64 of shape"),
        (npy(np.ones((2, 8, 8))).replace(b"(2, 8, 8)", b"(2**40,) "), "cannot read the table"),
        (npy(np.ones((2, 8, 8))).replace(b"(2, 8, 8), }", b"(8**9, 8,), }"), "cannot read the table"),
        (npy(np.ones((2, 8, 8))).replace(b"(2, 8, 8), }   ", b"(99999999999,),}"), "its header announces"),
        (npy(np.array([{}], dtype=object)), "cannot read the table"),
    ],
)
def test_arrays_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "table.npy").write_bytes(content)
    with pytest.raises(DeviceError, match=message):
        load_device(tmp_path / "table.npy")


@pytest.mark.parametrize(
    "facts",
    [
        {"layers": []},
        {"weight_bits": []},
        {"metrics": {}},
        {"layers": ["", "a"]},
        {"layers": ["a", "a"]},
        {"weight_bits": [True] * 8},
        {"clock_mhz": "fast"},
    ],
)
def test_faults_of_the_json_file_of_an_array(tmp_path, facts):
    np.save(tmp_path / "table.npy", np.ones((2, 8, 8)))
    (tmp_path / "table.json").write_text(json.dumps({"format": "amed-table/1", **facts}))
    with pytest.raises(DeviceError):
        load_device(tmp_path / "table.npy")


KEYS = st.sampled_from(
    sorted(
        {*TableConfig.model_fields, *CommandConfig.model_fields, *SystolicConfig.model_fields, "extends", "provenance"}
    )
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["amed-table/1", "amed-command/1", "amed-device/1", "bitfusion", "w4a8", "t.csv", "pool"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@SHARED_FOLDER
@given(st.dictionaries(KEYS, VALUES, max_size=8), st.sampled_from(["amed-table/1", "amed-command/1", "amed-device/1"]))
def test_no_device_file_escapes_as_another_error(tmp_path, document, form):
    path = tmp_path / "fuzzed.yaml"
    path.write_text(json.dumps({**document, "format": form}))
    with suppress(AmedError):
        load_device(path)


@SHARED_FOLDER
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_no_json_file_of_an_array_escapes_as_another_error(tmp_path, document):
    np.save(tmp_path / "fuzzed.npy", np.ones((2, 8, 8)))
    (tmp_path / "fuzzed.json").write_text(json.dumps({**document, "format": "amed-table/1"}))
    with suppress(AmedError):
        load_device(tmp_path / "fuzzed.npy")


@SHARED_FOLDER
@given(st.binary(max_size=300), st.sampled_from([".yaml", ".csv", ".npy"]), st.integers(0, 200))
def test_no_bytes_escape_as_another_error(tmp_path, content, suffix, kept):
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes((npy(np.ones((1, 8, 8))) if suffix == ".npy" else b"layer,w_bits,a_bits\n")[:kept] + content)
    with pytest.raises(DeviceError):
        load_device(path)


def test_yaml_of_a_thousand_levels(tmp_path):
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 20_000)
    with pytest.raises(DeviceError, match=re.escape("deep.yaml")):
        load_device(tmp_path / "deep.yaml")
