"""Devices and agents of other distributions, one of which is broken."""

import json
import os
import sys

import pytest
from packaging_tools import ROOT, copy_of, environment, pip, run
from warm import run_warm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """A process environment that sees both distributions, built as wheels and installed from them."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("good", "broken"):
        source = copy_of(ROOT / "tests" / "plugin_distributions" / name, folder / name)
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "dist", cwd=source)
    target = folder / "installed"
    wheels = sorted((folder / "dist").glob("*.whl"))
    assert len(wheels) == 2
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", target, *wheels, cwd=folder)
    return environment(PYTHONPATH=os.pathsep.join((str(target), str(ROOT))))


@pytest.fixture
def amed(variables, tmp_path):
    def call(*arguments):
        done = run_warm(["-m", "amed_env", *arguments], tmp_path, variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def rows(text, kind):
    return {row["name"]: row for row in json.loads(text)[kind]}


@pytest.mark.parametrize(
    ("kind", "good", "shipped"),
    [("devices", "sample-device", "bitfusion"), ("agents", "sample-agent", "greedy")],
)
def test_listings_show_the_good_name_the_broken_and_keep_the_others(amed, kind, good, shipped):
    found = rows(amed(kind, "--json"), kind)
    one = kind.removesuffix("s")
    assert found[good]["problem"] is None
    assert found[good]["source"] == "plug-in"
    assert found[good]["description"]
    assert found[shipped]["problem"] is None
    broken = found[f"broken-{one}"]["problem"]
    assert "a_package_that_nobody_installed" in broken and "ModuleNotFoundError" in broken
    assert "no licence" in found[f"leaving-{one}"]["problem"]
    if kind == "devices":
        assert "amed_broken_plugins_of_another_name" in found["mislabelled-device"]["problem"]
    text = amed(kind)
    assert all(name in text for name in (good, shipped, f"broken-{one}"))


def test_a_plugin_device_simulates(amed):
    found = json.loads(
        amed(*["simulate", "--network", "tabular/digits-cnn", "--device", "sample-device", "--bits", "4", "--json"])
    )
    assert found["device"] == "sample-device"
    weights = found["total"]["weight_kib"] * 1024 * 8 / 4
    assert found["total"]["latency_ms"] == pytest.approx(weights * 4 / 1e6)


def test_plugins_search(amed, tmp_path):
    command = (
        "search tabular/digits-cnn --device sample-device --agent sample-agent --evaluations 2 --budget latency=0.5"
    )
    amed(*command.split(), "--out", "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "sample-agent" in json.dumps(result)
    allocation = json.loads((tmp_path / "run" / "allocation.json").read_text())
    assert {(entry["w"], entry["a"]) for entry in allocation["layers"].values()} == {(4, 4)}


def test_a_plugin_metric_is_measured(amed):
    found = json.loads(amed(*["evaluate", "digits-cnn", "--bits", "4", "--metric", "sample-metric", "--json"]))
    assert found["metrics"]["sample-metric"] == pytest.approx(1 - found["accuracy"])


@pytest.mark.parametrize(("option", "name"), [("--device", "broken-device"), ("--agent", "broken-agent")])
def test_asking_for_a_broken_one_says_why(variables, tmp_path, option, name):
    command = ["search", "digits-cnn", "--evaluations", "2", option, name, "--out", "run"]
    done = run_warm(["-m", "amed_env", *command], tmp_path, variables)
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert name in message and "a_package_that_nobody_installed" in message
    assert "Traceback" not in done.stderr


def test_the_distribution_inherits_the_tests_of_a_device(variables, tmp_path):
    tests = copy_of(ROOT / "tests" / "plugin_distributions" / "good", tmp_path / "good") / "check_sample_device.py"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tests]
    assert "11 passed" in run_warm(command, tmp_path, variables).stdout


@pytest.mark.parametrize("name", ["sample-device", "sample-guarded-device"])
def test_a_plugin_device_is_checked_and_shown(amed, name):
    assert amed("devices", "check", name).count("ok  ") == 10
    shown = json.loads(amed("devices", "show", name, "--json"))
    assert shown["name"] == name and shown["timeout_s"] == (60 if "guarded" in name else None)


def test_devices_side_by_side_with_a_plugin(amed):
    command = "simulate --network tabular/digits-cnn --bits 4 --json --compare bitfusion sample-device"
    devices = json.loads(amed(*command.split()))["devices"]
    assert [entry["device"] for entry in devices] == ["bitfusion", "sample-device"]
