"""The wheel holds the package and nothing else, and works in an empty environment outside the checkout."""

import json
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging_tools import ROOT, copy_of, environment, pip, run

pytestmark = pytest.mark.slow


SUFFIXES = (".py", ".yaml", ".safetensors", ".json", ".npz", ".c", ".txt", ".html", ".css", ".js")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = copy_of(ROOT, folder / "source")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=source)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_one_package(wheel, names):
    version = wheel.name.split("-")[1]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {name.split("/")[0] for name in names} == {"amed_env", f"amed_env-{version}.dist-info"}
    tests = {name for name in names if "test" in name.lower()}
    assert tests == {"amed_env/testing.py"}  # what other distributions inherit
    assert not [name for name in names if name.endswith((".pyc", ".pyo"))]


def test_the_wheel_holds_every_module_and_data_file(names):
    sources = [path for path in (ROOT / "amed_env").rglob("*") if path.suffix in SUFFIXES]
    expected = {path.relative_to(ROOT).as_posix() for path in sources} | {"amed_env/py.typed"}
    assert {name for name in names if name.startswith("amed_env/")} == expected
    for folder, suffix in (
        ("hardware/devices", ".yaml"),
        ("networks/weights", ".safetensors"),
        ("evaluation/tables", ".npz"),
    ):
        assert any(name.startswith(f"amed_env/{folder}/") and name.endswith(suffix) for name in names)


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 3_500_000  # half of it are tables of all allocations of three networks


def test_metadata(wheel, names):
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        found = HeaderParser().parsestr(archive.read(metadata).decode())
    assert found["Name"] == "amed-env"
    assert "MIT" in (found["License-Expression"], found["License"])
    assert found["Requires-Python"] == ">=3.11"
    required = found.get_all("Requires-Dist")
    assert {"gymnasium", "torch", "typer"} <= {line.split(">")[0] for line in required}
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_source_distribution_has_what_the_wheel_needs(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.cfg", "LICENSE", "amed_env/py.typed"} <= inside
    assert not [name for name in inside if name.startswith((".data", ".venv", "runs"))]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel alone; third-party packages are those that run this test.

    A path that a .pth file names is searched, but .pth files inside it are not obeyed, so the editable installation
    of this checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip("--python", scripts / "python", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    purelib = run(
        scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    outside = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    Path(purelib, "third_party.pth").write_text("\n".join(outside) + "\n")
    return scripts


def test_the_package_comes_from_the_wheel(installed, tmp_path):
    code = """
import importlib.metadata
import amed_env
print(amed_env.__file__, importlib.metadata.distribution("amed-env").locate_file(""))
"""
    for place in run(installed / "python", "-c", code, cwd=tmp_path).split():
        assert place.startswith(str(installed.parent))
        assert not place.startswith(str(ROOT))


def test_help_and_listings(installed, tmp_path):
    assert "search" in run(installed / "amed", "--help", cwd=tmp_path)
    assert "bitfusion" in run(installed / "amed", "devices", cwd=tmp_path)
    found = json.loads(run(installed / "amed", "devices", "--json", cwd=tmp_path))
    assert {row["name"] for row in found["devices"]} >= {"bitfusion", "eyeriss-ws", "systolic-32"}
    assert not [row for row in found["devices"] if row["problem"]]
    assert "digits-cnn" in run(installed / "amed", "tasks", cwd=tmp_path)
    assert "maskable-ppo" in run(installed / "amed", "agents", cwd=tmp_path)


def test_simulate_with_an_embedded_table(installed, tmp_path):
    command = ["simulate", "--network", "tabular/digits-cnn", "--device", "bitfusion", "--bits", "4", "--json"]
    found = json.loads(run(installed / "amed", *command, cwd=tmp_path))
    assert found["device"] == "bitfusion"
    assert len(found["layers"]) == 8
    assert found["total"]["latency_ms"] > 0
    assert {(row["w_bits"], row["a_bits"]) for row in found["layers"]} == {(4, 4)}


def test_environment_and_embedded_weights(installed, tmp_path):
    code = """
import gymnasium as gym, amed_env
env = gym.make("AMED/LayerWise-v0", task="digits-cnn", device="bitfusion", budget={"latency": 0.5})
observation, info = env.reset(seed=0)
for step in range(8):
    observation, reward, terminated, truncated, info = env.step(int(env.unwrapped.action_masks().argmax()))
print(terminated, truncated, info["accuracy"])
"""
    variables = environment(AMED_CACHE_DIR=str(tmp_path / "cache"))
    terminated, truncated, accuracy = run(installed / "python", "-c", code, cwd=tmp_path, env=variables).split()
    assert (terminated, truncated) == ("True", "False")
    assert 0 <= float(accuracy) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
