"""Networks with trained weights, and the loading of weights."""

from amed_env.networks.digits_cnn import DigitsCNN, pretrained_digits_cnn
from amed_env.networks.resnet_cifar import CifarResNet, pretrained_resnet20, resnet20
from amed_env.networks.weights import load_weights, weights_digest

__all__ = [
    "CifarResNet",
    "DigitsCNN",
    "load_weights",
    "pretrained_digits_cnn",
    "pretrained_resnet20",
    "resnet20",
    "weights_digest",
]
