"""Compile the product kernel for a compute capability, without a GPU, and print what is in its machine code.

    python compile_for_gpu.py CAPABILITY

One line for every variant: its name, the int8 tensor-core instructions and the sizes in bytes of asynchronous copies.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantsr.kernels.triton.product import product_kernel
from quantsr.kernels.triton.quantize import quantize_kernel

POINTERS = {
    "x": "i8", "x_sums": "i32", "x_scale": "fp32", "x_zero": "fp32",
    "w": "i8", "w_sums": "i32", "w_scale": "fp32", "w_zero": "fp32",
    "starts": "i32", "sizes": "i32", "bias": "fp32", "hidden": "bf16", "up": "bf16", "y": "bf16",
}  # fmt: skip
CONV3X3 = {
    "TAPS": 9, "KERNEL_W": 3, "STRIDE_H": 1, "STRIDE_W": 1, "PAD_H": 1, "PAD_W": 1, "DILATION_H": 1, "DILATION_W": 1,
    "PARTS": 1, "PACKED": False, "BY_TOKEN": False, "POINTWISE": False, "BIAS": True, "BLOCK_R": 32,
    "SUMS_ONLY": False, "BLOCK_K": 64, "BLOCK_M": 128, "BLOCK_N": 128,
}  # fmt: skip
LINEAR = {"TAPS": 1, "KERNEL_W": 1, "PAD_H": 0, "PAD_W": 0, "POINTWISE": True}
VARIANTS = {
    "conv3x3_w8a8": {},
    "conv3x3_w4a4": {"PACKED": True},
    "conv3x3_stride2_two_parts": {"STRIDE_H": 2, "STRIDE_W": 2, "PARTS": 2},
    "linear_w8a8": LINEAR | {"BLOCK_R": 0},
    "linear_w4a4_by_token": LINEAR | {"PACKED": True, "BY_TOKEN": True},
}
QUANTIZE = {
    "x": "*bf16", "codes": "*i8", "sums": "*i32", "scale": "*fp32", "zero": "*fp32",
    "firsts": "*i32", "starts": "*i32", "sizes": "*i32", "ratio": "fp32", "levels": "fp32", "smallest": "fp32",
}  # fmt: skip


def compiled(kernel, types: dict[str, str], constants: dict, target: GPUTarget) -> str:
    """PTX of a kernel; arguments without a type are int32."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    # As the launcher finds it: tensors begin at multiples of 16 bytes, and k is a multiple of 64.
    aligned = [number for number, name in enumerate(names) if signature[name].startswith("*") or name == "k"]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(number,): [["tt.divisibility", 16]] for number in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": 8, "num_stages": 3}).asm["ptx"]


def main() -> None:
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    pointers = {name: f"*{kind}" for name, kind in POINTERS.items()}
    for name, changes in VARIANTS.items():
        ptx = compiled(product_kernel.fn, pointers, CONV3X3 | changes, target)
        products = sorted(set(re.findall(r"(?:wgmma\.mma_async|mma)\.sync[\w.]*s32\.s8\.s8[\w.]*", ptx)))
        copies = sorted({int(size, 16) for size in re.findall(r"cp\.async\.c\w\.shared\.global.*?, (0x\w+)", ptx)})
        print(name, ",".join(products), ",".join(map(str, copies)))
    for dynamic in (False, True):
        constants = {"PARTS": 2, "HALF": 128, "BY_TOKEN": dynamic, "DYNAMIC": dynamic, "SYMMETRIC": False}
        ptx = compiled(quantize_kernel, QUANTIZE, constants | {"ALIGN": 64, "BLOCK_M": 2, "BLOCK_K": 1024}, target)
        print("quantize_dynamic" if dynamic else "quantize_static", "div.rn" in ptx)


if __name__ == "__main__":
    main()
