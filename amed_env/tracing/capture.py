"""What a network runs, as a program of tensor operations: `torch.export` follows the call itself, not the modules.

Subclassed layers, hooks, flags, weights that are computed, operations in place and shapes that decide need no rule of
their own, since only what runs is recorded. The program is then tidied (constants folded, copies dropped) and compared
with the untouched network.
"""

from __future__ import annotations

import io
import logging
import operator
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.modules import transformer

from amed_env.errors import NetworkError
from amed_env.support.text import first_few
from amed_env.tracing.decompositions import decompositions

if TYPE_CHECKING:
    from amed_env.tracing.original import Call

logger = logging.getLogger(__name__)
aten = torch.ops.aten

HALF_TYPES = (torch.float16, torch.bfloat16)
FLOAT_TYPES = (*HALF_TYPES, torch.float64)
"""Types that are computed in float32."""

_COPIES: tuple[Any, ...] = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
)
_CHECKS = ("_assert", "sym_constrain_range", "_guards_fn")
_ROOT_PREFIX = "network"  # the attribute of `_Called` that holds the user's network
PARAMETERS = "parameters"
"""Key of a constant's meta: the paths of the network's parameters and buffers that it was computed from."""


@dataclass(frozen=True)
class Program:
    """A captured network.

    Attributes:
        module: The program: a graph of ATen operations, functional (nothing is changed in place), float32.
        batch_size: The only batch size that it takes, or None if it takes any.
        remarks: What a user should know, a line each.
        has_half: Whether the network computes in half precision somewhere.
    """

    module: fx.GraphModule
    batch_size: int | None
    remarks: tuple[str, ...]
    has_half: bool


