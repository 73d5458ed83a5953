"""Networks that nobody here wrote: is what is captured what they compute, how much is quantized, and is that right?

Random weights, batch norms settled on random images. For each network: the largest difference of the captured program
from the network itself; layers; the share of multiplications in layers, and of those that run on integers; and
how far the outputs at 8 and 4 bits are from a fake quantization of its own, which takes nothing but integers, scales
and biases and computes in float64 (`own_outputs`). There, values that lie within float32's rounding error of the middle
between two codes may go to the other one, which networks with random weights amplify; so the same calculation with
float32's own noise before every rounding (`_Own._on_grid`) is given as a yardstick. A network that is refused, or
differs, is a row with the reason.

It needs an environment of its own with torchvision, timm, transformers and ultralytics beside the package's
dependencies; networks of a library that is missing are left out, and named. A core takes about half an hour for all.

    python benchmarks/networks_of_others.py --out networks.json
    python benchmarks/networks_of_others.py --table networks.json > table.md
"""

from __future__ import annotations

import time
from typing import Any

import torch
from other_networks import NETWORKS, run_rows
from torch import fx, nn

from amed_env.errors import AmedError
from amed_env.problem.allocation import BitAllocation
from amed_env.quantization.layers import QuantizedLayer, StoredTensor
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.products import QuantizedProduct
from amed_env.tracing.lowering import EmbeddingTable, TransposedConvolution
from amed_env.tracing.trace import trace

FLOAT32_NOISE = 3e-7
"""Relative error of a value after a few operations of float32, whose numbers are 1.2e-7 apart."""


def settle(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Give batch norms the statistics of the inputs, so that random weights do not blow activations up."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    network.eval()
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        network(inputs)
    return network.eval()


class _Own(fx.Interpreter):
    """Runs the graph of a quantized network in float64, with layers and grids written out anew."""

    def __init__(self, network: QuantizedNetwork, allocation: BitAllocation, noise: float) -> None:
        super().__init__(network.module)
        self._allocation, self._noise = allocation, noise
        self._generator = torch.Generator().manual_seed(1)

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, StoredTensor):
            return self._on_grid(args[0], module.scale, 8, module.statistics.unsigned)
        weight_bits, activation_bits = self._allocation[module.name]
        if isinstance(module, QuantizedProduct):
            operands = []
            for number, bits in enumerate((activation_bits, weight_bits)):
                step = module.prepared[bits].steps[number]
                operands.append(self._on_grid(args[number], step, bits, module.operands[number].unsigned))
            return operands[0] @ operands[1]
        assert isinstance(module, QuantizedLayer)
        (values,) = args
        if isinstance(module.layer, EmbeddingTable):
            rows = module.prepared[weight_bits]
            return (rows.integers.double() * rows.scales.double()[:, None])[values]
        step = module.prepared[activation_bits].activation_scale
        read = self._on_grid(values, step, activation_bits, module.statistics.unsigned)
        prepared, layer = module.prepared[weight_bits], module.layer
        weight = prepared.integers.double() * prepared.scales.double().view(-1, *[1] * (prepared.integers.dim() - 1))
        bias = None if prepared.bias is None else prepared.bias.double()
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(read, weight, bias)
        if isinstance(layer, TransposedConvolution):
            return layer.compute(read, weight, bias)
        function = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[weight.dim() - 3]
        return function(read, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def _on_grid(self, values: torch.Tensor, step: float, bits: int, unsigned: bool) -> torch.Tensor:
        low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        codes = values.double() / step
        if self._noise:
            drawn = torch.randn(codes.shape, generator=self._generator, dtype=torch.float64)
            codes = codes * (1 + self._noise * drawn)
            if not unsigned:  # kernels add 128 before they round, where numbers of float32 are 2^-16 apart
                codes = codes + (torch.rand(codes.shape, generator=self._generator, dtype=torch.float64) - 0.5) * 2**-16
        return codes.round().clamp(low, high) * step


@torch.no_grad()
def own_outputs(
    network: QuantizedNetwork, allocation: BitAllocation, inputs: torch.Tensor, noise: float = 0.0
) -> torch.Tensor:
    """What a quantized network returns, by an own calculation in float64.

    Args:
        network: The network.
        allocation: The allocation.
        inputs: Tensor (N, ...) that it takes.
        noise: Relative deviation of what is added to every value before it is rounded; see `FLOAT32_NOISE`.
    """
    network.prepare_all(allocation)
    return _Own(network, allocation, noise).run(inputs.double() if inputs.is_floating_point() else inputs)


def row_of(name: str) -> dict[str, Any]:
    """What is found out about a network."""
    library, make = NETWORKS[name]
    row: dict[str, Any] = {"network": name, "library": library}
    torch.manual_seed(0)
    network, inputs = make()
    settle(network, inputs)
    start = time.process_time()
    try:
        traced = trace(network, inputs[:2], name, samples=inputs)
    except AmedError as error:
        return {**row, "refused": str(error)}
    row |= {"capture_cpu_s": time.process_time() - start, "difference": traced.difference}
    quantized = QuantizedNetwork(traced, inputs, batch_size=8)
    covered = traced.workload.macs
    everything = covered + sum(kept.macs for kept in traced.kept_float)
    row |= {"layers": len(traced.workload), "macs": covered, "covered": covered / everything}
    for bits in (8, 4):
        allocation = traced.workload.uniform(bits)
        quantized.select(allocation)
        some = quantized.filled(inputs[:2])
        outputs = quantized(some)
        expected = own_outputs(quantized, allocation, some)
        nearly = own_outputs(quantized, allocation, some, noise=FLOAT32_NOISE)
        row[f"difference_{bits}"] = float((outputs.double() - expected).norm() / expected.norm())
        row[f"yardstick_{bits}"] = float((nearly - expected).norm() / expected.norm())
    in_float = sum(layer.macs for layer in traced.workload if layer.name in quantized.in_float)
    row["on_integers"] = (covered - in_float) / everything
    row["cpu_s"] = time.process_time() - start
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    heads = (
        "network",
        "library",
        "difference",
        "layers",
        "in layers %",
        "on integers %",
        "8 bit (yardstick)",
        "4 bit (yardstick)",
        "capture s",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        if "refused" in row or "failed" in row:
            reason = row.get("refused") or f"failed: {row['failed']}"
            lines.append(f"| {row['network']} | {row['library']} | {reason[:120]} |{' |' * 6}")
            continue
        values = [row["network"], row["library"], f"{row['difference']:.0e}", str(row["layers"])]
        values += [f"{100 * row['covered']:.1f}", f"{100 * row['on_integers']:.1f}"]
        values += [f"{row[f'difference_{bits}']:.0e} ({row[f'yardstick_{bits}']:.0e})" for bits in (8, 4)]
        values.append(f"{row['capture_cpu_s']:.1f}")
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_rows(__doc__, row_of, table)
