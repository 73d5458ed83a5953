"""All that decides about what a network computes, as a digest: equal ones have equal programs.

A module's state, its hooks and the code that runs are followed wherever they lead: methods, functions, closures, and
the globals that code names. Installed libraries are known by their versions, and what was put into them counts. What
cannot be followed raises `UnknowableError`; such a network is captured every time.
"""

from __future__ import annotations

import builtins
import collections
import dis
import enum
import functools
import hashlib
import logging
import os
import re
import sys
import sysconfig
import types
import typing
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules import module as torch_module

_SCALARS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_CONSTANTS = (torch.dtype, torch.device, torch.memory_format, torch.layout, range, slice)
_TENSORS = (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))
_TYPING = (types.GenericAlias, types.UnionType, typing.TypeVar)
_WRAPPERS = (staticmethod, classmethod)
_STATIC_CODE = 1 << 9
"""Flag of classes that were made while Python runs, and not compiled."""
_DESCRIBING = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate_func__"),
    *("__annotations_cache__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__"),
    *(
        "__type_params__",
        "__abstractmethods__",
        "_abc_impl",
        "__slotnames__",
        "__dataclass_fields__",
        "__dataclass_params__",
    ),
}
"""Members of a class that tell about it and do nothing."""
_HOOKS = {name for name in vars(nn.Module()) if "hook" in name} | {"_non_persistent_buffers_set"}
"""Attributes of a module that no forward pass reads; the hooks that it does call are looked at by themselves."""
_UNKNOWABLE_GLOBALS = {"globals", "locals", "eval", "exec", "__import__", "open"}
_UNKNOWABLE_NAMES = {"environ", "getenv", "import_module"}
LARGEST_BYTES = 2**29
"""Of the tensors that are looked at, all together."""
LARGEST_COUNT = 1_000_000
"""Of the values that are looked at: about a second."""
_LIBRARIES = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
)


class UnknowableError(Exception):
    """Something of a network cannot be told by its value."""


def identity(network: nn.Module, *arguments: Any) -> str:
    """A digest (hex) of what a network computes when it is called.

    Args:
        network: The network.
        *arguments: What else must be equal.

    Raises:
        UnknowableError: If something is not told by its value, such as an object of compiled code.
    """
    if any(isinstance(child, fx.GraphModule | torch.jit.ScriptModule) for child in network.modules()):
        raise UnknowableError("a program in it")
    walk = _Walk()
    try:
        walk.add(_settings(), network, arguments)
    except RecursionError as error:
        raise UnknowableError("a nesting that is too deep") from error
    return walk.digest.hexdigest()


def _settings() -> list[Any]:
    """What torch lets a whole process choose, as far as it can change what runs."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise UnknowableError("a mode of torch that is on")
    hooks = [value for name, value in vars(torch_module).items() if re.fullmatch(r"_global_\w*hooks\w*", name)]
    autocast = [torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")]
    capability = torch.backends.cpu.get_cpu_capability()  # constants may differ in their last bits
    return [sys.version, str(torch.__version__), capability, torch.get_default_dtype(), autocast, hooks]


@functools.cache
def _is_library_file(file: str) -> bool:
    return file.startswith("<frozen ") or os.path.realpath(file).startswith(_LIBRARIES)


@functools.cache
def _library(name: str) -> str | None:
    """What an installed library that has a module of this name is known by, or None for code that may change."""
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        return package
    top = sys.modules.get(package)
    version = getattr(top, "__version__", None)
    if version is None or not _is_library_file(getattr(top, "__file__", None) or ""):
        return None
    return f"{package} {version}"


def _found(name: Any, path: str) -> Any:
    """What stands at a path in a module, or None."""
    found: Any = sys.modules.get(name)
    for part in path.split("."):
        found = None if found is None else vars(found).get(part) if hasattr(found, "__dict__") else None
    return found.__func__ if isinstance(found, _WRAPPERS) else found


def _library_of(value: Any) -> str | None:
    """The installed library that defines a class or function by its own name, or None."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or _found(module, value.__qualname__) is not value:
        return None
    return _library(module)


