"""Networks whose modules do not tell what runs: each with its inputs and the layers that it has."""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune


@dataclass(frozen=True)
class Odd:
    """A network, what it is called with, and the names of its layers."""

    make: Callable[[], nn.Module]
    inputs: Any
    layers: tuple[str, ...]


NETWORKS: dict[str, Odd] = {}


def images(channels=3, size=8, count=5):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(channels * size))


def rows(features=6, count=5):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(features))


def series(features=6, length=9, count=5):
    return torch.randn(count, length, features, generator=torch.Generator().manual_seed(features + length))


def odd(name, inputs, *layers):
    """Register the function that makes a network."""

    def register(make):
        @functools.wraps(make)
        def settled():
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = make()
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.3, 3)
                    if module.affine:
                        nn.init.uniform_(module.weight, 0.3, 2)
                        nn.init.uniform_(module.bias, -0.5, 0.5)
            return network.eval()

        NETWORKS[name] = Odd(settled, inputs, layers)
        return settled

    return register


class Calling(nn.Module):
    """A network of given modules, whose `forward` is a function."""

    def __init__(self, function, **modules):
        super().__init__()
        self._function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs, **keywords):
        return self._function(self, *inputs, **keywords)


def head(channels, size=2):
    return nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(channels * size * size, 4)


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@odd("weight-standardised convolutions", images(), "0", "2", "6")
def _():
    return nn.Sequential(StandardizedConv(3, 8, 3), nn.ReLU(), StandardizedConv(8, 8, 3), nn.ReLU(), *head(8))


class CosineLinear(nn.Linear):
    def forward(self, x):
        return 8 * F.linear(F.normalize(x), F.normalize(self.weight))


@odd("cosine classifier", rows(), "0", "2")
def _():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), CosineLinear(8, 4, bias=False))


class SameConv(nn.Conv2d):
    """Pads by its own attributes, as TensorFlow does."""

    def forward(self, x):
        size, stride = x.shape[2], self.stride[0]
        pad = max((-(-size // stride) - 1) * stride + self.kernel_size[0] - size, 0)
        if pad > 0:
            x = F.pad(x, (pad // 2, pad - pad // 2) * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride)


@odd("padding by shape", images(size=9), "0", "4")
def _():
    return nn.Sequential(SameConv(3, 8, 3, 2), nn.ReLU(), *head(8))


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


@odd("norms with an activation inside", images(), "0", "2", "6")
def _():
    return nn.Sequential(nn.Conv2d(3, 8, 3), ActivatedNorm(8), nn.Conv2d(8, 8, 3), ActivatedNorm(8), *head(8))


@odd("hooks", images(), "0", "2", "5")
def _():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), *head(8))
    network[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3 + 1,))
    network[0].register_forward_hook(lambda module, inputs, outputs: outputs.abs())
    network[1].register_forward_hook(lambda module, inputs, outputs: torch.relu(outputs))
    network.register_forward_hook(lambda module, inputs, outputs: outputs - 1)
    return network


@odd("replaced forward", images(), "0", "4")
def _():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head(8))
    original = network[0].forward
    network[0].forward = lambda x: 2 * original(x) + 1
    return network


@odd("batch norm of two names", images(), "conv", "head.2")
def _():
    network = Calling(lambda self, x: self.head(self.post(self.conv(x))), conv=nn.Conv2d(3, 8, 3))
    network.norm = nn.BatchNorm2d(8)
    network.post, network.head = nn.Sequential(network.norm, nn.ReLU()), nn.Sequential(*head(8))
    return network


@odd("view behind a convolution", images(), "conv", "fc")
def _():
    return Calling(
        lambda self, x: self.fc(torch.relu(self.conv(x)).view(x.size(0), -1)),
        conv=nn.Conv2d(3, 4, 3),
        fc=nn.Linear(144, 4),
    )


@odd("forward reads its layers", images(), "conv", "fc")
def _():
    return Calling(
        lambda self, x: self.fc(self.conv(x.to(self.conv.weight.dtype))[:, :, :: self.conv.stride[0]].mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3, stride=2),
        fc=nn.Linear(8, 4),
    )


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


@odd("parametrizations", rows(), "0", "2", "4")
def _():
    network = nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(), parametrizations.orthogonal(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)
    )
    parametrize.register_parametrization(network[0], "weight", Symmetric())
    return network


