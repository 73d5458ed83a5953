"""The C text of a network's steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from amed_env._version import __version__
from amed_env.deploy.c.lowering import Lowered, is_padded
from amed_env.deploy.c.moves import MOST_AXES, Loops
from amed_env.deploy.packing import bit_stream, mirrored_channels, unsigned_codes
from amed_env.problem.memory_plan import BYTE
from amed_env.quantization.codes import Format
from amed_env.support.files import write_atomically
from amed_env.tracing.execution.steps import (
    ConvertStep,
    ElementStep,
    LayerStep,
    MoveStep,
    PoolStep,
    Step,
    Tensor,
    sizes_of,
)

Epilogue = Literal["float", "fixed"]

Bias = Literal["float", "int32"]

_SUM_WITH_BIAS = "if (layer->bias) sum += layer->bias[channel];\n        "
_FLOAT_EPILOGUE = """float value = (float)sum * {scaled};
        {bias}if (addend) value += value_of(addend, addend_format, at);
        if (codes) keep(codes, written, at, code_of(value, written));
        else if (mean) add_to(&total, clamped(value, low, high));
        else values[at] = clamped(value, low, high);"""
_FLOAT_BIAS = "if (layer->bias) value += layer->bias[channel];\n        "
# 64 bits hold a 32-bit sum times a 31-bit multiplier; microcontrollers multiply and add these in one instruction.
_FIXED_EPILOGUE = """int64_t exact = (int64_t)sum * layer->multiplier[channel];
        {bias}if (addend && addend_format)
          exact += (int64_t)(code_at(addend, addend_format, at) - addend_format->zero) * layer->addend_multiplier;
        if (addend && !addend_format && codes)
          exact += (int64_t)(((const float *)addend)[at] * written->inverse * (float)((int64_t)1 << layer->shift));
        if (codes) {{
          int64_t code = written->zero + ((exact + ((int64_t)1 << (layer->shift - 1))) >> layer->shift);
          code = code < written->low ? written->low : code > written->high ? written->high : code;
          keep(codes, written, at, (uint8_t)code);
        }} else {{
          float value = ldexpf((float)exact, -layer->shift);
          if (addend && !addend_format) value += ((const float *)addend)[at];
          value = clamped(value, low, high);
          if (mean) add_to(&total, value);
          else values[at] = value;
        }}"""
_FIXED_BIAS = "if (layer->bias) exact += layer->bias[channel];\n        "


@dataclass(frozen=True)
class Sizes:
    """What the text needs, in bytes.

    Attributes:
        weights: Packed weights.
        ideal_weights: Weights at their widths, without rounding up to bytes.
        tables: Scales, biases and the marks of mirrored channels.
        arena: Results of steps, which share memory.
        row: Weights of one output channel, unpacked.
        codes: A table of codes, where a layer reads those of another width.
    """

    weights: int
    ideal_weights: float
    tables: int
    arena: int
    row: int
    codes: int

    @property
    def ram(self) -> int:
        """Bytes of static memory; input and output are the caller's."""
        return self.arena + self.row + self.codes


def write_c(
    lowered: Lowered,
    folder: Path,
    name: str,
    *,
    scales_first: bool,
    epilogue: Epilogue = "float",
    bias: Bias = "float",
    note: str = "",
    traced: bool = False,
) -> Sizes:
    """Write `model.c`, `model.h`, `main.c` and a `Makefile`.

    Args:
        lowered: The network.
        folder: Where; it is made.
        name: Of the network, for a comment.
        scales_first: See `Program`.
        epilogue: How sums become codes: `float` as the evaluator does it, `fixed` with 32-bit multipliers and shifts.
        bias: How biases are kept: with all their digits (`float`; with a fixed epilogue as 64-bit integers), or as
            32-bit integers that are added to the sums, as integer-only devices have them.
        note: What was exported, for a comment.
        traced: Whether the codes of every layer are written to the standard output, to find where two runs part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(lowered, scales_first, epilogue, bias, traced)
    texts = {
        "model.c": writer.text(name, note),
        "model.h": _header(lowered, name),
        "main.c": _resource("main.c"),
        "Makefile": _resource("Makefile.txt"),
    }
    for file, text in texts.items():
        write_atomically(folder / file, text.encode())
    return writer.sizes


def _resource(name: str) -> str:
    return (files("amed_env.deploy.c") / name).read_text(encoding="utf-8")


def _used_kernels(text: str, calls: list[str]) -> str:
    """The kernels that are called, and what they need."""
    called = {call.split("(")[0] for call in calls}
    parts = re.split(r"^/\* kernel: ([a-z ]+) \*/\n", text, flags=re.MULTILINE)
    kept = [parts[0]]
    for users, part in zip(parts[1::2], parts[2::2], strict=True):
        if called & set(users.split()):
            kept.append(part)
    return "".join(kept)


def _header(lowered: Lowered, name: str) -> str:
    shapes = [" x ".join(map(str, tensor.shape[1:])) for tensor in (lowered.input, lowered.output)]
    return f"""/* {_comment(name)}, quantized; made by amed_env {__version__}. */

