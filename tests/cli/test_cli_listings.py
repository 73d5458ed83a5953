import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from amed_env import trace
from amed_env.agents import Agent, make_agent, register_agent
from amed_env.agents.built_in import AGENTS, BUILT_IN
from amed_env.agents.measured import MeasuredRegret
from amed_env.commands.agents import agent_rows
from amed_env.commands.listing import Listing
from amed_env.hardware import HardwareBackend
from amed_env.hardware.names import DEVICES
from amed_env.quantization.recipe import RECIPES
from amed_env.tasks.catalogue import TASKS, named_network
from amed_env.tracing.original import class_scores

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_dash_ends_no_command(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-m", "amed_env", "agents"], capture_output=True, env=environment)
    assert done.returncode == 0 and b"\\u2013" in done.stdout and b"Traceback" not in done.stderr


def test_a_closed_output_ends_no_command():
    text = f"{sys.executable} -m amed_env agents --json >&- 2>&-"
    assert subprocess.run(text, shell=True).returncode == 0


@pytest.mark.parametrize(("command", "name"), [("tasks", "digits-cnn"), ("devices", "bitfusion"), ("agents", "greedy")])
def test_listing(amed, command, name):
    assert name in amed(command).out
    rows = amed(command, "--json").json[command]
    assert name in [row["name"] for row in rows]
    assert all(set(row) >= {"name", "description", "problem"} for row in rows)


def test_agents_show_their_measured_regret(amed, monkeypatch):
    measured = MeasuredRegret("regret: in points", {"greedy": (0.25, 0.2, 0.3)})
    monkeypatch.setattr("amed_env.commands.agents.measured_regret", lambda: measured)
    regrets = {row["name"]: row["regret"] for row in amed("agents", "--json").json["agents"]}
    assert regrets["greedy"] == 0.25 and regrets["random"] is None
    answer = amed("agents")
    assert "0.25" in answer.out and "regret: in points" in answer.err


def test_agents_show_what_they_need(amed):
    rows = {row["name"]: row["needs"] for row in amed("agents", "--json").json["agents"]}
    assert rows["random"] == "" and rows["evolution"] == "sensitivities, amed-env[search]"
    lines = {line.split()[0]: line for line in amed("agents").out.splitlines()}
    assert "tied widths" in lines["qr-dqn"] and "a budget" in lines["policy"] and "[search]" in lines["tpe"]


def test_a_recipe_needs_what_its_algorithm_needs():
    assert make_agent(str(ROOT / "agents" / "dqn.yaml")).needs == BUILT_IN["dqn"].needs


def test_a_plug_in_says_what_it_needs(amed):
    @register_agent("test-needy")
    class Needy(Agent):
        """Asks for much."""

        needs = "patience"

        def explore(self, session):
            raise NotImplementedError

    try:
        assert {row["name"]: row["needs"] for row in agent_rows()}["test-needy"] == "patience"
        assert "plug-in" in amed("agents").out
    finally:
        AGENTS.unregister("test-needy")
    assert "built in" not in amed("agents").out


@pytest.mark.parametrize(("width", "most"), [(100, 2), (200, 1)])
def test_the_listing_of_agents_is_short_at_every_width(width, most):
    console = Console(file=io.StringIO(), width=width)
    console.print(Listing([row for row in agent_rows() if row["source"] == "built in"]))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and len(lines) <= 1 + most * len(BUILT_IN)


def test_tasks_say_what_is_missing(amed, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    rows = {row["name"]: row for row in amed("tasks", "--json").json["tasks"]}
    needed = {"cifar10-resnet8": 7, "cifar10-resnet20": 7, "cifar10-resnet56": 7, "fashion-cnn": 4, "kws-dscnn": 2}
    for name, files in needed.items():
        assert f"{files} of {files} files are missing below {tmp_path}; run: amed fetch {name}" == rows[name]["problem"]
    assert rows["digits-cnn"]["problem"] is None
    for table in ("digits-cnn", "cifar10-resnet8", "kws-dscnn"):  # a table stands for network and data
        assert rows[f"tabular/{table}"]["problem"] is None
    assert set(rows) >= {*needed, "digits-cnn"}
    (tmp_path / "kws_mlperf_tiny_1000.npz").touch()
    rows = {row["name"]: row for row in amed("tasks", "--json").json["tasks"]}
    assert rows["kws-dscnn"]["problem"].startswith("1 of 2 files")


def test_a_broken_device_and_a_broken_task_hide_no_others(amed):
    class Unlicensed(HardwareBackend):
        def __init__(self):
            raise RuntimeError("no licence")

    DEVICES.register("broken-device", Unlicensed)
    TASKS.register("broken-task", "no task at all")
    try:
        answer = amed("devices")
        assert "no licence" in answer.out and "bitfusion" in answer.out and answer.code == 0
        answer = amed("tasks")
        assert "broken-task" in answer.out and "digits-cnn" in answer.out and answer.code == 0
    finally:
        DEVICES.unregister("broken-device")
        TASKS.unregister("broken-task")


def test_version_and_help(amed):
    assert amed("--version").out.startswith("amed ")
    assert amed().code in (0, 2)
    for command in ("tasks", "devices", "agents", "search", "evaluate", "simulate", "fetch", "inspect"):
        answer = amed(command, "--help")
        assert answer.code == 0 and "Example" in answer.out


HEAVY = ("torch", "scipy", "sklearn", "stable_baselines3", "sb3_contrib", "optuna", "pymoo", "matplotlib", "plotly")


def test_help_names_every_recipe(amed):
    words = amed("search", "--help").out.replace(",", " ").split()
    assert set(RECIPES) <= set(words)


HELP, LISTINGS = ("--help", "search --help", "finetune --help", "bench tiny --help"), ("agents", "tasks", "devices")


@pytest.mark.parametrize("arguments", [*HELP, *LISTINGS, "fetch no-task", "simulate --layers layers.csv --bits 8"])
def test_help_listings_and_simulation_import_nothing_heavy(tmp_path, arguments):
    (tmp_path / "layers.csv").write_text("name,kind,m,n,k,groups\nfirst,conv,64,32,27,1\n")
    program = f"""
import sys
from amed_env.cli import main
sys.argv[1:] = {arguments.split()}
try:
    main()
except SystemExit:
    pass
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout or "unknown task" in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_what_agents_are_written_with_imports_nothing_heavy():
    program = f"import sys; from amed_env.agents import Agent, make_agent; print(set({HEAVY}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_search_of_a_network_that_was_captured_before_imports_no_compiler(tmp_path):
    network = named_network("digits-cnn")
    trace(network.trained(), network.splits().calibration.example(), "digits-cnn", outputs=class_scores)
    heavy = ("torch.export._trace", "torch._dynamo", "sympy", "sklearn", "scipy.stats", "matplotlib")
    program = f"""
import sys, amed_env
task = amed_env.make_task("digits-cnn", budget=["latency=0.5"])
result = amed_env.make_agent("policy").search(task, 1)
print(len(result.trials), set({heavy}) & set(sys.modules))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 set()\n"


def test_typing_errors_exit_with_2(amed):
    assert amed("serch").code == 2
    answer = amed("search", "digits-cnn", "--outt", "x")
    assert answer.code == 2 and "--out" in answer.err


def test_debug_shows_the_traceback(amed):
    with pytest.raises(Exception, match="did you mean 'digits-cnn'"):
        amed("--debug", "fetch", "digits-cn")


def test_a_closed_pipe_is_silent(tmp_path):
    command = f"{sys.executable} -c 'from amed_env.cli import main; main()' devices --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "{" and done.stderr == ""
