"""A student to use: ``pipe = quantsr.load("runs/..."); pipe(image)``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Self

import torch
from torch import Tensor

from quantsr.deploy import runtimes
from quantsr.deploy.artefact import artefact_folder, read_config
from quantsr.deploy.files import upscale_files
from quantsr.deploy.hub import OnTheHub
from quantsr.deploy.inputs import read_input
from quantsr.deploy.progress import Bars
from quantsr.errors import UserError
from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher
from quantsr.upscaling import on_device, takes_batches


def checked_device(device: str | None) -> str:
    """``device``, or a GPU if there is one.

    Raises:
        UserError: it is neither a CPU nor a GPU, or beyond the GPUs that there are.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UserError(f"device takes cpu, cuda or cuda:NUMBER, not {device!r}")
    count = torch.cuda.device_count()
    if found.type == "cuda" and 0 < count <= (found.index or 0):  # Without any, it is for the runtime to say.
        raise UserError(f"there is no device={device}: GPUs are counted from cuda:0, and PyTorch sees {count}")
    return str(found)


class Pipeline(OnTheHub):
    """A super-resolution model as a function of images, clips and files.

    Args:
        model: of images or of clips.
        device: to compute on.
        runtime: what computes, for whoever asks.
        folder: of the artefact that the model is from; None if there is none, and nothing to save.

    Attributes:
        model, device, runtime, folder: as given.
        tile: side in output pixels of the tiles that larger images go through in; None for models without.
        batch: how many tiles go through a network at a time; 1 at first, and for models without. More take the memory
            of as many, with the same result; a CPU is no faster by them (measured on a student of ``tiny_image``).
    """

    def __init__(
        self,
        model: Teacher,
        device: str | torch.device = "cpu",
        runtime: str = "torch",
        folder: Path | None = None,
    ):
        self.model, self.device, self.runtime, self.folder = model, torch.device(device), runtime, folder
        # Tiles change what is in the model while they go through: calls from other threads wait.
        self._lock = RLock()

    @classmethod
    def load(cls, path: str | Path, runtime: str = runtimes.AUTO, device: str | None = None) -> Self:
        """The student of an artefact folder, or of the run folder that holds one.

        Args:
            path: of the folder.
            runtime: ``openvino``, ``triton`` or ``torch``, or ``auto`` for the fastest that is available and ready, see
                :mod:`quantsr.deploy.runtimes`.
            device: ``cpu``, ``cuda``, ``cuda:1``; None takes a GPU if there is one (for ``openvino`` the CPU).

        Raises:
            UserError: no artefact there, a damaged one, or a runtime that cannot be used.
        """
        read_config(path)
        if device is None and runtime == "openvino":
            device = "cpu"
        folder, device = artefact_folder(path), checked_device(device)
        name, model = runtimes.load(folder, runtime, device)
        return cls(model, device, name, folder)

    @property
    def scale(self) -> int:
        """How many times larger the output is than the input."""
        return self.model.scale

    @property
    def frames(self) -> int:
        """Frames of a segment of clips; 1 for models of images."""
        return self.model.frames

    @property
    def _in_tiles(self) -> bool:
        return isinstance(self.model, OneStepTeacher)

    @property
    def tile(self) -> int | None:
        return self.model.tile if self._in_tiles else None

    @tile.setter
    def tile(self, side: int) -> None:
        self._check_tiles("tile")
        self.model.tile = side

    @property
    def batch(self) -> int:
        return self.model.tile_batch if self._in_tiles else 1

    @batch.setter
    def batch(self, tiles: int) -> None:
        self._check_tiles("batch")
        if not isinstance(tiles, int) or tiles < 1:
            raise UserError(f"batch takes a number of tiles at a time, 1 or more, not {tiles!r}")
        if tiles > 1 and not takes_batches(self.model):
            raise UserError(
                f"batch={tiles} would change what this student computes, whose ranges are those of all that it is "
                "given at a time: leave it at 1"
            )
        self.model.tile_batch = tiles

    def _check_tiles(self, name: str) -> None:
        if not self._in_tiles:
            raise UserError(f"{name} is of one-step image models, and this model is of another kind")

    def __repr__(self) -> str:
        kind = "images" if self.frames == 1 else f"clips, {self.frames} frames at a time"
        return f"Pipeline({kind}, x{self.scale}, runtime={self.runtime}, device={self.device}, folder={self.folder})"

    @torch.no_grad()
    def __call__(
        self,
        x: Any,
        output: str | Path | None = None,
        tile: int | None = None,
        batch: int | None = None,
        progress: bool = True,
    ) -> Any:
        """Super-resolve ``x``, which comes back as the kind of thing that it is.

        Args:
            x: an image or a clip in memory, see :mod:`quantsr.deploy.inputs`; or the path of an image, of a folder of
                images, or of a video. For a model of clips, a folder is the frames of one clip.
            output: where results of files go; without, an image file comes back as a PIL image. For an image a file
                or a folder; for a folder of images a folder, in which they have the same names; for a clip a name that
                ends in ``.mp4`` or a folder: a video becomes a video there, frames become frames. Sound is left out.
            tile, batch: other tiles for this call, see :class:`Pipeline`.
            progress: draw bars of files, frames and tiles where there are several.

        Returns:
            The result; of files with ``output`` the path, or of several the list of paths, that were written.

        Raises:
            UserError: something is wrong with ``x`` or an option; nothing is computed then. In a folder of images,
                unreadable ones are left out and named at the end.
        """
        with self._lock, self._tiles(tile, batch), Bars(progress) as bars:
            if isinstance(x, str | os.PathLike):
                return upscale_files(self, Path(x), output, bars)
            if output is not None:
                raise UserError("output= is where results of files go: what is given in memory comes back in memory")
            given = read_input(x)
            return given.back(self.restore(given.pixels, bars))

    @contextmanager
    def _tiles(self, tile: int | None, batch: int | None) -> Iterator[None]:
        """Within, tiles are other ones."""
        before = self.tile, self.batch
        try:
            if tile is not None:
                self.tile = tile
            if batch is not None:
                self.batch = batch
            yield
        finally:
            if self._in_tiles:
                self.tile, self.batch = before

    @torch.no_grad()
    def restore(self, pixels: Tensor, bars: Bars | None = None) -> Tensor:
        """Images ``(b, 3, h, w)`` or clips ``(b, t, 3, h, w)`` of any length in [0, 1], ``scale`` times larger.

        Raises:
            UserError: images for a model of clips.
        """
        self.check_takes(pixels.ndim == 5)
        bars, run = bars or Bars(False), on_device(self.model, self.device)
        with self._lock:
            if pixels.ndim == 5:
                return run(pixels)
            # Where a batch has one range, an image would come out another way beside others.
            parts = [pixels] if takes_batches(self.model) else pixels.split(1)
            results = []
            for part in parts:
                with bars.tiles(self.model, len(part), *part.shape[-2:]):
                    results.append(run(part))
            return torch.cat(results)

    def check_takes(self, clip: bool) -> None:
        """Refuse images for a model of clips with a UserError; a model of images takes clips frame by frame."""
        if self.frames > 1 and not clip:
            raise UserError(
                f"the model takes segments of {self.frames} frames: give it a clip, not an image (a tensor "
                "(b, t, 3, h, w), a folder of frames or a video)"
            )
