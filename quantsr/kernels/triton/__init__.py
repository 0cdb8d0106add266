"""Triton kernels for CUDA GPUs; in Triton's interpreter (``TRITON_INTERPRET=1``, set before triton is imported) they
run on a CPU, slowly, for tests.

Exact on an H100; there faster than bf16 on Stable Diffusion 2.1's 3x3 convolutions, and slower on most of its other
layers: see docs/integers.md.
"""
