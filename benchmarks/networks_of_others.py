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

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from amed_env.errors import AmedError
from amed_env.problem.allocation import BitAllocation
from amed_env.quantization.layers import QuantizedLayer, StoredTensor
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.products import QuantizedProduct
from amed_env.tracing.lowering import EmbeddingTable, TransposedConvolution
from amed_env.tracing.trace import trace

Made = tuple[nn.Module, torch.Tensor]


class Picked(nn.Module):
    """A network of which one tensor of what it returns is taken."""

    def __init__(self, network: nn.Module, pick: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.network, self._pick = network, pick

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What was picked."""
        return self._pick(self.network(inputs))


def images(size: int, channels: int = 3) -> torch.Tensor:
    """Eight random images."""
    return torch.randn(8, channels, size, size, generator=torch.Generator().manual_seed(0))


def tokens(length: int = 16) -> torch.Tensor:
    """Eight random texts of 100 words."""
    return torch.randint(3, 100, (8, length), generator=torch.Generator().manual_seed(0))


def torchvision_classifier(name: str, size: int = 64, **options: Any) -> Callable[[], Made]:
    """A classifier of torchvision."""

    def make() -> Made:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=10, **options), images(size)

    return make


def torchvision_segmenter(name: str) -> Callable[[], Made]:
    """A segmenter of torchvision, with its map of scores."""

    def make() -> Made:
        import torchvision

        network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
        return Picked(network, lambda outputs: outputs["out"]), images(64)

    return make


def torchvision_detector() -> Made:
    """The raw heads of SSDlite: class scores of every anchor."""
    import torchvision

    whole = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = whole.backbone, whole.head

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(list(self.backbone(inputs).values()))["cls_logits"]

    return Heads(), images(96)


def torchvision_pyramid() -> Made:
    """The feature pyramid of Faster R-CNN with MobileNetV3."""
    import torchvision

    whole = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5
    )
    return Picked(whole.backbone, lambda outputs: outputs["0"]), images(96)


def timm_classifier(name: str, size: int = 64, **options: Any) -> Callable[[], Made]:
    """A classifier of timm."""

    def make() -> Made:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=10, **options), images(size)

    return make


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def transformer(model: str, config: str, inputs: Callable[[], torch.Tensor], **options: Any) -> Callable[[], Made]:
    """A small network of transformers with random weights."""

    def make() -> Made:
        import transformers

        network = getattr(transformers, model)(getattr(transformers, config)(**options))

        def pick(outputs: Any) -> torch.Tensor:
            return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state

        return Picked(network, pick), inputs()

    return make


def _first_tensor(returned: Any) -> torch.Tensor:
    """What a network of ultralytics answers; its raw heads come behind it."""
    while not isinstance(returned, torch.Tensor):
        returned = returned[0]
    return returned


def yolo(kind: str, config: str) -> Callable[[], Made]:
    """A network of ultralytics as its configuration builds it, on images of 64 pixels.

    Args:
        kind: `DetectionModel`, `SegmentationModel` or `ClassificationModel`.
        config: Name of the configuration.
    """

    def make() -> Made:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        return Picked(getattr(tasks, kind)(config, verbose=False), _first_tensor), images(64)

    return make


def sounds() -> torch.Tensor:
    """Eight random sounds of half a second."""
    return torch.randn(8, 8000, generator=torch.Generator().manual_seed(0))


class Crnn(nn.Module):
    """Convolutions over time and a recurrent layer, as keyword spotters have them."""

    def __init__(self, recurrent: type[nn.Module]) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(40, 32, 3, padding=1)
        self.recurrent, self.head = recurrent(32, 48, batch_first=True), nn.Linear(48, 12)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        over_time = torch.relu(self.convolution(inputs)).transpose(1, 2)
        return self.head(self.recurrent(over_time)[0][:, -1])


def crnn(recurrent: type[nn.Module]) -> Callable[[], Made]:
    """A keyword spotter."""
    return lambda: (Crnn(recurrent), torch.randn(8, 40, 20, generator=torch.Generator().manual_seed(0)))


class UNet(nn.Module):
    """An encoder and a decoder of transposed convolutions, with a connection between them."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.norm, self.up = nn.BatchNorm2d(32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """A map of scores."""
        fine = torch.relu(self.down1(inputs))
        coarse = torch.relu(self.norm(self.down2(fine)))
        return self.out(torch.cat([fine, torch.relu(self.up(coarse))], 1))


class Video(nn.Module):
    """Convolutions over space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.second, self.head = nn.Conv3d(8, 16, 3, stride=2), nn.Linear(16, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        return self.head(torch.relu(self.second(torch.relu(self.norm(self.first(inputs))))).mean((2, 3, 4)))


NETWORKS: dict[str, tuple[str, Callable[[], Made]]] = {}


def _add(library: str, **makers: Callable[[], Made]) -> None:
    for name, make in makers.items():
        NETWORKS[name] = library, make


_add(
    "torchvision",
    **{
        name: torchvision_classifier(name)
        for name in (
            "resnet18",
            "resnext50_32x4d",
            "wide_resnet50_2",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "efficientnet_b0",
            "shufflenet_v2_x1_0",
            "squeezenet1_1",
            "densenet121",
            "regnet_y_400mf",
            "convnext_tiny",
            "vgg11_bn",
            "mnasnet0_5",
            "swin_t",
        )
    },
    googlenet=torchvision_classifier("googlenet", 96, init_weights=False, aux_logits=False),
    inception_v3=torchvision_classifier("inception_v3", 96, init_weights=False, aux_logits=False),
    alexnet=torchvision_classifier("alexnet", 96),
    vit_b_16=torchvision_classifier("vit_b_16", 32, image_size=32),
    deeplabv3_mobilenet=torchvision_segmenter("deeplabv3_mobilenet_v3_large"),
    lraspp_mobilenet=torchvision_segmenter("lraspp_mobilenet_v3_large"),
    fcn_resnet50=torchvision_segmenter("fcn_resnet50"),
    ssdlite_heads=torchvision_detector,
    fasterrcnn_pyramid=torchvision_pyramid,
)
_add(
    "timm",
    **{
        name: timm_classifier(name)
        for name in (
            "mobilenetv4_conv_small",
            "mobilenetv3_small_050",
            "ghostnet_100",
            "regnety_002",
            "resnetv2_50",
            "repvgg_a0",
            "mobilevit_xxs",
            "edgenext_xx_small",
            "poolformer_s12",
            "mobileone_s0",
            "repvit_m0_9",
            "efficientnet_lite0",
            "tinynet_e",
            "fastvit_t8",
            "starnet_s1",
        )
    },
    mixer=timm_classifier("mixer_s32_224", 64, img_size=64),
    deit_tiny=timm_classifier("deit_tiny_patch16_224", 64, img_size=64),
    levit_128s=timm_classifier("levit_128s", 224),
    efficientformer_l1=timm_classifier("efficientformer_l1", 224),
    tiny_vit_5m=timm_classifier("tiny_vit_5m_224", 224),
)
_text = {"vocab_size": 100, **_SMALL}
_add(
    "transformers",
    bert_tiny=transformer("BertForSequenceClassification", "BertConfig", tokens, num_labels=4, **_text),
    roberta_tiny=transformer("RobertaForSequenceClassification", "RobertaConfig", tokens, num_labels=4, **_text),
    distilbert_tiny=transformer(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        tokens,
        vocab_size=100,
        dim=64,
        n_layers=2,
        n_heads=2,
        hidden_dim=128,
    ),
    gpt2_tiny=transformer("GPT2LMHeadModel", "GPT2Config", tokens, vocab_size=100, n_embd=64, n_layer=2, n_head=2),
    llama_tiny=transformer("LlamaForCausalLM", "LlamaConfig", tokens, **_text),
    vit_hf=transformer(
        "ViTForImageClassification", "ViTConfig", lambda: images(32), image_size=32, patch_size=8, **_SMALL
    ),
    mobilevit_hf=transformer(
        "MobileViTForImageClassification", "MobileViTConfig", lambda: images(64), image_size=64, num_labels=10
    ),
    wav2vec2_tiny=transformer(
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        sounds,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=32,
        **_SMALL,
    ),
)
_add(
    "ultralytics",
    yolov8n=yolo("DetectionModel", "yolov8n.yaml"),
    yolo11n=yolo("DetectionModel", "yolo11n.yaml"),
    yolov8n_seg=yolo("SegmentationModel", "yolov8n-seg.yaml"),
    yolo11n_cls=yolo("ClassificationModel", "yolo11n-cls.yaml"),
)
_add(
    "torch",
    crnn_gru=crnn(nn.GRU),
    crnn_lstm=crnn(nn.LSTM),
    unet=lambda: (UNet(), images(32)),
    video=lambda: (Video(), torch.randn(8, 1, 6, 12, 12, generator=torch.Generator().manual_seed(0))),
    lenet=lambda: (
        nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 120),
            nn.ReLU(),
            nn.Linear(120, 10),
        ),
        images(28, 1),
    ),
)


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
        noise: Relative deviation of what is added to every value before it is rounded; float32 rounds by about 1e-7.
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
        outputs = quantized(inputs[:2])
        expected = own_outputs(quantized, allocation, inputs[:2])
        nearly = own_outputs(quantized, allocation, inputs[:2], noise=1e-7)
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; all by default")
    parser.add_argument("--out", type=Path, help="JSON file; networks that it has are not run again")
    parser.add_argument("--table", type=Path, help="print the table of such a file and do nothing else")
    given = parser.parse_args()
    if given.table is not None:
        print(table(json.loads(given.table.read_text())))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out and given.out.exists() else []
    missing = {library for library, _ in NETWORKS.values() if importlib.util.find_spec(library) is None}
    if missing:
        print(f"left out, as they are not installed: {', '.join(sorted(missing))}", file=sys.stderr)
    for name in given.names or NETWORKS:
        if NETWORKS[name][0] in missing or name in {row["network"] for row in rows}:
            continue
        try:
            rows.append(row_of(name))
        except Exception as error:  # a row with the reason says more than a run that ends
            rows.append({"network": name, "library": NETWORKS[name][0], "failed": f"{type(error).__name__}: {error}"})
        print(json.dumps(rows[-1]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
