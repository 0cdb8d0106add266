"""Compile the kernels for a compute capability, without a GPU, and print what is in their machine code.

    python compile_for_gpu.py CAPABILITY

One line for every variant: its name, the int8 tensor-core instructions, its share of the GPU's shared memory, the sizes
in bytes of asynchronous copies, how many copies may be under way while the tensor cores multiply, and the bytes of its
widest stores. Of attention, with the aligned channels of a head, the same up to the memory. Of quantizing, the bytes of
its widest reads.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantsr.kernels.triton.attention import attention_kernel
from quantsr.kernels.triton.launch import FUSED, attention_block
from quantsr.kernels.triton.product import product_kernel
from quantsr.kernels.triton.quantize import quantize_kernel

POINTERS = {
    "x": "i8", "x_sums": "i32", "x_scale": "fp32", "x_zero": "fp32",
    "w": "i8", "w_sums": "i32", "w_scale": "fp32", "w_zero": "fp32",
    "starts": "i32", "sizes": "i32", "bias": "fp32", "hidden": "bf16", "up": "bf16", "y": "bf16",
}  # fmt: skip
CONV3X3 = {
    "TAPS": 9, "KERNEL_W": 3, "STRIDE_H": 1, "STRIDE_W": 1, "PAD_H": 1, "PAD_W": 1, "DILATION_H": 1, "DILATION_W": 1,
    "PARTS": 1, "PACKED": False, "BY_TOKEN": False, "WEIGHT_ZERO": False, "POINTWISE": False, "BIAS": True,
    "BLOCK_R": 32, "SUMS_ONLY": False, "SHARED": False, "CHANNELS_FIRST": False,
    "BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128,
}  # fmt: skip
LINEAR = {"TAPS": 1, "KERNEL_W": 1, "PAD_H": 0, "PAD_W": 0, "POINTWISE": True}
VARIANTS = {
    "conv3x3_w8a8": {},
    "conv3x3_w8a8_channels_first": {"CHANNELS_FIRST": True},
    "conv3x3_w8a8_shared": {"SHARED": True, "BLOCK_M": 64, "BLOCK_R": 0},
    "conv3x3_w4a4": {"PACKED": True},
    "conv3x3_stride2_two_parts": {"STRIDE_H": 2, "STRIDE_W": 2, "PARTS": 2, "WEIGHT_ZERO": True},
    "linear_w8a8": LINEAR | {"BLOCK_R": 0},
    "linear_w4a4_by_token": LINEAR | {"PACKED": True, "BY_TOKEN": True},
    "linear_w4a4_groups": LINEAR | {"PACKED": True, "BY_TOKEN": True, "PARTS": 5, "BLOCK_K": 64},
}
QUANTIZE = {
    "x": "*bf16", "codes": "*i8", "sums": "*i32", "scale": "*fp32", "zero": "*fp32",
    "firsts": "*i32", "starts": "*i32", "sizes": "*i32", "ratio": "fp32", "levels": "fp32", "smallest": "fp32",
}  # fmt: skip
ATTENTION = {
    **{f"{x}_sums": "*i32" for x in "qkv"},
    **{f"{x}_{name}": "*fp32" for x in "qkvp" for name in ("scale", "zero")},
    "q": "*i8", "k": "*i8", "v": "*i8", "key_scale": "*fp32", "y": "*bf16", "root": "fp32",
}  # fmt: skip
HEADS = (64, 128, 192, 512)
"""Aligned channels: of Stable Diffusion 2.1 (and of 40 channels), 80, 160, and of the autoencoder."""
ALIGNED = ("k", "row", "n_count", "positions", "stride_image", "stride_h", "stride_w")
"""Sizes that are multiples of 16, as the launcher finds those of Stable Diffusion."""

SHARED_MEMORY = {86: 99, 90: 227}
"""KiB of shared memory that a program may have, by compute capability."""


def compiled(kernel, types: dict[str, str], constants: dict, target: GPUTarget, warps: int = 4, stages: int = 4):
    """PTX of a kernel, and its bytes of shared memory; arguments without a type are int32."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [number for number, name in enumerate(names) if signature[name].startswith("*") or name in ALIGNED]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(number,): [["tt.divisibility", 16]] for number in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, **FUSED}
    found = triton.compile(source, target=target, options=options)
    return found.asm["ptx"], found.metadata.shared


def products_in(ptx: str) -> list[str]:
    """The int8 tensor-core instructions."""
    return sorted(set(re.findall(r"(?:wgmma\.mma_async|mma)\.sync[\w.]*s32\.s8\.s8[\w.]*", ptx)))


def main() -> None:
    capability = int(sys.argv[1])
    target, memory = GPUTarget("cuda", capability, 32), SHARED_MEMORY[capability] * 1024
    pointers = {name: f"*{kind}" for name, kind in POINTERS.items()}
    for name, changes in VARIANTS.items():
        ptx, shared = compiled(product_kernel, pointers, CONV3X3 | changes, target)
        products = products_in(ptx)
        copies = sorted({int(size, 16) for size in re.findall(r"cp\.async\.c\w\.shared\.global.*?, (0x\w+)", ptx)})
        ahead = max(map(int, re.findall(r"cp\.async\.wait_group\s+(?:0x)?(\d+)", ptx)))
        wide = max(int(n) for n in re.findall(r"st\.global\.v(\d)\.b32", ptx))
        print(name, ",".join(products), shared / memory, ",".join(map(str, copies)), ahead, 4 * wide)
    for channels in HEADS:
        block = attention_block(channels, memory)
        constants = {
            "HALF": 128, "KEY_SCALE": True, "K": channels, "BLOCK_C": triton.next_power_of_2(channels),
            "BLOCK_Q": block.queries, "BLOCK_K": block.keys,
        }  # fmt: skip
        ptx, shared = compiled(attention_kernel, ATTENTION, constants, target, 8, block.stages)
        print(f"attention_{channels}", ",".join(products_in(ptx)), shared / memory)
    for dynamic in (False, True):
        constants = {
            "PARTS": 1, "HALF": 128, "BY_TOKEN": dynamic, "DYNAMIC": dynamic, "SYMMETRIC": False, "SUMS": dynamic,
            "PADDED": not dynamic, "FILLED": False, "WHOLE_TOKENS": dynamic,
            "ALIGN": 64, "BLOCK_M": 1 if dynamic else 32, "BLOCK_K": 2048 if dynamic else 64, "stride_channel": 1,
        }  # fmt: skip
        ptx, _ = compiled(quantize_kernel, QUANTIZE, constants, target)
        wide = max(int(n) for n in re.findall(r"ld\.global\.v(\d)\.b32", ptx))
        print("quantize_dynamic" if dynamic else "quantize_static", 4 * wide)


if __name__ == "__main__":
    main()
