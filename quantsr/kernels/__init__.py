"""Integer products: matrix products and convolutions of 8-bit and 4-bit codes, exact, on any device.

    quantize(x, ...)          float values to int8 codes
    product(x, weight, ...)   int8 codes times int8 or packed int4 codes, summed in int32, then scaled to float
    attention(q, k, v, ...)   both products of attention, of int8 codes, with the probabilities quantized between them

:mod:`quantsr.kernels.reference` computes them in plain PyTorch, :mod:`quantsr.kernels.triton` on a CUDA GPU;
:mod:`quantsr.kernels.dispatch` chooses. Nothing here imports triton before a kernel is called.
"""

from quantsr.kernels.dispatch import Backend, accumulate, attention, product, quantize, quantize_tokens
from quantsr.kernels.operands import Branch, Probabilities, QuantizedInput, QuantizedWeight
from quantsr.kernels.window import Window

__all__ = [
    "Backend",
    "Branch",
    "Probabilities",
    "QuantizedInput",
    "QuantizedWeight",
    "Window",
    "accumulate",
    "attention",
    "product",
    "quantize",
    "quantize_tokens",
]
