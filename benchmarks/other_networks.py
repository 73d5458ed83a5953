"""Networks that nobody here wrote, for `networks_of_others.py`: made with random weights, each with random inputs."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

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


def run_rows(
    description: str, row_of: Callable[[str], dict[str, Any]], table: Callable[[list[dict[str, Any]]], str]
) -> None:
    """The command line of a script that finds something out about each network.

    Args:
        description: The script's docstring.
        row_of: What is found out about a network, given its name.
        table: Rows as a table of Markdown.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
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
