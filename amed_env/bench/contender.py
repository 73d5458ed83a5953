"""Who takes part in the benchmark: what makes an agent, and what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, cast, get_args

from amed_env.agents.built_in import list_agents
from amed_env.agents.protocol import Agent
from amed_env.agents.registry import is_recipe, make_agent
from amed_env.bench.controls import CONTROL_PREFIX, make_control
from amed_env.errors import AgentError

Family = Literal["learner", "search"]


@dataclass(frozen=True)
class Description:
    """What an agent says of itself, for the header of its results.

    Attributes:
        family: `learner` or `search`.
        text: One line.
        saw: What it was tuned on; empty for nothing.
        libraries: Distributions that it uses beyond those of any search.
    """

    family: Family
    text: str
    saw: tuple[str, ...]
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Contender:
    """An agent of the benchmark.

    Attributes:
        spec: What makes it: a name, `package.module:Class`, a recipe, or a control.
        options: Options of the agent.
    """

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The spec; of a recipe `recipe/` and the file's name without its ending."""
        return f"recipe/{PurePath(self.spec).stem}" if is_recipe(self.spec) else self.spec

    @property
    def file_stem(self) -> str:
        """The name as a file name without its ending."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.") or "agent"

    def make(self) -> Agent:
        """A new agent.

        Raises:
            AmedError: If there is no such agent, or it cannot be made.
        """
        if self.spec.startswith(CONTROL_PREFIX):
            return make_control(self.spec, **self.options)
        return make_agent(self.spec, **self.options)

    def describe(self) -> Description:
        """What the agent says of itself.

        Raises:
            AmedError: If it cannot be made, or says something that is no text.
        """
        agent = self.make()
        if not (isinstance(agent.saw, tuple | list) and all(isinstance(text, str) for text in agent.saw)):
            raise AgentError(f"agent {self.name!r}: saw is {agent.saw!r}; give a tuple of texts, () for nothing.")
        if not isinstance(agent.description, str):
            raise AgentError(f"agent {self.name!r}: description is {agent.description!r}; give a text.")
        if agent.family not in get_args(Family):
            raise AgentError(f"agent {self.name!r}: family is {agent.family!r}; it is 'learner' or 'search'.")
        recipe = agent.recipe or {}
        listed = list_agents().get(self.spec)
        own_text = recipe.get("description") or agent.description or type(agent).__name__
        saw = dict.fromkeys((*agent.saw, *recipe.get("tuned_on", ())))
        return Description(
            family=cast(Family, agent.family),
            text=own_text if listed is None else listed.description,
            saw=tuple(saw),
            libraries=tuple(agent.libraries),
        )
