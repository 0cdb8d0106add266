"""Any folder of clean images, degraded on the fly."""

from pathlib import Path

from torch.utils.data import Dataset

from quantsr.data.degradations import Degradation
from quantsr.data.files import list_named, read_images
from quantsr.data.frames import LATENT_MULTIPLE, DegradedCrops, FramesDataModule
from quantsr.data.splits import VALIDATION_SEED, split
from quantsr.errors import UserError


class ImagesDataModule(FramesDataModule):
    """Calibrate (or train a teacher) on some images of a folder and validate on others.

    Which are for validation: those that match `validation_pattern`, if given; else all of `validation_root`,
    if given; else a seeded share of the images. To measure on a whole folder of held-out images, give
    `validation_share=1`: nothing is left to calibrate on.

    Args:
        root: folder of clean images (not searched below).
        pattern: glob pattern of the stems of the images to use, such as `train_*`.
        validation_root: folder of the validation images; default `root`.
        validation_pattern: glob pattern of the stems of the validation images, such as `test_*`.
        validation_share: share of the images kept for validation where neither of the two above is given.
        crop: side of the calibration crops in clean pixels.
        validation_crop: side of the centre crops for validation; None takes whole images.
        random_crops: draw crop, flip and degradation anew at every visit, as training a teacher wants it.
        degradation: makes the low-quality images; default `Degradation()`.
        batch_size, num_workers, seed: see `FramesDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        pattern: str = "*",
        validation_root: str | Path | None = None,
        validation_pattern: str | None = None,
        validation_share: float = 0.2,
        crop: int = 192,
        validation_crop: int | None = None,
        random_crops: bool = False,
        degradation: Degradation | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.root, self.pattern = Path(root), pattern
        self.validation_root = Path(validation_root) if validation_root else None
        self.validation_pattern, self.validation_share = validation_pattern, validation_share
        self.crop, self.validation_crop, self.random_crops = crop, validation_crop, random_crops
        self.degradation = degradation or Degradation()

    def paths(self) -> tuple[list[Path], list[Path]]:
        """The calibration files and the validation files; no file is in both."""
        if self.validation_root is None and self.validation_pattern is None:
            return split(_list(self.root, self.pattern), self.validation_share)
        validation = _list(self.validation_root or self.root, self.validation_pattern or "*")
        held_out = {path.resolve() for path in validation}
        calibration = [path for path in _list(self.root, self.pattern) if path.resolve() not in held_out]
        return calibration, validation

    def load_calibration(self) -> Dataset:
        return self._read(self.paths()[0], "calibration", self.crop, self.seed, self.random_crops)

    def load_validation(self) -> Dataset:
        return self._read(self.paths()[1], "validation", self.validation_crop, VALIDATION_SEED)

    def _read(self, paths: list[Path], purpose: str, crop: int | None, seed: int, random: bool = False) -> Dataset:
        if not paths:
            raise UserError(
                f"No image of {self.root.absolute()} is left for {purpose}: "
                f"change validation_share ({self.validation_share}) or the patterns, or add images."
            )
        images, skipped = read_images(paths, minimum=crop or LATENT_MULTIPLE * self.degradation.scale)
        self.skipped += skipped
        return DegradedCrops(images, crop, self.degradation, seed, random)


def _list(root: Path, pattern: str) -> list[Path]:
    return [path for _, path in list_named(root, pattern)]
