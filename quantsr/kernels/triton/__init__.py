"""Triton kernels for CUDA GPUs; in Triton's interpreter (``TRITON_INTERPRET=1``, set before triton is imported) they
run on a CPU, slowly, for tests.

They are exact on an H200, and there slower than bf16 on the layers of Stable Diffusion 2.1: see docs/integers.md.
"""
