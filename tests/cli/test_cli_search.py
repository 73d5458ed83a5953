import json
import sqlite3
from importlib import metadata

import pytest

from amed_env import BitAllocation, TrialStore
from amed_env.commands.run_folder import RunFolder
from amed_env.commands.search import SearchOptions, search

NETWORK = ["search", "digits-cnn", "--agent", "random", "--budget", "latency=0.5", "--evaluations", 6, "--out", "run"]
RANDOM = ["search", "tabular/digits-cnn", *NETWORK[2:]]


def test_run_folder_has_everything(amed, tmp_path):
    answer = amed(*NETWORK, "--seed", 3, "--json")
    document = answer.json
    assert answer.code == 0 and document["format"] == "amed-result/1" and answer.err == ""
    assert document["evaluations"] == 6 and document["best"]["feasible"] and not document["interrupted"]
    assert document["best"]["test"]["samples"] == document["float"]["test"]["samples"] == 500
    assert set(document["baselines"]) == {"uniform-2", "uniform-3", "uniform-4", "uniform-8"}
    folder = tmp_path / "run"
    visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == {"config.json", "trials.sqlite", "result.json", "allocation.json", "pareto.png", "allocation.png"}
    saved = json.loads((folder / "result.json").read_text())
    assert saved == {key: value for key, value in document.items() if key != "files"}
    assert {str(folder / name).rpartition("/")[2] for name in visible} >= {
        f.rpartition("/")[2] for f in document["files"]
    }
    allocation = BitAllocation.load(folder / "allocation.json")
    assert allocation == BitAllocation.from_json(document["best"]["allocation"])
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 3 and config["settings"]["evaluations"] == 6
    assert {"amed_env", "python", "torch", "numpy", "gymnasium", "stable-baselines3"} <= set(config["versions"])


def test_versions_of_an_agents_own_libraries_are_recorded(amed, tmp_path):
    amed("search", "tabular/digits-cnn", "--agent", "tpe", "--evaluations", 1, "--out", "run")
    versions = json.loads((tmp_path / "run" / "config.json").read_text())["versions"]
    assert versions["optuna"] == metadata.version("optuna") and "pymoo" not in versions


def test_a_search_from_python(tmp_path, capsys):
    given = {"task": "tabular/digits-cnn", "agent": "random", "budget": ["latency=0.5"], "evaluations": 3}
    assert search(SearchOptions(**given, out=tmp_path / "run", as_json=True)) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == 3
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["agent"] == "random" and config["settings"]["seed"] == 0


def test_tables_and_a_learner(amed, tmp_path):
    arguments = ["search", "digits-cnn", "--budget", "latency=0.5", "--evaluations", 3, "--out", "run", "--separate"]
    answer = amed(*arguments, "--agent", "maskable-ppo", "--option", "warm_start_steps=64", "--bits", "4,8")
    assert answer.code == 0
    for text in ("block1.conv1", "weight bits", "uniform 4", "float", "within budget", "pareto.png"):
        assert text in answer.out
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("option", ["proxy=fisher", "proxy=hessian", "proxy=squared-error"])
def test_proxies_that_a_network_has_to_be_asked_for(amed, tmp_path, option):
    arguments = ["search", "digits-cnn", "--recipe", "nearest", "--budget", "latency=0.5", "-n", 2, "--out", "run"]
    answer = amed(*arguments, "--agent", "milp", "--option", option, "--json")
    assert answer.code == 0 and answer.json["best"]["feasible"] and answer.err == ""


def test_pairwise_measures_pairs(amed, monkeypatch):
    from amed_env.evaluation import estimates

    asked, measure = [], estimates.measure_pairs
    monkeypatch.setattr(estimates, "measure_pairs", lambda *given: asked.append(given) or measure(*given))
    arguments = ["search", "digits-cnn", "--recipe", "nearest", "--bits", "2,8", "--budget", "latency=0.5", "-n", 2]
    answer = amed(*arguments, "--agent", "pairwise", "--out", "run", "--json")
    assert answer.code == 0 and len(asked) == 1 and answer.err == ""


@pytest.mark.parametrize("name", ["1e3", "null", "true"])
def test_a_folder_of_a_policy_may_be_called_anything(amed, name):
    answer = amed("search", "tabular/digits-cnn", "--policy", name, "--budget", "latency=0.5", "-n", 2, "--out", "run")
    assert answer.code == 2 and f"policy {name}" in answer.err


