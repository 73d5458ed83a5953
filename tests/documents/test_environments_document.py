"""docs/environments.md is true: its Python blocks run as printed, and its tables are those of the code."""

import inspect
import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from small_task import formula_task
from warm import run_warm

import amed_env
from amed_env.envs import LAYER_WISE, ONE_SHOT, RANDOM_WALK
from amed_env.problem.objective import FAULT_REWARD, VIOLATION_PENALTY, potential
from amed_env.problem.quality_score import QualityScore
from amed_env.problem.score import TOP_1
from amed_env.tasks.ground_truth import regret_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/environments.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
NAMES = ["layer-wise", "others", "stable-baselines3", "make-vec", "vec-env", "ground-truth", "agent"]
WORDS = set(re.findall(r"`(\w+)`", DOCUMENT))
TABULAR = ("tabular/digits-cnn", "tabular/cifar10-resnet8", "tabular/kws-dscnn")


def section(start):
    return DOCUMENT[DOCUMENT.index(f"\n## {start}") :].partition("\n## ")[2].partition("\n## ")[0]


def columns(text, layers, precisions):
    """The first column of a table, with L and P as numbers."""
    found = re.findall(r"^\| ((?:\d+|[LP])(?: [LP])*) \|", text, flags=re.MULTILINE)
    numbers = {"L": layers, "P": precisions}
    return [int(np.prod([numbers.get(word) or int(word) for word in cell.split()])) for cell in found]


def test_there_is_something_to_run():
    assert len(PYTHON) == len(NAMES)


