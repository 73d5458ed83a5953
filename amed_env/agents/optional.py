"""Agents whose library is an extra."""

from __future__ import annotations

import importlib
from typing import Any

from amed_env.errors import AgentError

EXTRA = "search"
"""The extra of this distribution that brings them."""


def import_optional(module: str, agent: str, distribution: str) -> Any:
    """Import a module of an optional library.

    Raises:
        AgentError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AgentError(
            f"agent {agent!r} needs {distribution}, which cannot be imported ({error}); "
            f"install it with: pip install 'amed-env[{EXTRA}]'."
        ) from error
