"""Widths of ResNet-20's weights by NVIDIA's ModelOpt, as a file for `first_answer.py --allocations`.

Its `auto_quantize` by gradients or by divergences, as it comes; candidates of 2, 3, 4 and 8 bits with a scale an output
channel of largest magnitude, activations in float, batch norms folded first.

It needs an environment of its own with nvidia-modelopt, huggingface_hub and what loading a task needs (gymnasium,
pydantic, scipy, safetensors, pyyaml, platformdirs, filelock, requests, rich, typer):

    AMED_DATA_DIR=data PYTHONPATH=. python benchmarks/peers/with_modelopt.py --bits 4.0 --out modelopt-4.json
"""

from __future__ import annotations

import argparse
import warnings
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

from common import WIDTHS, folded, layer_names, network_and_samples, write_answer


def candidate(bits: int) -> dict[str, Any]:
    """A format of weights alone."""
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}, "enable": True},
        {"quantizer_name": "*input_quantizer", "enable": False},
    ]
    return {"quant_cfg": rules, "algorithm": "max"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=float, required=True, help="mean width of a weight")
    parser.add_argument("--method", choices=("gradient", "kl_div"), default="gradient")
    parser.add_argument("--images", type=int, default=512, help="images of its sensitivities")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True, help="file of the allocation")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import modelopt.torch.quantization as mtq
    from torch.nn.functional import cross_entropy

    network, inputs, labels = network_and_samples(1000)
    names = layer_names(network)
    some, of_some = inputs[: given.images], labels[: given.images]
    batches = list(zip(some.split(given.batch), of_some.split(given.batch), strict=True))
    by_gradient = {"loss_func": lambda outputs, batch: cross_entropy(outputs, batch[1])}
    _, state = mtq.auto_quantize(
        folded(network),
        constraints={"effective_bits": given.bits},
        quantization_formats=[candidate(bits) for bits in WIDTHS],
        data_loader=batches,
        forward_step=lambda module, batch: module(batch[0]),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        verbose=False,
        method=given.method,
        **(by_gradient if given.method == "gradient" else {}),
    )
    seconds = process_time()
    recipes = {key.removesuffix(".quant_recipe"): recipe for key, recipe in state["best"]["recipe"].items()}
    widths = {name: bits_of(recipes[name]) for name in names}
    tool = f"ModelOpt {version('nvidia-modelopt')}, {given.method}"
    write_answer(given.out, tool, widths, network, inputs, seconds)


def bits_of(recipe: Any) -> int:
    """Width of the weights in what is found for a layer."""
    for rule in recipe.config.quant_cfg:
        named = rule if isinstance(rule, dict) else rule.model_dump()
        settings = named.get("cfg") or {}
        if named.get("enable", True) and "num_bits" in settings:
            return int(settings["num_bits"])
    raise SystemExit(f"no width in {recipe}")


if __name__ == "__main__":
    main()