class _Called(nn.Module):
    """A network that takes one tensor, and returns what counts of its answer."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return self._call(self.network, inputs)


def capture(network: nn.Module, example: torch.Tensor, call: Call, name: str, any_batch: bool = True) -> Program:
    """Record what a network runs in eval mode.

    Args:
        network: The network; afterwards it is as it was.
        example: Tensor (N, …) that the program will take.
        call: How the network is called with such a tensor.
        name: The network's name, for messages.
        any_batch: Whether the program should take any number of samples, if it can.

    Raises:
        NetworkError: If it cannot be recorded; the line of the user's code that is why is named.
    """
    called = _Called(network, call)
    with _in_eval_mode(network), torch.no_grad(), quiet():
        exported, batch_size = _export(called, example, name, any_batch)
        exported = exported.run_decompositions(decompositions())
        module = exported.module()
    changed = sorted(exported.graph_signature.buffers_to_mutate.values())
    if changed:
        raise NetworkError(
            f"network {name!r} changes {', '.join(key.removeprefix(f'{_ROOT_PREFIX}.') for key in changed)} when it is "
            "called in eval mode, so its answers depend on what it saw before; let them stay as they are outside of "
            "training."
        )
    assert isinstance(module, fx.GraphModule)
    types = _to_float32(module)
    remarks = [f"{str(kind).removeprefix('torch.')} is computed in float32" for kind in types]
    _drop_writes_into_inputs(module)
    _drop_checks(module)
    _drop_copies(module)  # before constants are folded: a copy of a parameter keeps its name
    _fold_constants(module)
    _drop_copies(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Program(module, batch_size, tuple(remarks), any(kind in HALF_TYPES for kind in types))


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode for as long as this lasts; every module is then in the mode in which it was."""
    training = {module: module.training for module in network.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operation whose products nobody could see
    detect_causal_mask = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _is_said_to_be_causal
    network.eval()
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect_causal_mask
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in training.items():
            module.training = mode


def _is_said_to_be_causal(mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Torch's transformers compare a mask with a causal one for a hint that changes no result, only the speed."""
    return is_causal is True


def _export(called: _Called, example: torch.Tensor, name: str, any_batch: bool) -> tuple[ExportedProgram, int | None]:
    """The program, and the only batch size that it takes, if there is one."""
    # A size of 1 would be taken for a constant.
    several = example if len(example) > 1 else torch.cat([example, example])
    try:
        if any_batch:
            exported = export(called, (several,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
            if not isinstance(_read_shape(exported)[0], int):
                return exported, None
    except Exception as error:  # export raises errors of many types, also those of the user's code
        logger.info("network %s cannot be exported with any batch size (%s)", name, error)
    try:
        return export(called, (example,), strict=False), len(example)
    except Exception as error:
        raise NetworkError(_cannot_be_captured(called.network, name, example, error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's own lines about what it cannot follow or read: the error says it, with the user's line."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export", "torch._subclasses.fake_tensor")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints the program that it has so far
            warnings.simplefilter("ignore", FutureWarning)  # of torch to itself
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _read_shape(exported: ExportedProgram) -> tuple[Any, ...]:
    (read,) = exported.graph_signature.user_inputs
    node = next(node for node in exported.graph.nodes if node.name == read)
    return tuple(node.meta["val"].shape)


def _cannot_be_captured(network: nn.Module, name: str, example: torch.Tensor, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" (unhinted")[0].rstrip(".")
    where = _users_line(error)
    return (
        f"network {name!r} cannot be captured on an input of shape {tuple(example.shape)}: "
        f"{type(error).__name__}: {first}{'' if where is None else f' ({where})'}. "
        f"{_cure(network)}"
    )


def _cure(network: nn.Module) -> str:
    scripts = [path for path, child in network.named_modules() if isinstance(child, torch.jit.ScriptModule)]
    if scripts:
        return f"{first_few(scripts)} is TorchScript, which cannot be captured; give the nn.Module it was made of."
    return (
        "What runs may depend on shapes but not on values: replace `if` and loops over values by torch.where or masks."
    )


def _users_line(error: BaseException) -> str | None:
    """The innermost line of code of the traceback that is neither torch's nor this package's."""
    here = Path(__file__).resolve().parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        library = "site-packages" in path.parts or "dist-packages" in path.parts or "lib" in path.parts
        if path.is_file() and not library and here not in path.resolve().parents:
            return f"{path.name}, line {frame.lineno}: {frame.line}"
    return None


def _to_float32(module: fx.GraphModule) -> list[torch.dtype]:
    """Compute in float32 what is in another float type; returns the types that were."""
    types: set[torch.dtype] = set()

    def single(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in FLOAT_TYPES:
            types.add(value)
            return torch.float32
        return value

    for node in module.graph.nodes:
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(module)
            if isinstance(tensor, torch.Tensor) and tensor.dtype in FLOAT_TYPES:
                types.add(tensor.dtype)
                _set_constant(module, str(node.target), tensor.detach().float())
        elif node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, single)
            node.kwargs = fx.node.map_aggregate(node.kwargs, single)
    return sorted(types, key=str)


def _set_constant(module: nn.Module, path: str, tensor: torch.Tensor) -> None:
    owner_path, _, attribute = path.rpartition(".")
    owner = module.get_submodule(owner_path)
    for registered in (owner._parameters, owner._buffers):
        registered.pop(attribute, None)
    if hasattr(owner, attribute):
        delattr(owner, attribute)
    owner.register_buffer(attribute, tensor)


def _drop_writes_into_inputs(module: fx.GraphModule) -> None:
    """What a network does to the caller's own tensors, or to its parameters, is no part of what it returns."""
    for node in list(module.graph.nodes):
        if node.target is aten.copy_.default and node.args[0].op in ("placeholder", "get_attr"):
            module.graph.erase_node(node)


def _drop_checks(module: fx.GraphModule) -> None:
    """Drop assertions about shapes and types: they held for the example."""
    for node in reversed(list(module.graph.nodes)):
        name = str(node.target).rpartition("aten.")[2]
        if not node.users and node.op in ("call_function", "call_module") and name.startswith(_CHECKS):
            module.graph.erase_node(node)


def constant_of(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor that a node of a program always is, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(module)
    return value if isinstance(value, torch.Tensor) else None


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on no input: normalised, masked or scaled weights, positions, masks."""
    constants: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(module)
            node.meta[PARAMETERS] = (str(node.target).removeprefix(f"{_ROOT_PREFIX}."),)
            continue
        if node.op != "call_function" or not all(source in constants for source in node.all_input_nodes):
            continue
        if "rand" in str(node.target) or "dropout" in str(node.target):
            continue  # drawn anew at each call; the comparison with the network says so
        arguments = fx.node.map_arg((node.args, node.kwargs), constants.__getitem__)
        with torch.no_grad():
            constants[node] = node.target(*arguments[0], **arguments[1])
        origins = [path for source in node.all_input_nodes for path in source.meta[PARAMETERS]]
        node.meta[PARAMETERS] = tuple(dict.fromkeys(origins))
    for node, value in constants.items():
        if node.op == "get_attr":
            continue
        readers = [user for user in node.users if user not in constants]
        if not readers:
            continue
        if isinstance(value, torch.Tensor):
            name = _free_name(module, f"constant_{node.name}")
            module.register_buffer(name, value.detach().clone())
            with module.graph.inserting_before(node):
                folded: Any = module.graph.get_attr(name)
            folded.meta = dict(node.meta)
        elif isinstance(value, int | float | bool):
            folded = value
        else:
            continue  # a list of tensors: whoever takes one of them is folded itself
        for reader in readers:
            _replace_argument(reader, node, folded)


def _replace_argument(reader: fx.Node, before: fx.Node, after: Any) -> None:
    reader.args = fx.node.map_arg(reader.args, lambda node: after if node is before else node)
    reader.kwargs = fx.node.map_arg(reader.kwargs, lambda node: after if node is before else node)


def _drop_copies(module: fx.GraphModule) -> None:
    """Nothing is changed in place, so a copy is the original; memory layouts are the engine's own affair."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        source = node.args[0] if node.args else None
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # a view needs a layout that the engine does not promise
        elif node.target in _COPIES or _is_whole_slice(node) or _keeps_type(node):
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)


def _is_whole_slice(node: fx.Node) -> bool:
    """Whether a slice takes everything: `x[:]` of an axis."""
    if node.target is not aten.slice.Tensor:
        return False
    arguments: tuple[Any, ...] = node.args
    given = dict(enumerate(arguments))
    start, end, step = given.get(2), given.get(3), given.get(4, 1)
    return bool(start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**62)) and step == 1)


def _keeps_type(node: fx.Node) -> bool:
    """Whether a conversion is none: float32 to float32 on the same device."""
    if node.target not in (aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.other, aten.to.dtype_layout):
        return False
    source = node.args[0]
    read, written = getattr(source, "meta", {}).get("val"), node.meta.get("val")
    if not isinstance(read, torch.Tensor) or not isinstance(written, torch.Tensor):
        return False
    kinds = {torch.float32 if tensor.dtype in FLOAT_TYPES else tensor.dtype for tensor in (read, written)}
    return bool(len(kinds) == 1)


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name += "_"
    return name


def module_path(node: fx.Node) -> str:
    """The path of the user's module in which an operation runs; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    path = paths[-1] if paths else ""
    return "" if path == _ROOT_PREFIX else path.removeprefix(f"{_ROOT_PREFIX}.")


def set_module_path(node: fx.Node, path: str) -> None:
    """Let `module_path` say so of a node."""
    node.meta["nn_module_stack"] = {"": (f"{_ROOT_PREFIX}.{path}" if path else "", None)}
