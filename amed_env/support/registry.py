"""Names to objects, with plug-ins from entry points: shared by devices, agents and tasks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from amed_env.errors import InputError, PluginError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to objects that may be loaded lazily.

    Objects come from `register`, or from other installed distributions through an entry-point group. A plug-in is
    imported only when it is asked for, and one that fails to import never hides the others.

    Args:
        kind: What it holds, in the singular, for messages (`"device"`).
        group: The entry-point group that is searched, or None.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind, self.group = kind, group
        self._objects: dict[str, T] = {}

    def register(self, name: str, value: T | None = None) -> Any:
        """Add an object under a name; without a value, return a decorator that does.

        Raises:
            InputError: If the name is already taken by another object, also by one of the same name in another module.
        """
        if value is None:

            def decorator(decorated: T) -> T:
                self.register(name, decorated)
                return decorated

            return decorator
        known = self._objects.get(name)
        # A class is replaced by its own newer self when a module is reloaded (notebooks, tests).
        if known is not None and _definition(known) != _definition(value):
            raise InputError(f"a {self.kind} named {name!r} is registered already; choose another name.")
        self._objects[name] = value
        return value

    def unregister(self, name: str) -> None:
        """Forget a name; nothing happens if it is not there."""
        self._objects.pop(name, None)

    def _entry_points(self) -> dict[str, EntryPoint]:
        import importlib.metadata  # 20 ms that `amed --help` does without

        if self.group is None:
            return {}
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}

    def names(self) -> list[str]:
        """All names, sorted; nothing is imported for it."""
        return sorted({*self._objects, *self._entry_points()})

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self._entry_points()

    def get(self, name: str) -> T:
        """The object of a name.

        Raises:
            UnknownNameError: If there is none; the message has the nearest names.
            PluginError: If the plug-in that provides it cannot be imported.
        """
        if name in self._objects:
            return self._objects[name]
        point = self._entry_points().get(name)
        if point is None:
            raise UnknownNameError(self.kind, name, self.names())
        try:
            return point.load()  # type: ignore[no-any-return]
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"the plug-in {self.kind} {name!r} ({point.value}) cannot be imported: "
                f"{type(error).__name__}: {error}. Repair or uninstall the distribution that provides it."
            ) from error


def _definition(value: object) -> object:
    """What tells classes and functions from others of the same name; any other object is itself."""
    name = getattr(value, "__qualname__", None)
    return value if name is None else (getattr(value, "__module__", None), name)


def import_object(path: str, kind: str) -> Any:
    """Import `package.module:attribute`, with the current directory on the path, as `python -m` would.

    Args:
        path: The import path.
        kind: What it should be, for messages (`"agent class"`).

    Raises:
        InputError: If the path is malformed, or module or attribute do not exist.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise InputError(f"{path!r} is no import path of a {kind}; write it as package.module:name.")
    if module_name.endswith(".py"):
        module = ".".join(Path(module_name).with_suffix("").parts)
        raise InputError(
            f"{path!r} names a file; write it as {module.strip('./')}:{attribute}, as Python imports it from the "
            "current folder."
        )
    # Programs that are installed as scripts do not have the current folder on the path.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"cannot import {module_name!r} for the {kind} {path!r}: {type(error).__name__}: {error}."
        ) from error
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            names = [name for name in dir(value) if not name.startswith("_")]
            raise UnknownNameError(f"{kind} in {module_name}", attribute, names) from None
        except (Exception, SystemExit) as error:
            raise InputError(f"the {kind} {path!r} cannot be got: {type(error).__name__}: {error}.") from error
    return value


def call_into_plugin(what: str, function: Callable[[], T]) -> T:
    """Run code of a plug-in and turn whatever it raises into a `PluginError` that names it."""
    try:
        return function()
    except Exception as error:
        raise PluginError(f"{what} failed: {type(error).__name__}: {error}.") from error
