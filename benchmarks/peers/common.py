"""What the scripts of this folder share: ResNet-20 and its calibration samples, the unit of time, and the file written.

`from __future__` and standard modules only at the top: processor time counts from the start of the process, and what a
tool imports belongs to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

TASK = "cifar10-resnet20"
WIDTHS = (2, 3, 4, 8)


def network_and_samples(samples: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The trained network with its batch norms, and the first calibration samples with their labels."""
    import torch

    from amed_env.tasks.catalogue import named_network

    torch.set_num_threads(1)
    entry = named_network(TASK)
    calibration = entry.splits().calibration.subset(range(samples))
    return entry.trained().eval(), calibration.inputs, calibration.known_labels


def folded(network: nn.Module) -> nn.Module:
    """The network with its batch norms folded into convolutions, whose weights are then what our tasks quantize."""
    from torch.fx.experimental.optimization import fuse

    fused: nn.Module = fuse(network)
    return fused


def layer_names(network: nn.Module) -> list[str]:
    """Layers with weights, by the names that our tasks have for them."""
    from torch import nn

    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def seconds_of_a_forward(network: nn.Module, inputs: torch.Tensor) -> float:
    """CPU time of the float network for 1,000 samples: as `first_answer.py` has it, on this process's torch."""
    import torch

    fast = folded(network).to(memory_format=torch.channels_last)
    inputs = inputs[:1000]
    least = float("inf")
    with torch.inference_mode():
        for batch_size in (25, 50, 125, 250):
            batches = [batch.contiguous(memory_format=torch.channels_last) for batch in inputs.split(batch_size)]
            for _ in range(3):
                started = process_time()
                for batch in batches:
                    fast(batch)
                least = min(least, process_time() - started)
    return least * 1000 / len(inputs)


def write_answer(
    out: Path, tool: str, widths: dict[str, int], network: nn.Module, inputs: torch.Tensor, seconds: float
) -> None:
    """Write an allocation of weights alone as a file that `first_answer.py --allocations` reads, and say its time.

    Args:
        out: The file.
        tool: Name and version.
        widths: By layer, in the order of the network.
        network: The float network, as it was before.
        inputs: Samples to time it with.
        seconds: CPU time from the start of the process to the allocation.
    """
    from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision

    sizes = {name: network.get_submodule(name).weight.numel() for name in widths}
    mean = sum(widths[name] * size for name, size in sizes.items()) / sum(sizes.values())
    allocation = BitAllocation({name: Precision(bits, FLOAT_BITS) for name, bits in widths.items()})
    out.write_text(json.dumps(allocation.to_json(TASK), indent=1) + "\n")
    unit = seconds_of_a_forward(network, inputs)
    print(f"{tool}: {mean:.2f} bits in the mean, {seconds:.1f} s of CPU time = {seconds / unit:.1f} forwards")
    print(f"of {unit:.2f} s; wrote {out}")