def test_own_network_device_file_and_class_agent(amed, networks, tmp_path):
    from importlib.resources import files

    text = (files("amed_env.hardware") / "devices" / "systolic-32.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("name: systolic-32", "name: own"))
    arguments = ["search", "--network", f"{networks}:make", "--recipe", "nearest", "--device", "own.yaml"]
    arguments += ["--agent", "amed_env.agents.searchers.baselines:GreedyAgent", "--budget", "memory=0.6"]
    arguments += ["--evaluations", 4, "--out", "run", "--json"]
    answer = amed(*arguments)
    assert answer.json["device"] == "own" and "noise on stdout" in answer.err
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["device"]["content"].startswith("format: amed-device/1")
    (tmp_path / "own.yaml").write_text(text.replace("name: systolic-32", "name: own").replace("rows: 32", "rows: 16"))
    answer = amed(*arguments, "--resume")
    assert answer.code == 2 and "other settings: device" in answer.err and answer.out == ""


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ([], "maskable-ppo"),
        (["--budget", "latency=0.5"], "policy"),
        (["--budget", "latency=0.5", "--agent", "random"], "random"),
        (["--agent", "random"], "random"),
    ],
)
def test_the_agent_is_the_shipped_policy_where_there_is_a_budget(amed, given, chosen):
    document = amed("search", "tabular/digits-cnn", *given, "--evaluations", 2, "--out", "run", "--json").json
    assert document["agent"] == chosen
    if chosen == "policy":
        assert document["best"] is not None  # the first answer is within the budget already


def test_no_budget_is_warned_about(amed):
    arguments = [part for part in RANDOM if part not in ("--budget", "latency=0.5")]
    answer = amed(*arguments, "--evaluations", 2)
    assert answer.code == 0 and "without any limit" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "latency=0.1"], "smallest reachable latency_ms is 0.001364"),
        (["--budget", "latancy=0.5"], "did you mean 'latency'"),
        (["--budget", "latency=0.5parsec"], "unknown unit 'parsec'"),
        (["--agent", "gredy"], "did you mean 'greedy'"),
        (["--agent", "maskable-ppo", "--option", "warm_start_step=5"], "did you mean 'warm_start_steps'"),
        (["--option", "warm_start_steps"], "name=value"),
        (["--device", "bitfuson"], "did you mean 'bitfusion'"),
        (["--bits", "2,x"], "2,3,4,8"),
        (["--bits", "4"], "at least two"),
        (["--evaluations", "0"], "--evaluations"),
    ],
)
def test_bad_input_leaves_no_folder(amed, tmp_path, arguments, message):
    answer = amed("search", "digits-cnn", "--agent", "random", "--out", "run", *arguments)
    assert answer.code == 2 and message in answer.err and answer.out == ""
    assert not (tmp_path / "run").exists()


def test_an_unreachable_budget_is_refused_before_any_evaluation(amed, monkeypatch):
    from amed_env.evaluation.post_training import PostTrainingEvaluator

    monkeypatch.setattr(PostTrainingEvaluator, "evaluate", lambda *_: pytest.fail("evaluated"))
    assert amed("search", "digits-cnn", "--budget", "memory=0.2", "--out", "run").code == 2


def test_resume(amed, tmp_path, rows_of, monkeypatch):
    first = amed(*RANDOM, "--json").json
    answer = amed(*RANDOM)
    assert answer.code == 2 and "--resume" in answer.err and "--out" in answer.err
    answer = amed(*RANDOM, "--seed", 1, "--budget", "memory=0.5", "--resume")
    assert answer.code == 2 and "seed (there 0, now 1)" in answer.err and "budgets" in answer.err
    answer = amed(*RANDOM, "--evaluations", 5, "--resume")
    assert answer.code == 2 and "evaluations (there 6, now 5)" in answer.err
    before = rows_of(tmp_path / "run" / "trials.sqlite")
    finished = amed(*RANDOM, "--resume", "--json").json
    assert rows_of(tmp_path / "run" / "trials.sqlite") == before
    assert {**finished, "seconds": 0} == {**first, "seconds": 0}
    grown = amed(*RANDOM, "--evaluations", 8, "--resume", "--json").json
    assert grown["evaluations"] == 8
    assert rows_of(tmp_path / "run" / "trials.sqlite")[:6] == before


def test_a_search_of_a_version_with_early_stopping_can_be_resumed(amed, tmp_path):
    amed(*RANDOM)
    path = tmp_path / "run" / "config.json"
    for confidence, code in ((None, 0), (0.999, 2)):
        config = json.loads(path.read_text())
        config["settings"]["early_confidence"] = confidence
        path.write_text(json.dumps(config))
        answer = amed(*RANDOM, "--resume")
        assert answer.code == code
    assert "early_confidence (there 0.999" in answer.err


def test_resume_on_a_new_folder_starts(amed):
    assert amed(*RANDOM, "--resume", "--evaluations", 2).code == 0


