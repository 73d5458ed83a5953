"""Networks with trained weights, and the loading of weights."""

from amed_env.networks.digits_cnn import DigitsCNN, pretrained_digits_cnn
from amed_env.networks.fashion_cnn import FashionCNN, pretrained_fashion_cnn
from amed_env.networks.mlperf_tiny import TinyDsCNN, TinyResNet8, ds_cnn, pretrained_ds_cnn, pretrained_resnet8, resnet8
from amed_env.networks.resnet_cifar import CifarResNet, pretrained_resnet20, pretrained_resnet56, resnet20, resnet56
from amed_env.networks.weights import load_weights, weights_digest

__all__ = [
    "CifarResNet",
    "DigitsCNN",
    "FashionCNN",
    "TinyDsCNN",
    "TinyResNet8",
    "ds_cnn",
    "load_weights",
    "pretrained_digits_cnn",
    "pretrained_ds_cnn",
    "pretrained_fashion_cnn",
    "pretrained_resnet8",
    "pretrained_resnet20",
    "pretrained_resnet56",
    "resnet8",
    "resnet20",
    "resnet56",
    "weights_digest",
]
