"""Triton kernels for CUDA GPUs; in Triton's interpreter (``TRITON_INTERPRET=1``, set before triton is imported) they
run on a CPU, slowly, for tests.

Exact on an H100; there faster than bf16 on Stable Diffusion 2.1's convolutions, and slower on most of its linear
layers: see docs/integers.md.
"""
