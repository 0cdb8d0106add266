"""OpenVINO's core: one for the whole process, and never given up."""

from functools import cache

import openvino as ov


@cache
def core() -> ov.Core:
    """The core of this process.

    Every core gives signal handlers a stack and takes it back at its end. Of two whose lives overlap, the one that ends
    last restores the stack of the other, which is gone: the next signal that has a handler, as when a worker of a
    data loader ends, would kill the process (OpenVINO 2026.4, Linux).
    """
    return ov.Core()