@odd("weight norm and spectral norm", series().transpose(1, 2), "0", "2", "5")
def _():
    return nn.Sequential(
        nn.utils.weight_norm(nn.Conv1d(6, 4, 3)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.utils.spectral_norm(nn.Linear(20, 3)),
    )


@odd("pruned", images(), "0", "4")
def _():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head(8))
    prune.l1_unstructured(network[0], "weight", 0.5)
    prune.ln_structured(network[4], "weight", 0.3, n=2, dim=0)
    return network


class Functional(nn.Module):
    """Convolutions and products with weights of no layer; names that are equal but for a dot."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4, 1, 3, 3))
        self.part = nn.Module()
        self.part.weight, self.part_weight = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        x = F.conv2d(torch.relu(F.conv2d(x, self.first, stride=2, padding=1)), self.depthwise, groups=4, padding="same")
        return torch.relu(F.linear(x.mean((2, 3)), self.part.weight)) @ self.part_weight


@odd("functional layers", images(), "first", "depthwise", "part", "part#2")
def _():
    return Functional()


@odd("norms in odd places", images(), "1", "8")
def _():
    return nn.Sequential(
        *(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.BatchNorm2d(4)),
        *(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 5), nn.BatchNorm1d(5, affine=False)),
    )


@odd("one layer and two norms", images(), "conv", "fc")
def _():
    return Calling(
        lambda self, x: self.fc((self.one(self.conv(x)) + self.two(self.conv(x))).mean((2, 3))),
        conv=nn.Conv2d(3, 4, 3),
        one=nn.BatchNorm2d(4),
        two=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 3),
    )


@odd("norm over time steps", series(), "0", "4")
def _():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(9), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3))


@odd("transposed convolutions", images(4), "0", "3", "6")
def _():
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (0, 1), output_padding=(1, 0), groups=2, dilation=(1, 2)),
        *(nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 6, 3, groups=6, bias=False)),
        *head(6, 1),
    )


@odd("depthwise, dilated, padded at one side", images(4, 14), "0", "2", "5", "6", "9")
def _():
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 3, groups=4, dilation=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(4, 12, 3, groups=4, dilation=(1, 3)), nn.ReLU6(), nn.ZeroPad2d((0, 1, 2, 0))),
        nn.Conv2d(12, 6, (1, 3), stride=(2, 1), groups=3),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
        *head(8),
    )


@odd("three dimensions", torch.randn(3, 4, 4, 6, 6, generator=torch.Generator().manual_seed(0)), "0", "3", "5")
def _():
    return nn.Sequential(
        *(nn.Conv3d(4, 4, (1, 3, 3), groups=2, padding=(0, 1, 1)), nn.BatchNorm3d(4), nn.ReLU()),
        *(nn.Conv3d(4, 4, 2, groups=4, stride=2), nn.Flatten(), nn.Linear(72, 3)),
    )


@odd("concatenations", images(), "one", "two", "mix", "head.2")
def _():
    def forward(self, x):
        left, right = torch.relu(self.one(x)) * 30, self.two(x)
        return self.head(self.mix(torch.cat([left, left, torch.cat([right], 1), F.adaptive_avg_pool2d(x, 6)], 1)))

    modules = {"one": nn.Conv2d(3, 4, 3), "two": nn.Conv2d(3, 4, 3), "mix": nn.Conv2d(15, 8, 3)}
    return Calling(forward, **modules, head=nn.Sequential(*head(8)))


@odd("interpolation and shuffles", images(), "conv", "fc")
def _():
    def forward(self, x):
        x = self.conv(x)
        x = self.up(x) + F.interpolate(x, size=(12, 12), mode="bicubic", align_corners=True)
        x = F.pixel_unshuffle(F.pixel_shuffle(F.channel_shuffle(x, 2), 2), 4)
        return self.fc(x.amax((2, 3)))

    return Calling(
        forward, conv=nn.Conv2d(3, 4, 3), up=nn.Upsample(scale_factor=2, mode="bilinear"), fc=nn.Linear(16, 3)
    )


@odd("complex numbers", rows(), "first", "fc")
def _():
    def forward(self, x):
        turned = torch.view_as_complex(self.first(x).view(x.shape[0], -1, 2)) * torch.polar(
            torch.ones(3), torch.arange(3.0)
        )
        return self.fc(torch.view_as_real(turned).flatten(1))

    return Calling(forward, first=nn.Linear(6, 6), fc=nn.Linear(6, 3))


@odd("in place", rows(), "first", "fc")
def _():
    def forward(self, x):
        x = self.first(x)
        x[:, 0] = 0
        x[:, 1:3] += 1
        x.clamp_(min=0).mul_(2)
        x[:, 2:].sub_(1)
        return self.fc(x)

    return Calling(forward, first=nn.Linear(6, 6), fc=nn.Linear(6, 3))


@odd("flags and keywords", {"x": rows(), "flag": False, "mode": "half", "scale": rows(1).abs()}, "first", "fc")
def _():
    def forward(self, x, *, flag=True, mode="whole", scale=None):
        x = torch.relu(self.first(x)) if flag else self.first(x)
        x = x / 2 if mode == "half" else x
        return self.fc(x if scale is None else x * scale)

    return Calling(forward, first=nn.Linear(6, 6), fc=nn.Linear(6, 3))


@odd(
    "masked attention",
    (series(), torch.arange(45).view(5, 9) % 9 > 6),
    *("attention.in_proj", "attention.matmul", "attention.matmul#2", "attention.out_proj", "fc"),
)
def _():
    return Calling(
        lambda self, x, mask: self.fc(self.attention(x, x, x, key_padding_mask=mask)[0].mean(1)),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        fc=nn.Linear(6, 3),
    )


@odd(
    "GRU", series(length=3), *(f"gru.weight_{side}_l0{way}" for way in ("", "_reverse") for side in ("ih", "hh")), "fc"
)
def _():
    return Calling(
        lambda self, x: self.fc(self.gru(x)[0][:, -1]),
        gru=nn.GRU(6, 5, batch_first=True, bidirectional=True),
        fc=nn.Linear(10, 3),
    )


@odd("recurrent cell in a loop", series(length=4), "cell.weight_hh", "cell.weight_ih", "fc")
def _():
    def forward(self, x):
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.fc(state[0])

    return Calling(forward, cell=nn.LSTMCell(6, 5), fc=nn.Linear(5, 3))


@odd("tied embedding", torch.arange(35).view(5, 7) % 20, "embedding", "middle", "decoder")
def _():
    network = Calling(
        lambda self, x: self.decoder(torch.tanh(self.middle(self.embedding(x).mean(1)))),
        embedding=nn.Embedding(20, 6),
        middle=nn.Linear(6, 6),
        decoder=nn.Linear(6, 20, bias=False),
    )
    network.decoder.weight = network.embedding.weight
    return network


@odd("one batch size", images(), "conv", "fc")
def _():
    return Calling(lambda self, x: self.fc(self.conv(x).view(5, -1)), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(144, 3))


ATTENTION = ("self_attn.in_proj", "self_attn.matmul", "self_attn.matmul#2", "self_attn.out_proj", "linear1", "linear2")


@odd("transformer with a causal mask", series(), *(f"encoder.layers.0.{layer}" for layer in ATTENTION), "fc")
def _():
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    return Calling(
        lambda self, x: self.fc(
            self.encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))[:, -1]
        ),
        encoder=nn.TransformerEncoder(layer, 1),
        fc=nn.Linear(6, 3),
    )


@odd(
    "a mask that leaves nothing to attend to",
    (series(), torch.arange(5 * 81).view(5, 1, 9, 9) % 81 > 17),
    *("query", "key", "matmul", "matmul#2", "fc"),
)
def _():
    def forward(self, x, allowed):
        query, key, value = (part.unsqueeze(1) for part in (self.query(x), self.key(x), x))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.fc(attended.squeeze(1))

    return Calling(forward, query=nn.Linear(6, 4), key=nn.Linear(6, 4), fc=nn.Linear(6, 3))


@odd("products with factors", rows(), "first", "second", "fc")
def _():
    def forward(self, x):
        x = torch.addmm(self.first.bias, x, self.first.weight.t(), beta=0.5, alpha=2).relu()
        return self.fc(torch.addmm(self.second.bias, x, self.second.weight.t(), beta=0))

    return Calling(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 5), fc=nn.Linear(5, 3))


@odd("rows of a bounded norm", torch.arange(35).view(5, 7) % 20, "table", "fc")
def _():
    return Calling(
        lambda self, x: self.fc(self.table(x).mean(1)), table=nn.Embedding(20, 6, max_norm=2.0), fc=nn.Linear(6, 3)
    )


@odd("a class token for every sample", series(), "fc")
def _():
    network = Calling(
        lambda self, x: self.fc(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)).mean(1), fc=nn.Linear(6, 3)
    )
    network.token = nn.Parameter(torch.randn(1, 1, 6))
    return network


@odd("transposed convolutions at the end", images(), "up", "last")
def _():
    return nn.Sequential(
        OrderedDict(up=nn.ConvTranspose2d(3, 4, 3, stride=2), act=nn.ReLU(), last=nn.ConvTranspose2d(4, 2, 2))
    )