#ifndef MODEL_H
#define MODEL_H

#define MODEL_INPUTS {lowered.input.elements} /* {shapes[0]} */
#define MODEL_OUTPUTS {lowered.output.elements} /* {shapes[1]} */

/* One sample; not reentrant, as results of layers lie in static memory. */
void model_run(const float *input, float *output);

#endif
"""


def _comment(text: str) -> str:
    """Text that ends no comment, on one line, in ASCII."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in text)
    return printable.replace("*/", "* /").replace("/*", "/ *")


class _Writer:
    def __init__(self, lowered: Lowered, scales_first: bool, epilogue: Epilogue, bias: Bias, traced: bool) -> None:
        self._lowered, self._scales_first, self._fixed = lowered, scales_first, epilogue == "fixed"
        self._bias, self._traced = bias, traced
        self._plan = lowered.plan
        self._constants: list[str] = []
        self._formats: dict[str, str] = {}
        self._weights = self._ideal = self._tables = 0.0
        self._row, self._codes = 1, 0

    @property
    def sizes(self) -> Sizes:
        """Known once the text is made."""
        return Sizes(int(self._weights), self._ideal / 8, int(self._tables), self._plan.size, self._row, self._codes)

    def text(self, name: str, note: str) -> str:
        """`model.c`."""
        calls = [
            line for number, step in enumerate(self._lowered.execution.steps) for line in self._calls(number, step)
        ]
        given, returned = self._lowered.input, self._lowered.output
        if not self._lowered.execution.steps or returned.name == given.name:
            calls.append(f"for (int i = 0; i < {returned.elements}; i++) output[i] = input[i];")
        kernels = _used_kernels(_resource("kernels.c"), calls).replace("LARGEST_ROW", str(self._row))
        kernels = kernels.replace("PACKED", str(int(bool(self._plan.packed))))
        kernels = kernels.replace("REMAPPED", str(int(self._codes > 0)))
        kernels = kernels.replace("EPILOGUE_T", "int32_t" if self._fixed else "float")
        kernels = kernels.replace("BIAS_T", self._bias_type()).replace("EPILOGUE", self._epilogue())
        parts = [
            f"/* {_comment(name)}, quantized; made by amed_env {__version__}. {_comment(note)} */",
            "#include <math.h>\n#include <stdint.h>" + ("\n#include <stdio.h>" if self._traced else ""),
            '#include "model.h"',
            kernels,
            "\n".join(self._constants),
            f"/* Results of steps; those that are not needed at the same time share memory. */\n"
            f"static union {{ uint8_t bytes[{max(1, self._plan.size)}]; float aligned; }} arena;",
            "void model_run(const float *input, float *output) {\n  " + "\n  ".join(calls) + "\n}",
        ]
        return "\n\n".join(parts) + "\n"

    def _bias_type(self) -> str:
        if self._bias == "int32":
            return "int32_t"
        return "int64_t" if self._fixed else "float"

    def _epilogue(self) -> str:
        """What is done with each sum."""
        before = _SUM_WITH_BIAS if self._bias == "int32" else ""
        if self._fixed:
            return before + _FIXED_EPILOGUE.format(bias="" if before else _FIXED_BIAS)
        scaled = "layer->multiplier[channel]" if self._scales_first else "layer->step * layer->multiplier[channel]"
        return before + _FLOAT_EPILOGUE.format(scaled=scaled, bias="" if before else _FLOAT_BIAS)

    def _calls(self, number: int, step: Step) -> Iterable[str]:
        if isinstance(step, LayerStep):
            return self._layer(number, step)
        codes, values = self._written(step.target)
        if isinstance(step, ConvertStep):
            read, written = self._format(step.source), self._format(step.target)
            return [f"convert({self._at(step.source)}, {read}, {written}, {step.target.elements}, {codes}, {values});"]
        if isinstance(step, ElementStep):
            terms = [f"{self._at(term)}, {self._format(term)}" for term in step.sources] + ["0, 0"]
            limits = f"{_float(step.low)}, {_float(step.high)}"
            return [f"add({terms[0]}, {terms[1]}, {limits}, {step.target.elements}, {values});"]
        if isinstance(step, PoolStep):
            self._constants.append(f"static const shape_t shape_{number} = {_pool_shape(step)};")
            divisor = -1 if step.divisor is None else step.divisor
            source, read, written = self._at(step.source), self._format(step.source), self._format(step.target)
            return [f"pool(&shape_{number}, {source}, {read}, {divisor}, {written}, {codes}, {values});"]
        assert isinstance(step, MoveStep)  # others are refused
        return self._moves(number, step)

    def _moves(self, number: int, step: MoveStep) -> Iterable[str]:
        target, written = self._at(step.target), self._format(step.target)
        calls = []
        loops_of = self._lowered.loops[number]
        if is_padded(step, loops_of):
            calls.append(f"fill({target}, {written}, {step.target.elements});")
        for part, (operand, loops) in enumerate(loops_of):
            self._constants.append(f"static const loops_t loops_{number}_{part} = {_loops(loops)};")
            source, read = self._at(step.sources[operand]), self._format(step.sources[operand])
            calls.append(f"move({source}, {read}, {target}, {written}, &loops_{number}_{part});")
        return calls

    def _layer(self, number: int, step: LayerStep) -> Iterable[str]:
        layer, target = self._lowered.program.layers[step.layer], step.target
        assert layer.integers is not None and layer.scales is not None and layer.read is not None
        bits, integers = layer.precision.weight_bits, layer.integers
        channels = len(integers)
        # Height, width, input channel: the order in which the kernel goes over its window.
        ordered = np.moveaxis(integers.reshape(*integers.shape[:2], -1), 1, 2)
        stream = bit_stream(unsigned_codes(ordered, bits)[0], bits)
        self._row = max(self._row, ordered[0].size)
        self._ideal += ordered.size * bits
        self._weights += len(stream)
        # The kernel reads two bytes at a time.
        self._array("uint8_t", f"weights_{number}", [*stream.tolist(), 0], f"{layer.name}, {bits} bits")
        self._tables += 1
        mirrored = mirrored_channels(ordered, bits)
        marks = "0"
        if mirrored.any():
            marks = f"mirrored_{number}"
            packed = np.packbits(mirrored, bitorder="little")
            self._array("uint8_t", marks, packed.tolist())
            self._tables += len(packed)
        multipliers, bias, shift, of_addend = self._arithmetic(step)
        self._array("int32_t" if self._fixed else "float", f"multipliers_{number}", multipliers)
        self._tables += 4 * channels
        if bias is not None:
            self._array(self._bias_type(), f"bias_{number}", bias)
            self._tables += (8 if self._bias_type() == "int64_t" else 4) * channels
        read = layer.read.format
        fields = [
            _layer_shape(step, channels), f"weights_{number}", marks, str(bits), f"multipliers_{number}",
            "0" if bias is None else f"bias_{number}", str(shift), str(of_addend), _float(read.scale),
            self._fields(read, None),
        ]  # fmt: skip
        self._constants.append(f"static const layer_t layer_{number} = {{{', '.join(fields)}}};")
        of_target = self._lowered.format_of(target)
        written = None if of_target is None else of_target.clamped(step.low, step.high)
        addend = "0, 0"
        if step.addend is not None:
            addend = f"{self._at(step.addend)}, {self._format(step.addend)}"
        codes, values = self._written(target)
        limits = f"{_float(step.low)}, {_float(step.high)}"
        remapped = step.source.codes != (step.layer, False)
        if remapped:
            self._codes = 256
        operands = f"&layer_{number}, {self._at(step.source)}, {self._format(step.source)}, {int(remapped)}, {addend}"
        return [
            f"layer({operands}, {limits}, {self._format(target, written)}, {codes}, {values}, {int(step.mean)});",
            *self._trace(target),
        ]

    def _trace(self, target: Tensor) -> list[str]:
        """What writes a result of codes to the standard output."""
        if not self._traced or target.codes is None:
            return []
        place, format_ = self._at(target), self._format(target)
        return [f"for (int i = 0; i < {target.elements}; i++) putchar(code_at({place}, {format_}, i));"]

    def _arithmetic(self, step: LayerStep) -> tuple[list[Any], list[Any] | None, int, int]:
        """Multipliers, biases, shift, and the multiplier of the addend."""
        layer = self._lowered.program.layers[step.layer]
        assert layer.scales is not None and layer.read is not None
        read_scale = np.float32(layer.read.scale)
        exact = layer.scales.astype(np.float64) * float(read_scale)
        bias = None if layer.bias is None else layer.bias.tolist()
        if layer.bias is not None and self._bias == "int32":
            bias = layer.integer_bias(layer.scales).tolist()
        if not self._fixed:
            multipliers = layer.scales * read_scale if self._scales_first else layer.scales
            return multipliers.tolist(), bias, 0, 0
        of_target = self._lowered.format_of(step.target)
        added = None if step.addend is None else self._lowered.format_of(step.addend)
        step_out = 1.0 if of_target is None else of_target.scale
        of_addend = 0.0 if added is None else added.scale / step_out
        ratios = exact / step_out
        # The largest shift at which all multipliers fit in 31 bits: as many digits as there are.
        shift = 30 - max(math.frexp(max(float(ratios.max()), of_addend))[1], -31)
        shift = max(1, min(62, shift))
        if layer.bias is not None and self._bias == "float":
            bias = np.rint(layer.bias.astype(np.float64) / step_out * 2.0**shift).astype(np.int64).tolist()
        return _int32(ratios * 2.0**shift), bias, shift, round(of_addend * 2.0**shift)

    def _array(self, type_: str, name: str, values: list[Any], comment: str = "") -> None:
        texts = [_float(value) if type_ == "float" else str(value) for value in values]
        lines, line = [], ""
        for text in texts:
            if len(line) + len(text) > 118:
                lines.append(line)
                line = ""
            line += text + ","
        lines.append(line)
        body = "\n".join(lines)
        said = f"/* {_comment(comment)} */\n" if comment else ""
        self._constants.append(f"{said}static const {type_} {name}[] = {{\n{body}\n}};")

    def _format(self, tensor: Tensor, limits: tuple[int, int] | None = None) -> str:
        """A pointer to the format of a tensor's codes, perhaps of the smallest and largest one that is written."""
        format_ = self._lowered.format_of(tensor)
        if format_ is None:
            return "0"
        low, high = limits or (format_.low, format_.high)
        fields = self._fields(format_._replace(low=low, high=high), tensor)
        if fields not in self._formats:
            self._formats[fields] = f"format_{len(self._formats)}"
            self._constants.append(f"static const format_t {self._formats[fields]} = {fields};")
        return f"&{self._formats[fields]}"

    def _fields(self, format_: Format, tensor: Tensor | None) -> str:
        """A format, and how the codes of a tensor are stored."""
        bits, least = BYTE, 0
        if tensor is not None and tensor.name in self._plan.packed:
            all_codes = self._lowered.format_of(tensor)
            assert all_codes is not None
            bits, least = (all_codes.high - all_codes.low).bit_length(), all_codes.low
        # The inverse is rounded once, from the double that the evaluator multiplies by.
        inverse = np.float32(1.0 / format_.scale)
        scales = f"{_float(format_.scale)}, {_float(float(inverse))}"
        return f"{{{scales}, {format_.zero_point}, {format_.low}, {format_.high}, {bits}, {least}}}"

    def _at(self, tensor: Tensor) -> str:
        if tensor.name == self._lowered.input.name:
            return "input"
        if tensor.name == self._lowered.output.name:
            return "output"
        place = f"arena.bytes + {self._plan.offsets[tensor.name]}"
        return place if tensor.codes is not None else f"(float *)(void *)({place})"

    def _written(self, tensor: Tensor) -> tuple[str, str]:
        return ("0", self._at(tensor)) if tensor.codes is None else (self._at(tensor), "0")


