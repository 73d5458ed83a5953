"""Who takes part in the benchmark: what makes an agent, what it says of itself, and the digest of its code."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any, Literal, cast, get_args

from amed_env.agents.built_in import list_agents
from amed_env.agents.protocol import Agent
from amed_env.agents.recipe import load_recipe
from amed_env.agents.registry import is_recipe, make_agent
from amed_env.bench.controls import CONTROL_PREFIX, make_control
from amed_env.bench.result_file import one_line
from amed_env.errors import AgentError

Family = Literal["learner", "search"]
LIBRARIES = {"site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"}
"""Folders, of which one is in the path of code that is installed."""


@dataclass(frozen=True)
class Description:
    """What an agent says of itself, as it stands in the header of its results.

    Attributes:
        family: `learner` or `search`.
        text: One line.
        saw: What it was tuned on; empty for nothing.
        recipe: SHA-256 (hex) of its recipe or its module, or None; see `recipe_digest`.
    """

    family: Family
    text: str
    saw: tuple[str, ...]
    recipe: str | None


@dataclass(frozen=True)
class Contender:
    """An agent of the benchmark.

    Attributes:
        spec: What makes it: a name, `package.module:Class`, a recipe, or a control.
        options: Options of the agent.
        recipe: SHA-256 (hex) of the contents that a recipe must have, if that matters; see `recipe_digest`.
    """

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None

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
            AmedError: If there is no such agent, it cannot be made, or has a way of its own to be run.
        """
        control = self.spec.startswith(CONTROL_PREFIX)
        agent = make_control(self.spec, **self.options) if control else make_agent(self.spec, **self.options)
        if type(agent).search is not Agent.search:
            raise AgentError(
                f"agent {self.name!r} has a `search` of its own, which the benchmark cannot count; write `explore`, "
                "which `amed_env.Agent.search` calls."
            )
        return agent

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
        listed = list_agents().get(self.spec)
        recipe = getattr(agent, "recipe", None) or {}
        own = recipe.get("description") or agent.description or type(agent).__name__
        saw = (*agent.saw, *recipe.get("tuned_on", ()))
        return Description(
            family=cast(Family, agent.family),
            text=one_line(own if listed is None else listed.description),
            saw=tuple(dict.fromkeys(map(one_line, saw))),
            recipe=recipe_digest(self.spec),
        )

    def require_recipe(self) -> None:
        """Check that the recipe says what it has to.

        Raises:
            AgentError: If it says something else now, or cannot be read.
        """
        if self.recipe is not None and self.recipe != recipe_digest(self.spec):
            raise AgentError(f"{self.spec} has other contents than when the runs began.")


def recipe_digest(spec: str) -> str | None:
    """SHA-256 (hex) of what makes an agent beside this package: its recipe, or the module of its class.

    Of a recipe what it says counts, however its file is laid out; of an import path the file of the module, unless it
    is installed. None for every other agent.

    Raises:
        AgentError: If the recipe cannot be read or is malformed.
    """
    if not is_recipe(spec):
        return _module_digest(spec.partition(":")[0]) if ":" in spec else None
    contents = load_recipe(spec).model_dump()
    return sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()


def _module_digest(name: str) -> str | None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # making the agent says what is wrong
        return None
    origin = None if found is None or not found.has_location else found.origin
    if origin is None or LIBRARIES & set(Path(origin).parts) or not Path(origin).is_file():
        return None
    return sha256(Path(origin).read_bytes()).hexdigest()