def _is_of_library(function: types.FunctionType) -> bool:
    """Whether an installed library has defined a function where it stands."""
    return _is_library_file(function.__code__.co_filename) and _library_of(function) is not None


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    """A code and all that is defined inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


class _Walk:
    """Adds values to a digest, each object once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._bytes = self._count = 0
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no number is given to two objects

    def add(self, *values: Any) -> None:
        """Add values in order."""
        for value in values:
            self._add(value)

    def _write(self, *texts: Any) -> None:
        for text in texts:
            self.digest.update(f"{text!r};".encode(errors="surrogatepass"))

    def _add(self, value: Any) -> None:
        self._count += 1
        if self._count > LARGEST_COUNT:
            raise UnknowableError(f"more than {LARGEST_COUNT} values")
        if type(value) in _SCALARS:
            self._write(type(value).__name__, value)
            return
        if isinstance(value, _CONSTANTS):
            self._write(type(value).__name__, value)
            return
        number = self._numbers.setdefault(id(value), len(self._numbers))
        if number < len(self._alive):
            self._write("again", number)
            return
        self._alive.append(value)
        self._write(type(value).__name__)
        for kinds, way in _WAYS:
            if isinstance(value, kinds):
                way(self, value)
                return
        self._object(value)

    def _tensor(self, tensor: torch.Tensor) -> None:
        plain = type(tensor) in _TENSORS and tensor.layout is torch.strided and not tensor.is_quantized
        if not plain or tensor.device.type == "meta":
            raise UnknowableError(f"a tensor of type {type(tensor).__name__}")
        self._add_size(tensor.numel() * tensor.element_size())
        self._write(tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device, tensor.requires_grad)
        values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        self.digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        self.add(dict(getattr(tensor, "__dict__", {})))

    def _array(self, array: np.ndarray | np.generic) -> None:
        if array.dtype.hasobject:
            raise UnknowableError("an array of objects")
        self._add_size(array.nbytes)
        self._write(array.dtype.str, array.shape)
        self.digest.update(array.tobytes())

    def _add_size(self, size: int) -> None:
        self._bytes += size
        if self._bytes > LARGEST_BYTES:
            raise UnknowableError(f"more than {LARGEST_BYTES} bytes of tensors")

    def _sequence(self, values: Any) -> None:
        if type(values) not in (list, tuple):
            if isinstance(values, list):
                self._object(values)
                return
            self.add(type(values))
        self._write(len(values))
        self.add(*values)

    def _mapping(self, values: Any) -> None:
        if type(values) not in (dict, collections.OrderedDict, types.MappingProxyType):
            self._object(values)
            return
        self._write(len(values))
        for key, value in values.items():
            self.add(key, value)

    def _set(self, values: Any) -> None:
        if type(values) not in (set, frozenset) or not all(type(value) in _SCALARS for value in values):
            raise UnknowableError("a set of objects")
        self._write(sorted(f"{value!r}" for value in values))

    def _python_module(self, module: types.ModuleType) -> None:
        self._write(module.__name__, _library(module.__name__))

    def _method(self, method: types.MethodType) -> None:
        self.add(method.__func__, method.__self__)

    def _builtin(self, function: Any) -> None:
        owner = getattr(function, "__self__", None)
        self._write(getattr(function, "__module__", None), function.__qualname__)
        if not isinstance(owner, types.ModuleType):
            self.add(owner)

    def _partial(self, partial: Any) -> None:
        self.add(partial.func, partial.args, partial.keywords, vars(partial))

    def _reference(self, reference: weakref.ref[Any]) -> None:
        self.add(reference())

    def _wrapper(self, wrapper: Any) -> None:
        self.add(wrapper.__func__)

    def _property(self, value: property) -> None:
        self.add(value.fget, value.fset)

    def _cached(self, value: Any) -> None:
        self.add(value.func if isinstance(value, functools.cached_property) else value.__wrapped__)

    def _named(self, value: Any) -> None:
        self._write(value.name if isinstance(value, logging.Logger) else repr(value))

    def _operation(self, operation: Any) -> None:
        name = str(operation)
        if not name.startswith(("aten", "prims", "prim")):
            raise UnknowableError(f"the operation {name}")
        self._write(name)

    def _member(self, member: enum.Enum) -> None:
        self.add(type(member))
        self._write(member.name)

    def _code(self, code: types.CodeType) -> None:
        self._write(code.co_code, code.co_exceptiontable, code.co_names, code.co_varnames, code.co_freevars)
        self._write(code.co_cellvars, code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self.add(code.co_consts)

    def _function(self, function: types.FunctionType) -> None:
        self._write(function.__module__, function.__qualname__)
        self._code(function.__code__)
        if not _is_of_library(function):
            extra = {key: value for key, value in vars(function).items() if key != "__wrapped__"}
            self.add(function.__defaults__, function.__kwdefaults__, extra)
            for cell in function.__closure__ or ():
                self._cell(cell)
        for code in _codes(function.__code__):
            if _is_library_file(code.co_filename):
                self._patches(function.__globals__, set(code.co_names))
            else:
                self._globals(function, code)

    def _cell(self, cell: Any) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            return
        self.add(content)

    def _globals(self, function: types.FunctionType, code: types.CodeType) -> None:
        """What code that may change takes from its module: by value, and of modules what it names there."""
        if unknowable := _UNKNOWABLE_NAMES.intersection(code.co_names):
            raise UnknowableError(f"{min(unknowable)} in {function.__qualname__}")
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname == "IMPORT_NAME":
                if _library(name) is None or name not in sys.modules:
                    raise UnknowableError(f"the import of {name!r} in {function.__qualname__}")
                self._attributes(sys.modules[name], set(code.co_names))
            elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                self._global(function, code, name)

    def _global(self, function: types.FunctionType, code: types.CodeType, name: str) -> None:
        if name in function.__globals__:
            value = function.__globals__[name]
            self._write(name)
            self.add(value)
            if isinstance(value, types.ModuleType):
                self._attributes(value, set(code.co_names))
        elif name in _UNKNOWABLE_GLOBALS:
            raise UnknowableError(f"{name} in {function.__qualname__}")
        else:
            self.add(vars(builtins).get(name))

    def _attributes(self, module: types.ModuleType, names: set[str]) -> None:
        """What code takes from a module: everything of that name in it, and in the modules in it."""
        if _library(module.__name__) is not None:
            self._patches(vars(module), names)
            return
        for name in sorted(names & vars(module).keys()):
            value = vars(module)[name]
            self._write(name)
            self.add(value)
            if isinstance(value, types.ModuleType) and value is not module:
                self._attributes(value, names - {name})

    def _patches(self, values: dict[str, Any], names: set[str], inner: bool = False) -> None:
        """What was put into an installed library by these names, and its own flags where code takes them directly.

        What the library itself has there is known by its version. More of it can be there once other parts of it are
        imported, which must make no difference.
        """
        for name in sorted(names & values.keys()):
            value = values[name]
            put_in = isinstance(value, functools.partial | types.MethodType)
            if isinstance(value, types.FunctionType):
                put_in = not _is_of_library(value)
            if isinstance(value, types.ModuleType):
                if value.__dict__ is not values and not inner:
                    self._patches(vars(value), names - {name}, inner=True)
            elif put_in:
                self._write(name)
                self.add(value)
            elif isinstance(value, types.FunctionType | types.BuiltinFunctionType) and value.__name__ != name:
                self._write(name, value.__module__, value.__qualname__)
            elif type(value) in _SCALARS and not inner:
                self._write(name, value)

    def _class(self, cls: type) -> None:
        library = _library_of(cls)
        self._write(cls.__module__, cls.__qualname__, library)
        if not cls.__flags__ & _STATIC_CODE:
            return
        self.add(*cls.__bases__)
        for name, member in sorted(vars(cls).items()):
            if name in _DESCRIBING or isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
                continue
            if library is None or isinstance(member, types.FunctionType):
                self._write(name)
                self.add(member)
            elif type(member) in _SCALARS:
                self._write(name, member)

    def _network(self, module: nn.Module) -> None:
        own = vars(module)
        self.add(type(module), {key: value for key, value in own.items() if key not in _HOOKS})
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            flags = [own.get(f"{kind}_{flag}", ()) for flag in ("with_kwargs", "always_called")]
            for number, hook in own[kind].items():  # numbers are given in a process, one after the other
                self.add(kind, hook, [number in those for those in flags])

    def _object(self, value: Any) -> None:
        """An object that is nothing but its attributes, and its entries if it is a list or a dict."""
        cls = type(value)
        own = {"__reduce_ex__", "__reduce__", "__getstate__"}
        hidden = [name for name in own if getattr(cls, name) is not getattr(object, name)]
        if hidden or hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__"):
            raise UnknowableError(f"an object of type {cls.__qualname__}")
        try:
            _, _, state, entries, items = (*object.__reduce_ex__(value, 2), None, None)[:5]
        except TypeError as error:
            raise UnknowableError(f"an object of type {cls.__qualname__}") from error
        self.add(cls, state)
        self.add(*([] if entries is None else list(entries)), *([] if items is None else list(items)))


_WAYS: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    (torch.Tensor, _Walk._tensor),
    ((np.ndarray, np.generic), _Walk._array),
    (enum.Enum, _Walk._member),
    ((list, tuple), _Walk._sequence),
    ((dict, types.MappingProxyType), _Walk._mapping),
    ((set, frozenset), _Walk._set),
    ((torch._ops.OpOverload, torch._ops.OpOverloadPacket), _Walk._operation),
    (types.ModuleType, _Walk._python_module),
    (types.CodeType, _Walk._code),
    (types.FunctionType, _Walk._function),
    (types.MethodType, _Walk._method),
    (
        (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType),
        _Walk._builtin,
    ),
    (functools.partial, _Walk._partial),
    ((functools.cached_property, functools._lru_cache_wrapper), _Walk._cached),
    (weakref.ref, _Walk._reference),
    (_WRAPPERS, _Walk._wrapper),
    (property, _Walk._property),
    (type, _Walk._class),
    ((logging.Logger, re.Pattern, *_TYPING), _Walk._named),
    (nn.Module, _Walk._network),
)
