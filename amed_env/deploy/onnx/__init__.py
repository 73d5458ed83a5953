"""ONNX and QONNX: a network by operators that runtimes have, with its weights at the widths of the allocation.

What is no layer (norms, softmax, reshapes) is written by torch's own exporter, so every network that the package can
capture has an ONNX form; each layer becomes a few standard operators around integers of our own.
"""

from amed_env.deploy.onnx.artefact import OnnxArtefact
from amed_env.deploy.onnx.difference import first_difference
from amed_env.deploy.onnx.qonnx import run_qonnx, write_qonnx
from amed_env.deploy.onnx.runtime import run_onnx
from amed_env.deploy.onnx.write import write_onnx

__all__ = ["OnnxArtefact", "first_difference", "run_onnx", "run_qonnx", "write_onnx", "write_qonnx"]