@pytest.mark.parametrize("block", PYTHON, ids=NAMES)
def test_python_blocks_run_as_printed(block, tmp_path):
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    done = run_warm(["block.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_agent_of_the_document_is_counted_and_ends_by_itself(tmp_path, monkeypatch):
    (tmp_path / "reinforce_of_the_document.py").write_text(PYTHON[-1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    task = amed_env.make_task("tabular/digits-cnn", device="bitfusion", budget={"latency": 0.5})
    agent = amed_env.make_agent("reinforce_of_the_document:Reinforce")
    result, again = (agent.search(task, evaluations=20, seed=3) for _ in range(2))
    assert result.evaluations == len(result.trials) == 20 and not result.faults
    assert [trial.allocation for trial in result.trials] == [trial.allocation for trial in again.trials]
    assert result.best is not None and 0 <= amed_env.regret(result) < 5
    body = inspect.getsource(sys.modules["reinforce_of_the_document"].Reinforce)
    assert "measure=session.evaluate" in body


@pytest.mark.parametrize("options", [{"task": name} for name in TABULAR] + [{"separate": True, "bits": (2, 4, 8)}])
def test_observations_have_the_columns_of_the_tables(options):
    for name, text in ((LAYER_WISE, section("`AMED/LayerWise")), (RANDOM_WALK, section("`AMED/RandomWalk"))):
        env = gym.make(name, **options).unwrapped
        layers, precisions = env.task.choosable.shape
        size = 40 + 8 * precisions if name == LAYER_WISE else 3 * layers * precisions + 20
        assert sum(columns(text, layers, precisions)) == size == env.observation_space.shape[0]
        if name == LAYER_WISE:
            assert env.observer.mask_columns == slice(size - 3 - precisions, size - 3)
    assert gym.make(ONE_SHOT, **options).observation_space.shape == (8,)


def test_features_stand_where_the_table_says():
    env = gym.make(LAYER_WISE, task="tabular/digits-cnn", budget={"latency": 0.6, "memory": 0.7}).unwrapped
    task = env.task
    ends = np.cumsum(columns(section("`AMED/LayerWise"), *task.choosable.shape))
    env.reset()
    observation, *_ = env.step(2)
    parts = np.split(observation, ends[:-1])
    layer, least = task.workload.layers[1], env.rest[:, 1]
    used = env.cost_arrays[:, 0, 2]
    assert layer.kind == "conv" and parts[0].tolist() == [1, 0, 0, 0]
    macs = [each.macs for each in task.workload.layers]
    assert parts[2][0] == pytest.approx(layer.macs / max(macs))
    assert parts[3] == pytest.approx([max(layer.kernel) / 7, max(layer.stride) / 4])
    assert parts[6] == pytest.approx(task.predicted_loss[1] / task.predicted_loss[1].max())
    assert parts[7].reshape(4, 4)[0] == pytest.approx(task.costs["latency_ms"][1] / task.costs["latency_ms"][1].max())
    assert parts[9].tolist() == [1, 0, 1, 0] and parts[10] == pytest.approx([0.6, 1, 0.7, 1])
    assert parts[11] == pytest.approx(used / env.reference)
    limits = np.array([0.6, np.nan, 0.7, np.nan]) * env.reference
    slack = (limits - used - least)[[0, 2]]
    assert parts[12][[0, 2]] == pytest.approx(slack / env.reference[[0, 2]])
    dearest = env.cost_arrays[:, 1:].max(axis=2).sum(axis=1)
    assert parts[13][[0, 2]] == pytest.approx(np.clip(slack / (dearest - least)[[0, 2]], 0, 1))
    assert parts[14].tolist() == [0, 0, 1, 0] and parts[15].astype(bool).tolist() == env.action_masks().tolist()
    assert parts[16][:2] == pytest.approx([1 / 8, 4 / 8])


def test_rewards_are_those_of_the_formulas():
    task = amed_env.make_task("tabular/digits-cnn", budget={"latency": 0.6}, score="metric")
    for gamma in (1.0, 0.9):
        env = gym.make(LAYER_WISE, task=task, gamma=gamma)
        env.reset()
        loss, discounted = 0.0, 0.0
        for layer in range(8):
            before = potential(loss)
            _, reward, terminated, _, info = env.step(1)
            loss += task.predicted_loss[layer, info["action_taken"]]
            final = TOP_1.gain(info["accuracy"], task.float_quality.accuracy) if terminated else 0.0
            assert reward == pytest.approx(final + gamma * (0.0 if terminated else potential(loss)) - before)
            discounted += gamma**layer * reward
        assert discounted == pytest.approx(gamma**7 * info["score"])
    walk = gym.make(RANDOM_WALK, task=task)
    walk.reset()
    first, gained, terminated = walk.unwrapped._value(walk.unwrapped._trial_here), 0.0, False
    while not terminated:
        _, reward, terminated, _, info = walk.step(17)
        gained += reward
    over = max(0.0, info["costs"]["latency_ms"] / task.limits["latency_ms"] - 1)
    assert gained == pytest.approx(-np.log10(info["zeta"]) - VIOLATION_PENALTY * over - first)
    ratio = info["costs"]["latency_ms"] / task.reference_cost.metrics["latency_ms"]
    assert info["zeta"] == pytest.approx(info["loss"] + 0.1 * ratio + 1e-4)
    stated = re.search(r"`quality=(\{.*?\})`", DOCUMENT).group(1)
    assert QualityScore.of(eval(stated)) == QualityScore()


@pytest.mark.parametrize("name", [LAYER_WISE, ONE_SHOT, RANDOM_WALK])
def test_faults_and_budgets_are_as_described(name):
    task = formula_task(4, {"latency": 0.6, "memory": 0.9})
    narrow = task.workload.uniform(2)
    task.evaluator.fail_on = {narrow}
    env = gym.make(name, task=task)
    assert set(env.reset()[1]["limits"]) == {"latency_ms", "weight_kib"}
    _, info = env.reset(options={"budget": 0.8, **({"start": narrow} if name == RANDOM_WALK else {})})
    assert set(info["limits"]) == {"latency_ms"}  # the first budget alone
    for _ in range(4 if name == LAYER_WISE else 1):
        _, reward, terminated, truncated, info = env.step([0] * 4 if name == ONE_SHOT else 0)
    assert truncated and not terminated and reward == FAULT_REWARD == -5 and "NaN" in info["fault"]
    assert set(info) <= {"fault", "repaired", "action_clamped", "action_taken"}


@pytest.mark.parametrize("name", [LAYER_WISE, ONE_SHOT, RANDOM_WALK])
def test_every_argument_and_every_piece_of_information_is_described(name):
    env = gym.make(name, task="tabular/digits-cnn")
    assert set(inspect.signature(type(env.unwrapped).__init__).parameters) - {"self"} <= WORDS
    _, info = env.reset(seed=0)
    keys, terminated = set(info), False
    while not terminated:
        _, _, terminated, _, info = env.step([0] * 8 if name == ONE_SHOT else 0)
        keys |= set(info)
    assert keys | set(info["costs"]) - {"compute_cycles", "memory_cycles"} <= WORDS


def test_the_tasks_are_those_of_the_table():
    for name in TABULAR:
        task = amed_env.make_task(name, budget={"memory": 0.5})
        table = task.evaluator.table
        row = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}`"))
        _, _, layers, widths, rows, samples, _ = (cell.strip() for cell in row.split("|"))
        assert int(layers.partition(" ")[0]) == len(task.workload) and widths == ", ".join(map(str, task.bits))
        assert int(rows.replace(",", "")) == len(table) == len(task.bits) ** len(task.workload)
        assert samples == f"{table.float_quality['search'].samples:,} / {table.float_quality['test'].samples:,}"
        assert regret_of(task, amed_env.optimum(task).allocation) == 0.0