def _layer_shape(step: LayerStep, channels: int) -> str:
    window = step.window
    sizes = [
        *sizes_of(step.source),
        *step.places,
        channels,
        *window.kernel,
        *window.stride,
        *window.padding,
    ]
    return f"{{{', '.join(map(str, [*sizes, *window.dilation, step.groups]))}}}"


def _pool_shape(step: PoolStep) -> str:
    window = step.window
    kernel = (0, 0) if step.adaptive else window.kernel
    sizes = [*sizes_of(step.source), *sizes_of(step.target), *kernel, *window.stride, *window.padding]
    return f"{{{', '.join(map(str, [*sizes, *window.dilation, 1]))}}}"


def _loops(loops: Loops) -> str:
    missing = MOST_AXES - len(loops.counts)
    counts = ", ".join(map(str, [1] * missing + list(loops.counts)))
    steps = [", ".join(map(str, [0] * missing + list(values))) for values in (loops.source_steps, loops.target_steps)]
    return f"{{{{{counts}}}, {{{steps[0]}}}, {{{steps[1]}}}, {loops.source_offset}, {loops.target_offset}}}"


def _float(value: float) -> str:
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = f"{float(np.float32(value)):.9g}"
    return f"{text}f" if any(mark in text for mark in ".en") else f"{text}.0f"


def _int32(values: npt.NDArray[np.float64]) -> list[int]:
    return np.clip(np.rint(values), -(2**31), 2**31 - 1).astype(np.int64).tolist()  # type: ignore[no-any-return]
