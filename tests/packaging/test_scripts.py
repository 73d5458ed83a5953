"""Scripts beside the package use what the package has: nothing else runs them as often as the package changes."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path for folder in ("benchmarks", "benchmarks/peers", "docs/examples") for path in (ROOT / folder).glob("*.py")
)


def missing_names(source):
    """What a script imports from the package, and the package does not have."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("amed_env", "agents"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    try:
                        importlib.import_module(f"{node.module}.{alias.name}")
                    except ImportError:
                        missing.append(f"{node.module}.{alias.name}")
    return missing


def test_there_are_scripts():
    assert len(SCRIPTS) > 20


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_there_is(path):
    assert missing_names(path.read_text(encoding="utf-8")) == []


def test_a_name_that_is_gone_is_found():
    source = "from amed_env.support.threads import torch_threads, available_cores\nfrom amed_env import support"
    assert missing_names(source) == ["amed_env.support.threads.available_cores"]
