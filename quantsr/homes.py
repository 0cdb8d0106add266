"""Where weights wait while nothing computes with them: in host memory, or in a file on a disk.

A home keeps some tensors as one stretch of bytes, so that they come back as one copy and go as one: thousands of small
pieces would leave their memory with the allocator.
"""

import mmap
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from quantsr.errors import UserError

ALIGNMENT = 64
"""Bytes; where torch's own tensors begin, too, so that kernels compute the same on a copy."""


class Place(NamedTuple):
    """One tensor's in the stretch of bytes.

    Attributes:
        start: its first byte.
        shape, dtype: its own.
    """

    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        """The byte behind it."""
        return self.start + self.shape.numel() * self.dtype.itemsize

    def of(self, flat: Tensor) -> Tensor:
        """The tensor in ``flat``, a view."""
        return flat[self.start : self.stop].view(self.dtype).view(self.shape)


class Home(ABC):
    """Keeps the values of tensors, which do not change meanwhile.

    Args:
        tensors: contiguous ones, at least one.

    Attributes:
        nbytes: of all of them, gaps between them included.
        waiting: the same tensors as they are kept, on the CPU: for reading alone.
        computable: whether the models that they are of can compute with them as they wait.
    """

    computable: bool

    def __init__(self, tensors: Sequence[Tensor]):
        sizes = [-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in tensors]
        *starts, self.nbytes = accumulate(sizes, initial=0)
        self.places = [Place(start, t.shape, t.dtype) for start, t in zip(starts, tensors, strict=True)]
        self.waiting = self._views(self._keep(tensors))

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [place.of(flat) for place in self.places]

    def copies(self, device: torch.device) -> list[Tensor]:
        """Fresh copies of all tensors for use on a device, in one piece of memory."""
        return self._views(self._copy(device))

    @abstractmethod
    def _keep(self, tensors: Sequence[Tensor]) -> Tensor:
        """Take the values in; returns all bytes as they are kept, ``(nbytes,)`` uint8 on the CPU."""

    @abstractmethod
    def _copy(self, device: torch.device) -> Tensor:
        """All bytes, ``(nbytes,)`` uint8 on ``device``."""


class HostMemory(Home):
    """In the memory of the host, for weights that run on a GPU; pinned where there is CUDA, for faster copies."""

    computable = False

    def _keep(self, tensors: Sequence[Tensor]) -> Tensor:
        self._flat = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        for kept, tensor in zip(self._views(self._flat), tensors, strict=True):
            kept.copy_(tensor)
        return self._flat

    def _copy(self, device: torch.device) -> Tensor:
        # The host's copy never changes, so that nobody has to wait for the transfer but the GPU itself.
        return self._flat.to(device, non_blocking=True, copy=True)


class DiskFile(Home):
    """In a file on a disk, for weights that run on a CPU.

    The file is in the folder for temporary files (``TMPDIR``). Where the system can it has no name there: nothing is
    left behind, however the process ends. What waits is mapped, and takes memory as far as somebody reads it; copies
    are read past the mapping.

    Raises:
        UserError: there is no room for it.
    """

    computable = True

    def _keep(self, tensors: Sequence[Tensor]) -> Tensor:
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # Open as long as weights wait in it.
            for place, tensor in zip(self.places, tensors, strict=True):
                self._file.seek(place.start)
                self._file.write(_bytes(tensor.detach().cpu()))
            self._file.truncate(self.nbytes)
            self._file.flush()
        except OSError as error:
            size, folder = self.nbytes / 1e9, tempfile.gettempdir()
            raise UserError(f"offload=true needs {size:.2f} GB in {folder} ({error.strerror}): set TMPDIR") from error
        # Writing is possible, as torch wants it, and would change the process' own copy alone.
        mapped = mmap.mmap(self._file.fileno(), self.nbytes, access=mmap.ACCESS_COPY)
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def _copy(self, device: torch.device) -> Tensor:
        flat = torch.empty(self.nbytes, dtype=torch.uint8)
        self._file.seek(0)
        if self._file.readinto(_bytes(flat)) != self.nbytes:
            raise OSError(f"the file of weights in {tempfile.gettempdir()} is shorter than it was")
        return flat.to(device)


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
