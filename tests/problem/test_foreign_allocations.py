"""Widths of other tools' files, against what a person reads in them."""

import json

import pytest

from amed_env import Layer, Workload
from amed_env.errors import AllocationError, InputError
from amed_env.tasks.make import load_allocation

NAMES = ("stem", "block.conv", "head")
WORKLOAD = Workload("net", tuple(Layer(name, "linear", 1, 4, 4) for name in NAMES))


def aimet(version):
    bits = {"stem": 8, "block.conv": 4, "head": 4}
    if version == "0.6.1":
        return {
            "version": version,
            "activation_encodings": {
                "stem": {"input": {"0": {"bitwidth": 8, "is_symmetric": "False", "scale": 0.1, "offset": 0}}},
                "block.conv": {
                    "input": {"0": {"bitwidth": 6}},
                    "output": {"0": {"bitwidth": 16}},
                },
                "head": {"input": {"0": {"bitwidth": 4}}},
                "relu": {"output": {"0": {"bitwidth": 8}}},
            },
            "param_encodings": {
                **{f"{name}.weight": [{"bitwidth": width, "scale": 0.1}] * 3 for name, width in bits.items()},
                "head.bias": [{"bitwidth": 32}],
            },
        }
    return {
        "version": version,
        "activation_encodings": [{"name": "/relu/Relu_output_0", "bw": 8, "dtype": "INT"}],
        "param_encodings": [
            *({"name": f"{name}.weight", "bw": width, "dtype": "INT"} for name, width in bits.items()),
            {"name": "head.bias", "bw": 32, "dtype": "INT"},
        ],
    }


def aimet_2(written=("uint8", "uint8")):
    """As `sim.onnx.export` of aimet-torch 2.42 writes it, shortened."""
    return {
        "producer": {"name": "aimet-torch", "version": "2.42.0"},
        "version": "2.0.0",
        "encodings": [
            {"name": "stem.weight", "output_dtype": "int8", "y_scale": [0.1], "axis": 0},
            {"name": "x", "output_dtype": written[0], "y_scale": 0.02, "y_zero_point": 142},
            {"name": "block.conv.weight", "output_dtype": "int3", "y_scale": [0.1], "axis": 0},
            {"name": "getitem", "output_dtype": written[1], "y_scale": 0.01, "y_zero_point": 120},
            {"name": "head.weight", "output_dtype": "float16"},
            {"name": "head.bias", "output_dtype": "int32", "y_scale": [0.1], "axis": 0},
        ],
    }


def modelopt():
    return {
        "quant_cfg": {
            "*": {"enable": False},
            "stem.weight_quantizer": {"num_bits": 8, "axis": 0},
            "stem.input_quantizer": {"num_bits": 8, "axis": None},
            "block.conv.weight_quantizer": {"num_bits": 4, "axis": 0},
            "block.conv.input_quantizer": {"num_bits": 6, "axis": None},
            "head.weight_quantizer": {"num_bits": 4, "axis": 0},
            "head.input_quantizer": {"enable": False},
        },
        "algorithm": "max",
    }


