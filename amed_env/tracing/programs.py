"""Networks that were exported already: a `torch.export.ExportedProgram`, or the `.pt2` file that it was saved in."""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from amed_env.errors import NetworkError
from amed_env.tracing.capture import quiet
from amed_env.tracing.packing import Inputs

_WHAT_FITS = "the network must be a torch.nn.Module, a torch.export.ExportedProgram or the path of a .pt2 file"
_ANY_BATCH = 1024
"""A program that takes this many samples, which is more than any batch here, takes any number."""
_PICKLED_OBJECTS = ("custom_obj", "opaque_obj")
"""How the names of files begin in which torch keeps pickled objects that are no tensors."""


@dataclass(frozen=True)
class Given:
    """A network in whatever form its user has it.

    Attributes:
        module: It, as a module.
        example: The inputs with which it was exported, if it was.
        batch_size: The only batch size for which it was exported, or None.
        name: Its own name.
    """

    module: nn.Module
    example: Inputs | None
    batch_size: int | None
    name: str


def given_network(network: Any) -> Given:
    """The module of a network that is a module, an exported program, or the path of a `.pt2` file.

    Raises:
        NetworkError: If it is none of these, or the file cannot be read.
    """
    if isinstance(network, str | os.PathLike):
        path = Path(network)
        return _of_program(load_program(path), path.stem)
    if isinstance(network, ExportedProgram):
        return _of_program(network, "exported")
    if isinstance(network, torch.jit.ScriptModule):
        raise NetworkError("the network is a TorchScript module, which cannot be captured; give the nn.Module itself.")
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{_WHAT_FITS}, not {type(network).__name__}.")
    return Given(network, None, None, type(network).__name__)


def takes_one_input(network: Any, example: Inputs | None = None) -> bool:
    """Whether a network is known to take one tensor, so that what comes beside it are labels.

    Args:
        network: As for `given_network`.
        example: Inputs of one call, if there are any.

    Raises:
        NetworkError: As for `given_network`.
    """
    given = given_network(network)
    example = given.example if example is None else example
    if example is not None:
        return not isinstance(example, tuple | list | Mapping)
    kinds = [parameter.kind for parameter in inspect.signature(given.module.forward).parameters.values()]
    return kinds in ([inspect.Parameter.POSITIONAL_OR_KEYWORD], [inspect.Parameter.POSITIONAL_ONLY])


def load_program(path: Path) -> ExportedProgram:
    """Read a `.pt2` file; nothing but tensors is unpickled.

    Torch parses the text of the program as code all the same, so such a file deserves the trust of a Python module.

    Raises:
        NetworkError: If there is no such file, it is no exported program, or it holds pickled objects.
    """
    if not path.is_file():
        raise NetworkError(f"there is no file {path}; {_WHAT_FITS}.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(entry).name for entry in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise NetworkError(f"{path} is no .pt2 file: {error}; write it with torch.export.save.") from error
    objects = [name for name in names if name.startswith(_PICKLED_OBJECTS)]
    if objects:
        raise NetworkError(
            f"{path} holds pickled objects ({', '.join(objects)}), which could run code and are not loaded; export the "
            "network without them, or load the program yourself and give the ExportedProgram."
        )
    try:
        with quiet(), _unpickling_only_tensors():
            return torch.export.load(path)
    except Exception as error:  # of many types: files of other versions, damaged ones, pickles of more than tensors
        first = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        raise NetworkError(
            f"{path} cannot be loaded as an exported program: {type(error).__name__}: {first}. Write it with "
            "torch.export.save of this version of torch; objects other than tensors are not unpickled."
        ) from error


@contextmanager
def _unpickling_only_tensors() -> Iterator[None]:
    """Make torch.load refuse everything else, also where torch itself calls it without this wish."""
    # torch.export.load repeats a refused load with weights_only=False; this variable alone overrides it.
    forced, allowed = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {key: os.environ.pop(key, None) for key in (forced, allowed)}
    os.environ[forced] = "1"
    try:
        yield
    finally:
        del os.environ[forced]
        os.environ.update({key: value for key, value in before.items() if value is not None})


def _of_program(program: ExportedProgram, name: str) -> Given:
    module: Any = program.module()
    assert isinstance(module, fx.GraphModule)
    # Made anew, as the original refuses eval() and checks shapes that the batch sizes tried here need not have.
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards_fn"):
            graph.erase_node(node)
    plain = fx.GraphModule(module, graph, name)
    return Given(plain, _example(program), _batch_size(program), name)


def _example(program: ExportedProgram) -> Inputs | None:
    """The inputs with which it was exported: a tensor, or arguments in order with those by keyword last."""
    if program.example_inputs is None:
        return None
    arguments, keywords = program.example_inputs
    if not keywords:
        return arguments[0] if len(arguments) == 1 else tuple(arguments)
    return (*arguments, dict(keywords)) if arguments else dict(keywords)


def _batch_size(program: ExportedProgram) -> int | None:
    """The first size of the inputs where it is a number; or the largest one, where it has a limit."""
    read = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in read or not isinstance(value, torch.Tensor) or not value.dim():
            continue
        size = value.shape[0]
        if isinstance(size, int):
            return size
        limits = program.range_constraints.get(size.node.expr)
        largest = _ANY_BATCH if limits is None else limits.upper
        return int(largest) if largest < _ANY_BATCH else None
    return None
