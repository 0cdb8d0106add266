"""Integer products: matrix products and convolutions of 8-bit and 4-bit codes, exact, on any device.

    quantize(x, ...)          float values to int8 codes
    product(x, weight, ...)   int8 codes times int8 or packed int4 codes, summed in int32, then scaled to float

:mod:`quantsr.kernels.reference` computes both in plain PyTorch, :mod:`quantsr.kernels.triton` on a CUDA GPU;
:mod:`quantsr.kernels.dispatch` chooses. Nothing here imports triton before a kernel is called.
"""

from quantsr.kernels.dispatch import Backend, accumulate, product, quantize, quantize_tokens
from quantsr.kernels.operands import Branch, QuantizedInput, QuantizedWeight
from quantsr.kernels.window import Window

__all__ = [
    "Backend",
    "Branch",
    "QuantizedInput",
    "QuantizedWeight",
    "Window",
    "accumulate",
    "product",
    "quantize",
    "quantize_tokens",
]
