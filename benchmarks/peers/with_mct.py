"""Widths of ResNet-20's weights by Sony's Model Compression Toolkit, as a file for `first_answer.py --allocations`.

Its mixed precision by the mean distance of inner outputs, as it comes, and its exact solver; candidates of 2, 3, 4 and
8 bits with a scale an output channel, activations in float. Bias correction and what else changes the network after the
widths are chosen are off, since our quantizer scores the answer.

It needs an environment of its own with model-compression-toolkit, torchvision and what loading a task needs (gymnasium,
pydantic, scipy, safetensors, pyyaml, platformdirs, filelock, requests, rich, typer):

    AMED_DATA_DIR=data PYTHONPATH=. python benchmarks/peers/with_mct.py --bits 4.0 --out mct-4.json
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

from common import WIDTHS, layer_names, network_and_samples, write_answer


def capabilities() -> Any:
    """A platform whose convolutions and linear layers choose among the widths, and that leaves activations alone."""
    from mct_quantizers import QuantizationMethod
    from model_compression_toolkit.target_platform_capabilities.constants import BIAS_ATTR, KERNEL_ATTR
    from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema as schema

    def attribute(bits: int, quantized: bool, per_channel: bool = True) -> Any:
        return schema.AttributeQuantizationConfig(
            weights_quantization_method=QuantizationMethod.SYMMETRIC,
            weights_n_bits=bits,
            weights_per_channel_threshold=per_channel,
            enable_weights_quantization=quantized,
            lut_values_bitwidth=None,
        )

    def operation(bits: int) -> Any:
        of_weights = {KERNEL_ATTR: attribute(bits, True), BIAS_ATTR: attribute(32, False, per_channel=False)}
        return schema.OpQuantizationConfig(
            default_weight_attr_config=attribute(8, False),
            attr_weights_configs_mapping=of_weights,
            activation_quantization_method=QuantizationMethod.POWER_OF_TWO,
            activation_n_bits=8,
            supported_input_activation_n_bits=8,
            enable_activation_quantization=False,
            quantization_preserving=False,
            fixed_scale=None,
            fixed_zero_point=None,
            simd_size=32,
            signedness=schema.Signedness.AUTO,
        )

    widest = operation(max(WIDTHS))
    candidates = tuple(operation(bits) for bits in sorted(WIDTHS, reverse=True))
    mixed = schema.QuantizationConfigOptions(quantization_configurations=candidates, base_config=widest)
    plain = widest.clone_and_edit(attr_weights_configs_mapping={})
    names = schema.OperatorSetNames
    return schema.TargetPlatformCapabilities(
        default_qco=schema.QuantizationConfigOptions(quantization_configurations=(plain,)),
        tpc_minor_version=1,
        tpc_patch_version=0,
        tpc_platform_type="weights",
        operator_set=tuple(
            schema.OperatorsSet(name=name, qc_options=mixed) for name in (names.CONV, names.FULLY_CONNECTED)
        ),
        fusing_patterns=(),
        add_metadata=False,
        name="weights",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=float, required=True, help="mean width of a weight")
    parser.add_argument("--images", type=int, default=32, help="images of its sensitivities; 32 is its default")
    parser.add_argument("--calibration", type=int, default=256, help="images of its statistics")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, help="file of the allocation")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import model_compression_toolkit as mct

    network, inputs, _ = network_and_samples(1000)
    names = layer_names(network)
    weights = sum(network.get_submodule(name).weight.numel() for name in names)

    def batches() -> Iterator[list[Any]]:
        for batch in inputs[: given.calibration].split(given.batch):
            yield [batch.numpy()]

    config = mct.core.CoreConfig(
        mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(num_of_images=given.images),
        quantization_config=mct.core.QuantizationConfig(
            weights_bias_correction=False,
            shift_negative_activation_correction=False,
            linear_collapsing=False,
            residual_collapsing=False,
        ),
    )
    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        network,
        batches,
        target_resource_utilization=mct.core.ResourceUtilization(weights_memory=weights * given.bits / 8),
        core_config=config,
        target_platform_capabilities=capabilities(),
    )
    seconds = process_time()
    found = []  # in the order of the network
    for name, module in quantized.named_modules():
        for quantizer in getattr(module, "weights_quantizers", {}).values():
            found.append((name, int(quantizer.num_bits)))
    if len(found) != len(names):
        raise SystemExit(f"{len(found)} quantized layers for {len(names)}: {found}")
    for ours, (theirs, _) in zip(names, found, strict=True):
        if not theirs.startswith(ours.replace(".", "_")):
            raise SystemExit(f"layer {theirs} stands where {ours} was expected")
    widths = dict(zip(names, (bits for _, bits in found), strict=True))
    write_answer(given.out, f"MCT {version('model-compression-toolkit')}", widths, network, inputs, seconds)


if __name__ == "__main__":
    main()
