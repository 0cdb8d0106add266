"""Calibration on one data set, measurement on another: a benchmark, of which nothing may be trained on."""

from pathlib import Path

from torch.utils.data import Dataset

from quantsr.data.frames import FramesDataModule
from quantsr.errors import UserError


class SeparateDataModule(FramesDataModule):
    """The calibration samples of one data module and the validation samples of another.

    Args:
        calibration: whose samples are trained on; its batch size, workers and seed are those of the run.
        validation: whose samples are measured.

    Raises:
        UserError: one is of images and the other of clips; or, when calibration samples are read, a file is in both.
    """

    def __init__(self, calibration: FramesDataModule, validation: FramesDataModule):
        super().__init__(calibration.batch_size, calibration.num_workers, calibration.seed)
        if (calibration.frames > 1) != (validation.frames > 1):
            kinds = ["clips" if data.frames > 1 else "images" for data in (calibration, validation)]
            raise UserError(f"data.calibration is of {kinds[0]}, data.validation of {kinds[1]}: choose two of a kind")
        self.sources, self.frames = (calibration, validation), calibration.frames

    @property
    def scale(self) -> int:
        """Of the samples that are measured; without ground truth nothing else tells the size of the output."""
        return self.sources[1].scale

    def paths(self) -> tuple[list[Path], list[Path]]:
        return self.sources[0].paths()[0], self.sources[1].paths()[1]

    def load_calibration(self) -> Dataset:
        calibration, validation = ({path.resolve() for path in paths} for paths in self.paths())
        if both := sorted(calibration & validation):
            raise UserError(
                f"{len(both)} files of data.validation are in data.calibration too, the first {both[0]}: "
                "leave them out of it (pattern, validation_share), as a benchmark is not to be trained on."
            )
        return self._taking_skipped(0, self.sources[0].calibration())

    def load_validation(self) -> Dataset:
        return self._taking_skipped(1, self.sources[1].validation())

    def _taking_skipped(self, number: int, data: Dataset) -> Dataset:
        self.skipped += self.sources[number].skipped
        return data
