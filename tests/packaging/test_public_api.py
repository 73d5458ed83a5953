"""The public API is what `public_api.txt` says: a change of it is made on purpose, and seen in the change's diff.

To accept a change, write the file anew: `python tests/packaging/test_public_api.py`.
"""

import difflib
import importlib
import inspect
from pathlib import Path

import gymnasium

from amed_env.agents.registry import AGENTS
from amed_env.hardware.registry import DEVICES
from amed_env.tasks.catalogue import TASKS

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = ("amed_env", "amed_env.agents", "amed_env.envs", "amed_env.hardware", "amed_env.testing")


def public_api():
    """The public names with their parameters and the methods of public classes, one a line."""
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        for public in sorted(getattr(module, "__all__", None) or defined_in(module)):
            lines += described(f"{name}.{public}", getattr(module, public))
    lines += [f"environment {spec}" for spec in sorted(gymnasium.registry) if spec.startswith("AMED/")]
    return [*lines, *sorted(f"entry-point group {registry.group}" for registry in (AGENTS, DEVICES, TASKS))]


def defined_in(module):
    return [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]


def described(name, value):
    if inspect.isclass(value):
        members = [
            (member, found)
            for base in value.__mro__
            if base.__module__.startswith("amed_env")
            for member, found in vars(base).items()
            if not member.startswith("_")
        ]
        shown = sorted({member: signature_of(found) for member, found in reversed(members)}.items())
        return [f"class {name}{signature_of(value)}", *(f"    {member}{parameters}" for member, parameters in shown)]
    if callable(value):
        return [f"{name}{signature_of(value)}"]
    return [f"{name} = {value!r}" if isinstance(value, str) else f"{name}: {type(value).__name__}"]


def signature_of(value):
    value = getattr(value, "__func__", value)
    if not callable(value):
        return ""
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return ""
    return f"({', '.join(name for name in parameters if name not in ('self', 'cls'))})"


def test_the_public_api_is_as_it_was():
    before = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    changed = "\n".join(difflib.unified_diff(before, public_api(), "public_api.txt", "now", lineterm="", n=0))
    assert not changed, f"the public API has changed; see the head of this file:\n{changed}"


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
