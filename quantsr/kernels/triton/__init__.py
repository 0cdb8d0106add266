"""Triton kernels for CUDA GPUs; in Triton's interpreter (``TRITON_INTERPRET=1``, set before triton is imported) they
run on a CPU, slowly, for tests.

They were written for the tensor cores of NVIDIA Ampere and later. None of their configurations was timed.
"""
