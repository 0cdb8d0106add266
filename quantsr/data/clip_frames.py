"""The frames of a clip, decoded only when asked for: what all sources have in common, and folders of images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from quantsr.data.degradations import to_float
from quantsr.data.files import Unusable, image_size, list_images, read_usable, written
from quantsr.errors import UserError


class Frames(ABC):
    """The frames of one clip, decoded only when asked for.

    Attributes:
        path: where the clip is.
        size: (height, width) of every frame.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        first = next(self.stream(0, 1), None)
        if first is None:
            raise UserError(f"{self.path.absolute()} has no frame.")
        self.size: tuple[int, int] = (first.shape[-2], first.shape[-1])

    @abstractmethod
    def __len__(self) -> int:
        """How many frames there are."""

    @abstractmethod
    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Frames `start` up to `stop`, one after the other, none of them kept.

        Yields:
            (3, h, w) float RGB in [0, 1].

        Raises:
            UserError: if a frame cannot be read.
        """

    def __iter__(self) -> Iterator[Tensor]:
        return self.stream()

    def check(self, decode_to: int | None = None) -> int:
        """Decode the first `decode_to` frames, None for all, for the errors of `stream`.

        Returns:
            How many they are: fewer than expected where a video's packets cannot all be decoded.
        """
        return sum(1 for _ in self.stream(0, decode_to))

    def read(self, start: int, stop: int) -> Tensor:
        """Frames `start` up to `stop` at once.

        Returns:
            (stop - start, 3, h, w) float RGB in [0, 1].

        Raises:
            UserError: if a frame cannot be read.
        """
        frames = list(self.stream(start, stop))
        if len(frames) < stop - start:
            raise UserError(f"{self.path.absolute()} ends early: {stop} frames expected, {start + len(frames)} found.")
        return torch.stack(frames)


class FolderFrames(Frames):
    """The images of a folder in natural order, all of one size.

    Args:
        path: the folder (not searched below).

    Raises:
        UserError: if the folder is missing or has no image, or the first image is not readable.
    """

    def __init__(self, path: str | Path):
        self.paths = list_images(path)
        super().__init__(path)

    def __len__(self) -> int:
        return len(self.paths)

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        for path in self.paths[start:stop]:
            try:
                frame = to_float(read_usable(path))
            except Unusable as reason:
                raise UserError(f"Frame {path.absolute()} is {reason}: replace it.") from reason
            self._check_size(path, (frame.shape[-2], frame.shape[-1]))
            yield frame

    def check(self, decode_to: int | None = None) -> int:
        """Decode the first frames as every clip does, and of all others read what tells their size."""
        for path in self.paths:
            try:
                self._check_size(path, image_size(path))
            except Unusable as reason:
                raise UserError(f"Frame {path.absolute()} is {reason}: replace it.") from reason
        return super().check(decode_to)

    def _check_size(self, path: Path, size: tuple[int, int]) -> None:
        if size != getattr(self, "size", size):
            raise UserError(
                f"Frame {path.absolute()} has {written(size)} pixels and the first frame of the clip "
                f"{written(self.size)}: a clip needs frames of one size."
            )
