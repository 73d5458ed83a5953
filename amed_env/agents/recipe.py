"""Recipes: an agent and its hyperparameters as a YAML file in format `amed-agent/1`.

`amed search TASK --agent agents/dqn.yaml` and `make_agent("agents/dqn.yaml")` take the path of one. Messages name file,
line and key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from amed_env.errors import AgentError, DeviceError
from amed_env.hardware.files.yaml_faults import validated
from amed_env.hardware.files.yaml_lines import YamlDocument
from amed_env.support.files import read_limited

_LARGEST_MIB = 1
RECIPE_SUFFIXES = (".yaml", ".yml")
"""Endings of the names of recipes."""

Text = Annotated[str, Field(strict=True, min_length=1)]


class EnvironmentSection(BaseModel):
    """How a learner meets the environment; what is left out keeps the agent's own value.

    Attributes:
        reward: Reward of the true environment: `shaped` or `terminal`.
        masks: Whether forbidden actions are masked; otherwise the environment replaces them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: Literal["shaped", "terminal"] | None = None
    masks: Annotated[bool, Field(strict=True)] | None = None


class Recipe(BaseModel):
    """A recipe.

    Attributes:
        format: `amed-agent/1`.
        description: One line for people.
        algorithm: The name of a built-in agent (`dqn`), or the import path of a class: an `Agent`, or an algorithm that
            follows stable-baselines3 (`stable_baselines3:DQN`).
        policy: Name of the policy, for learners that have several (`MlpPolicy`).
        warm_start_steps: Environment steps of practice on the predicted reward, for learners that do.
        hyperparameters: Arguments of the algorithm's constructor, or options of the agent.
        environment: How a learner meets the environment.
        tuned_on: The development tasks that the values were chosen on; empty where they come from elsewhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-agent/1"]
    description: Text
    algorithm: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*(:[A-Za-z_][A-Za-z0-9_]*)?$")]
    policy: Text | None = None
    warm_start_steps: Annotated[int, Field(strict=True, ge=0)] | None = None
    hyperparameters: dict[Text, Any] = {}
    environment: EnvironmentSection = EnvironmentSection()
    tuned_on: list[Text]

    def options(self) -> dict[str, Any]:
        """Everything but the algorithm as options of an agent's constructor."""
        named = {"policy": self.policy, "warm_start_steps": self.warm_start_steps, **self.environment.model_dump()}
        return {**self.hyperparameters, **{key: value for key, value in named.items() if value is not None}}


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Read a recipe from YAML text.

    Args:
        text: The YAML source.
        where: File name or other origin, for messages.

    Raises:
        AgentError: If it is no YAML, or a key is missing, unknown, repeated, of the wrong type or out of range; every
            fault is named with its line.
    """
    try:
        document = YamlDocument(text, where, "recipe")
        recipe = validated(Recipe, document)
    except DeviceError as error:
        raise AgentError(str(error)) from error
    for key in sorted({"policy", "warm_start_steps", "reward", "masks"} & set(recipe.hyperparameters)):
        section = "" if key in Recipe.model_fields else "environment."
        line = document.line(("hyperparameters", key))
        raise AgentError(f"{where}, line {line}: hyperparameters.{key} is no hyperparameter; write {section}{key}.")
    return recipe


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a file.

    Raises:
        AgentError: If the file cannot be read or is malformed; the message has file and line.
    """
    try:
        text = read_limited(path, _LARGEST_MIB, pipes=True).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise AgentError(f"cannot read the recipe {path}: {error}.") from error
    return parse_recipe(text, where=str(path))
