"""Options of an agent as a typed model: what is unknown is refused with the nearest names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from amed_env.agents.protocol import check_options
from amed_env.errors import AgentError

M = TypeVar("M", bound=BaseModel)


def parse_agent_options(agent: str, model: type[M], given: Mapping[str, Any]) -> M:
    """The options of an agent as an instance of their model.

    Args:
        agent: The agent's name, for messages.
        model: The model; its fields are the options.
        given: Option to value.

    Raises:
        UnknownNameError: For the first unknown option; the message has the nearest names.
        AgentError: If values are of the wrong type or out of range; all of them are named.
    """
    check_options(agent, given, model.model_fields)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        faults = [
            f"option {'.'.join(map(str, fault['loc'])) or 'values'} is {fault['input']!r}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise AgentError(f"agent {agent!r}: {'; '.join(faults)}.") from error