def modelopt_rules(*own, first=()):
    """As ModelOpt 0.47 has them: patterns in order, and the last that fits decides."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            *first,
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
            {"quantizer_name": "*lm_head*", "enable": False},
            {"quantizer_name": "*", "parent_class": "nn.BatchNorm2d", "enable": False},
            {"quantizer_name": "*", "parent_class": "nn.Embedding", "enable": False},
            *own,
        ],
        "algorithm": "max",
    }


FOUR = {"quantizer_name": "block.*weight_quantizer", "enable": True, "cfg": {"num_bits": 4}}
FLOAT = {"quantizer_name": "head.input_quantizer", "enable": False}
LINEAR = {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": {"num_bits": 2}}
CONVOLUTION = {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Conv2d", "cfg": {"num_bits": 2}}
OLDER = {
    "quant_cfg": {
        "*weight_quantizer": {"num_bits": 4, "axis": 0},
        "*input_quantizer": {"num_bits": 8},
        "nn.BatchNorm2d": {"*": {"enable": False}},
        "*head*": {"enable": False},
        "default": {"enable": False},
    }
}


def read(tmp_path, document, **options):
    path = tmp_path / "widths.json"
    path.write_text(json.dumps(document))
    return [tuple(pair) for pair in load_allocation(path, WORKLOAD, **options).values()]


@pytest.mark.parametrize(
    ("document", "options", "expected"),
    [
        (aimet("0.6.1"), {}, [(8, 8), (4, 6), (4, 4)]),
        (aimet("1.0.0"), {"activation_bits": 8}, [(8, 8), (4, 8), (4, 8)]),
        (aimet("1.0.0"), {}, [(8, 8), (4, 8), (4, 8)]),
        (aimet_2(), {}, [(8, 8), (3, 8), (32, 8)]),
        (aimet_2(("uint8", "uint4")), {"activation_bits": 6}, [(8, 6), (3, 6), (32, 6)]),
        (modelopt_rules(), {}, [(8, 8), (8, 8), (8, 8)]),
        (modelopt_rules(FOUR, FLOAT), {}, [(8, 8), (4, 8), (8, 32)]),
        (modelopt_rules(first=[FOUR]), {}, [(8, 8), (8, 8), (8, 8)]),
        (modelopt_rules(LINEAR), {}, [(2, 8), (2, 8), (2, 8)]),
        (modelopt_rules(CONVOLUTION), {}, [(8, 8), (8, 8), (8, 8)]),
        (OLDER, {}, [(4, 8), (4, 8), (32, 32)]),
        (modelopt(), {}, [(8, 8), (4, 6), (4, 32)]),
        (modelopt()["quant_cfg"], {}, [(8, 8), (4, 6), (4, 32)]),
        ({"head": 2, "stem": [8, 8], "block.conv": [3, 4]}, {"activation_bits": 32}, [(8, 8), (3, 4), (2, 32)]),
    ],
)
def test_widths_are_those_that_the_file_says(tmp_path, document, options, expected):
    assert read(tmp_path, document, **options) == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (aimet_2(("uint8", "uint4")), "no width of what 'stem', 'block.conv', 'head' reads; give --activation-bits"),
        ({"stem": 4, "block.conv": 4}, "no width of the weights of 'head'"),
        ({"stem": 4, "block.conv": 4, "haed": 4}, "no layer 'haed'; did you mean 'head'"),
        ({"stem": 4, "block.conv": 4, "head": 4.5}, "bit-width 4.5 is not an integer"),
        ({"stem": 4, "block.conv": 4, "head": [4, 4, 4]}, "expected a width or a pair"),
        ({"quant_cfg": {"*head.weight_quantizer": {"num_bits": 4}}}, "no width of the weights of 'stem', 'block.conv'"),
        ({"quant_cfg": {"head.weight_quantizer": {"num_bits": [4, 3]}}}, "floating-point format"),
        ({"quant_cfg": 1}, "'quant_cfg' is int"),
        ({"quant_cfg": [1]}, "'quant_cfg' entry 0 has no 'quantizer_name'"),
        (modelopt_rules({"quantizer_name": "*", "cfg": [{"num_bits": 4}, {"num_bits": 8}]}), "quantized twice"),
        (modelopt_rules({"quantizer_name": "haed.weight_quantizer", "cfg": {"num_bits": 4}}), "no layer 'haed'"),
        ({"param_encodings": [{"bw": 4}]}, "neither an object nor a list"),
        ({"param_encodings": {"stem.weight": [{"scale": 1}]}}, "has no 'bw', 'bitwidth' or 'output_dtype'"),
        ({"layers": {}}, "'format' is None"),
        ({}, "expected a JSON object of layers"),
        ([], "expected a JSON object"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, document, message):
    with pytest.raises(AllocationError) as refused:
        read(tmp_path, document)
    assert message in str(refused.value) and "widths.json" in str(refused.value)


def test_a_file_of_ours_has_its_own_activations(tmp_path):
    layers = {name: {"w": 4, "a": 4} for name in NAMES}
    document = {"format": "amed-allocation/1", "network": "net", "layers": layers}
    assert read(tmp_path, document) == [(4, 4)] * 3
    with pytest.raises(InputError, match="leave --activation-bits out"):
        read(tmp_path, document, activation_bits=8)
