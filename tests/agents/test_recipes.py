"""Recipes: what they may say, what is refused and how, and that the recipes that ship are good."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_task import formula_task
from stable_baselines3 import DQN, PPO

from amed_env.agents import make_agent
from amed_env.agents.recipe import parse_recipe
from amed_env.errors import AgentError, UnknownNameError

ZOO = Path(__file__).parents[2] / "agents"
SHIPPED = sorted(ZOO.glob("**/*.yaml"))

GOOD = """\
format: amed-agent/1
description: a test
algorithm: dqn
warm_start_steps: 0
hyperparameters:
  learning_rate: 0.01
  learning_starts: 8
environment:
  masks: false
tuned_on: []
"""


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_recipe_makes_the_agent_that_it_describes(tmp_path):
    agent = make_agent(write(tmp_path, GOOD))
    assert agent.name == "mine" and agent.recipe["algorithm"] == "dqn"
    assert not agent.masks and agent.warm_start_steps == 0
    result = agent.search(formula_task(3), 8)
    assert result.agent == "mine" and type(agent.model) is DQN
    assert agent.model.lr_schedule(1) == 0.01 and agent.model.learning_starts == 8


def test_options_beside_a_recipe_take_precedence(tmp_path):
    agent = make_agent(write(tmp_path, GOOD), learning_rate=0.5, masks=True)
    assert agent.hyperparameters["learning_rate"] == 0.5 and agent.masks


def test_an_algorithm_by_import_path_has_the_defaults_of_the_library(tmp_path):
    text = GOOD.replace("dqn", "stable_baselines3:A2C").replace("\n  learning_starts: 8", "")
    agent = make_agent(write(tmp_path, text))
    agent.search(formula_task(3), 5)
    assert agent.model.n_steps == 5 and agent.model.lr_schedule(1) == 0.01


def test_an_own_agent_by_import_path_gets_its_options(tmp_path):
    text = GOOD.replace("dqn", "agents.hill_climbing:HillClimbing").replace("environment:\n  masks: false\n", "")
    text = text.replace("warm_start_steps: 0\n", "").replace("learning_rate: 0.01\n  learning_starts: 8", "changes: 3")
    assert make_agent(write(tmp_path, text)).changes == 3


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("warm_start_steps: 0", "warm_start_step: 0"), 4, "unknown key 'warm_start_step'.*'warm_start_steps'"),
        (("masks: false", "maks: false"), 9, "unknown key 'environment.maks'.*'masks'"),
        (("masks: false", "masks: 3"), 9, "environment.masks"),
        (("warm_start_steps: 0", "warm_start_steps: -1"), 4, "warm_start_steps.*greater than or equal to 0"),
        (("amed-agent/1", "amed-agent/2"), 1, "format.*amed-agent/1"),
        (("algorithm: dqn", "algorithm: 'import os'"), 3, "algorithm"),
        (("algorithm: dqn", "algorithm: dqn\nalgorithm: ppo"), 4, "duplicates line 3"),
        (("  learning_starts: 8", "  masks: true"), 7, "write environment.masks"),
        (("  learning_starts: 8", "  policy: MlpPolicy"), 7, "write policy"),
        (("tuned_on: []", "tuned_on: yes"), 10, "tuned_on"),
    ],
)
def test_faults_are_named_with_file_line_and_key(tmp_path, change, line, words):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(AgentError, match=rf"mine.yaml, line {line}: .*{words}"):
        make_agent(path)


def test_what_a_recipe_asks_for_must_exist(tmp_path):
    with pytest.raises(AgentError, match=r"mine.yaml: .*'learning_rat'.*'learning_rate'"):
        make_agent(write(tmp_path, GOOD.replace("learning_rate", "learning_rat")))
    with pytest.raises(AgentError, match=r"mine.yaml: unknown agent 'dqm'"):
        make_agent(write(tmp_path, GOOD.replace("dqn", "dqm")))
    with pytest.raises(AgentError, match=r"mine.yaml: .*greedy"):
        make_agent(write(tmp_path, GOOD.replace("dqn", "greedy")))
    with pytest.raises(AgentError, match=r"cannot read the recipe .*absent.yml"):
        make_agent(str(tmp_path / "absent.yml"))
    with pytest.raises(AgentError, match=r"tuned_on.*missing"):
        make_agent(write(tmp_path, GOOD.replace("tuned_on: []\n", "")))


@pytest.mark.parametrize(
    ("agent", "key", "value"),
    [
        ("dqn", "batch_size", "many"),
        ("ppo", "gamma", "x"),
        ("ppo", "gamma", 1.5),
        ("ppo", "n_epochs", "x"),
        ("ppo", "n_epochs", 2.5),
        ("sac", "gradient_steps", "x"),
        ("maskable-ppo", "ent_coef", True),
        ("a2c", "policy_kwargs", [1]),
        ("policy", "batch", "abc"),
        ("policy", "learning_rate", "fast"),
        ("milp", "proxy", 5),
        ("stable_baselines3:DQN", "train_freq", "often"),
    ],
)
def test_values_of_the_wrong_type_are_refused_before_training(tmp_path, agent, key, value):
    text = GOOD.replace("dqn", agent).replace("environment:\n  masks: false\n", "").replace("warm_start_steps: 0\n", "")
    text = text.replace("learning_rate: 0.01\n  learning_starts: 8", f"{key}: {value}")
    with pytest.raises(AgentError, match=rf"mine.yaml: .*{key} is ") as refused:
        make_agent(write(tmp_path, text))
    assert str(value) in str(refused.value)
    with pytest.raises(AgentError, match=rf"{key} is "):
        make_agent(agent, **{key: value})


def test_values_that_the_library_allows_are_taken():
    options = {"learning_rate": lambda progress: 0.1 * progress, "ent_coef": "auto_0.1", "train_freq": [4, "step"]}
    assert make_agent("sac", **options).hyperparameters["ent_coef"] == "auto_0.1"
    assert make_agent("dqn", max_grad_norm=5, tau=1).hyperparameters["tau"] == 1
    assert make_agent("ppo", clip_range_vf=None, target_kl=None, policy_kwargs={"net_arch": [8]})


@pytest.mark.parametrize("algorithm", ["stable_baselines3:SAC", "sb3_contrib:TQC"])
@pytest.mark.parametrize("separate", [False, True])
def test_algorithms_of_continuous_actions_get_them(tmp_path, algorithm, separate):
    agent = make_agent(
        write(tmp_path, GOOD.replace("dqn", algorithm).replace("learning_starts: 8", "learning_starts: 4"))
    )
    result = agent.search(formula_task(3, {"latency": 0.6}, separate=separate), 6)
    assert result.evaluations == 6 and all(result.task.feasible(trial.costs) for trial in result.trials)


@pytest.mark.parametrize(
    ("algorithm", "policy", "message"),
    [
        ("sb3_contrib:ARS", "MlpPolicy", "neither an on-policy nor an off-policy"),
        ("sb3_contrib:RecurrentPPO", "MlpPolicy", "RecurrentPPO has MlpLstmPolicy"),
        ("stable_baselines3:PPO", "MlpPolcy", "PPO has MlpPolicy"),
    ],
)
def test_what_cannot_learn_here_is_refused_before_training(algorithm, policy, message):
    with pytest.raises(AgentError, match=message):
        make_agent(algorithm, policy=policy)


class HandsOn(PPO):
    """A learner with a number of its own, which hands on whatever else it is given."""

    def __init__(self, *arguments, own_number=0.5, **keywords):
        super().__init__(*arguments, **keywords)
        self.own_number = own_number


def test_what_a_learner_hands_on_are_hyperparameters_too():
    agent = make_agent(HandsOn, own_number=0.25, learning_rate=0.01, n_steps=8)
    agent.search(formula_task(3), 4)
    assert agent.model.own_number == 0.25 and agent.model.lr_schedule(1) == 0.01
    with pytest.raises(UnknownNameError, match="did you mean 'learning_rate'") as caught:
        make_agent(HandsOn, learning_rat=0.01)
    assert "keywords" not in str(caught.value) and "arguments" not in str(caught.value)


def test_numbers_that_yaml_takes_for_text_are_named(tmp_path):
    with pytest.raises(AgentError, match=r"learning_rate is '3e-4'.*YAML takes this for text, write 0\.0003\."):
        make_agent(write(tmp_path, GOOD.replace("0.01", "3e-4")))


def test_no_python_objects_are_made_from_a_recipe(tmp_path):
    with pytest.raises(AgentError, match=r"mine.yaml, line 7"):
        make_agent(write(tmp_path, GOOD.replace("learning_starts: 8", "x: !!python/object/apply:os.getcwd []")))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner)
                    | st.dictionaries(st.text(max_size=8), inner), max_leaves=6))  # fmt: skip
def test_whatever_is_no_recipe_is_refused_with_one_kind_of_error(data):
    with pytest.raises(AgentError, match=r"anything.yaml"):
        parse_recipe(yaml.safe_dump(data), "anything.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ZOO)))
def test_shipped_recipes_make_agents_that_say_what_they_were_tuned_on(path):
    agent = make_agent(str(path))
    budgets = (0.3, 0.45, 0.6, 0.8)
    held_out = [f"{device} latency={budget}" for device in ("bitfusion", "bit-serial", "mpic") for budget in budgets]
    assert not any(cell in used for used in agent.recipe["tuned_on"] for cell in held_out)
    assert "defaults" not in path.parts or not agent.recipe["tuned_on"]


def test_every_learner_has_a_recipe():
    from amed_env.agents import list_agents

    learners = {name for name, info in list_agents().items() if info.source == "built in" and info.family == "learner"}
    assert learners <= {path.stem for path in ZOO.glob("*.yaml")}