def test_other_peoples_folders_are_left_alone(amed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for extra in ([], ["--resume"]):
        answer = amed(*RANDOM, *extra)
        assert answer.code == 2 and "thesis.tex" in answer.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    assert "is no folder" in amed(*RANDOM[:-1], "file").err
    assert amed(*RANDOM[:-1], "/dev/full/run").code == 2


def test_damaged_config(amed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    answer = amed(*RANDOM, "--resume")
    assert answer.code == 2 and "damaged" in answer.err


def test_a_second_process_is_refused(amed, tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.start({"seed": 0}, ["amed"])
        answer = amed(*RANDOM, "--resume")
    assert answer.code == 2 and "in use by another process" in answer.err


def test_full_disk_under_the_store(amed, tmp_path, monkeypatch):
    class Full:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, statement, values=()):
            if "INTO trials" in statement and len(list(self.rows())) == 3:
                raise sqlite3.OperationalError("database or disk is full")
            return self.connection.execute(statement, values)

        def rows(self):
            return self.connection.execute("SELECT number FROM trials")

        def close(self):
            self.connection.close()

    opened = TrialStore.__init__

    def open_full(self, path=None):
        opened(self, path)
        self._connection = Full(self._connection)

    with monkeypatch.context() as patch:
        patch.setattr(TrialStore, "__init__", open_full)
        answer = amed(*RANDOM)
    assert answer.code == 1 and "disk is full" in answer.err and "Finished trials are kept" in answer.err
    assert amed(*RANDOM, "--resume", "--json").json["evaluations"] == 6


@pytest.mark.parametrize("errno_name", ["ENOSPC", "EACCES"])
def test_disk_fault_while_writing_the_result(amed, monkeypatch, errno_name):
    import errno
    import os

    number = getattr(errno, errno_name)

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("amed_env.support.files.os.fsync", fail)
        answer = amed(*RANDOM)
    assert answer.code == 1 and os.strerror(number) in answer.err and "Traceback" not in answer.err


def test_an_agent_that_finds_nothing_ends_with_1(amed, tmp_path):
    (tmp_path / "cli_agents.py").write_text(
        "from amed_env import Agent\n"
        "class Wide(Agent):\n"
        "    def explore(self, session):\n"
        "        session.evaluate(session.task.workload.uniform(8))\n"
        "class Nothing(Agent):\n"
        "    def explore(self, session):\n"
        "        pass\n"
    )
    for number, name in enumerate(("Wide", "Nothing")):
        arguments = ["search", "digits-cnn", "--budget", "latency=0.5", "--evaluations", 3]
        answer = amed(*arguments, "--agent", f"cli_agents:{name}", "--out", f"run{number}")
        assert answer.code == 1
        assert "is within the budget" in answer.err and "the first answer is" in answer.err
        folder = tmp_path / f"run{number}"
        assert (folder / "pareto.png").exists() and (folder / "allocation.json").exists()
        assert json.loads((folder / "result.json").read_text())["best"] is None


def test_pins_are_kept_reported_and_part_of_the_settings(amed, tmp_path):
    pins = ["--pin", "first=8", "--pin", "classifier=8/4"]
    answer = amed(*NETWORK, *pins, "--json")
    document = answer.json
    assert "pinned: stem=8, classifier=8/4" in answer.err
    expected = {"stem": {"w": 8, "a": 8}, "classifier": {"w": 8, "a": 4}}
    assert document["pins"] == expected
    for trial in (document["best"], *document["pareto"], *document["baselines"].values()):
        assert {name: trial["allocation"]["layers"][name] for name in expected} == expected
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["pins"] == expected
    answer = amed(*NETWORK, "--resume")
    assert answer.code == 2 and "other settings: pins" in answer.err
    assert "pinned: stem=8, classifier=8/4" in amed(*NETWORK, *pins, "--resume").out


def test_wrong_pins_are_named(amed):
    answer = amed(*RANDOM, "--pin", "stm=8")
    assert answer.code == 2 and "did you mean 'stem'" in answer.err
    answer = amed(*RANDOM, "--pin", "first")
    assert answer.code == 2 and "layer=bits" in answer.err


RECIPE = "format: amed-agent/1\ndescription: two changes\nalgorithm: agents.hill_climbing:HillClimbing\ntuned_on: []\n"


def test_a_recipe_is_an_agent_and_part_of_the_settings(amed, tmp_path):
    arguments = ["search", "tabular/digits-cnn", "--agent", "mine.yaml", "--evaluations", 4, "--out", "run"]
    arguments += ["--budget", "latency=0.5"]
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("tuned_on", "tuned"))
    answer = amed(*arguments)
    assert answer.code == 2 and "mine.yaml, line 4: unknown key 'tuned'" in answer.err
    (tmp_path / "mine.yaml").write_text(RECIPE)
    assert amed(*arguments, "--json").json["agent"] == "mine"
    (tmp_path / "mine.yaml").write_text(RECIPE + "hyperparameters: {changes: 1}\n")
    answer = amed(*arguments, "--resume")
    assert answer.code == 2 and "other settings: agent_recipe" in answer.err
