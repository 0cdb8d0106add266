"""Where methods differ most, and what they look like there: zoomed crops and temporal slices."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from quantsr.report.samples import Sample, Version

SIDES = ((200, 32), (480, 48))  # (shorter side of the picture up to, side of its crop), in pixels
LARGE = 80
SHOWN = 160  # pixels that an enlarged crop has at most
SLICE_WIDTH, SLICE_HEIGHT = 256, 96


class Place(NamedTuple):
    """A square in a picture or in one frame of a clip, in pixels.

    Attributes:
        frame: 0 in a picture.
        top, left, side: of the square.
        row: the row of pixels that differs most over all frames.
    """

    frame: int
    top: int
    left: int
    side: int
    row: int

    @property
    def zoom(self) -> int:
        """The whole factor that brings the crop near to :data:`SHOWN` pixels."""
        return max(1, SHOWN // self.side)


def difference(versions: Iterable[np.ndarray]) -> np.ndarray:
    """Variance over versions ``(h, w, 3)`` of a picture, mean over the channels: ``(h, w)``."""
    return np.stack([version.astype(np.float32) for version in versions]).var(axis=0).mean(axis=-1)


def window_sums(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sums over all windows of a map ``(h, w)``: ``(h - height + 1, w - width + 1)``, by where they begin."""
    sums = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]


def crop_side(size: tuple[int, int]) -> int:
    """The side of a picture's crop."""
    shorter = min(size)
    return min(shorter, next((side for up_to, side in SIDES if shorter <= up_to), LARGE))


def find_place(sample: Sample, bits: str) -> Place:
    """The square in which the methods' outputs at some bits have the largest variance; in a clip of all frames.

    A single method is compared with its teacher, or else the ground truth. Where nothing differs: the middle.
    """
    versions = list(sample.students[bits])
    if len(versions) == 1:
        by_label = {version.label: version for version in sample.references}
        versions += [by_label[label] for label in (versions[0].teacher, "ground truth") if label in by_label][:1]
    side, (width, height) = crop_side(sample.size), sample.size
    best = Place(0, (height - side) // 2, (width - side) // 2, side, height // 2)
    largest, rows = 0.0, np.zeros(height)
    for number in range(sample.length):
        values = difference(version.frame(number, sample.size) for version in versions)
        rows += values.sum(axis=1)
        sums = window_sums(values, side, side)
        if sums.max() > largest:
            largest = sums.max()
            top, left = np.unravel_index(sums.argmax(), sums.shape)
            best = Place(number, int(top), int(left), side, best.row)
    return best._replace(row=int(rows.argmax())) if rows.any() else best


def crop(version: Version, sample: Sample, place: Place) -> np.ndarray:
    """The square of one version, ``(side, side, 3)`` bytes."""
    frame = version.frame(place.frame, sample.size)
    return frame[place.top : place.top + place.side, place.left : place.left + place.side]


def time_slice(version: Version, sample: Sample, place: Place) -> np.ndarray:
    """One row of pixels of every frame, the first at the top: ``(t, w, 3)`` bytes.

    Wide clips give a piece of the row around the place.
    """
    width = min(sample.size[0], SLICE_WIDTH)
    left = min(max(0, place.left + place.side // 2 - width // 2), sample.size[0] - width)
    frames = (version.frame(number, sample.size) for number in range(sample.length))
    return np.stack([frame[place.row, left : left + width] for frame in frames])


def slice_zoom(sample: Sample) -> int:
    """How often each row of a temporal slice is shown, so that few frames can be seen too."""
    return max(1, min(8, SLICE_HEIGHT // sample.length))


def shown(sample: Sample, bits: str) -> list[Version]:
    """What stands side by side: the input, bicubic, the teachers, the methods, the ground truth."""
    truth = [version for version in sample.references if version.label == "ground truth"]
    others = [version for version in sample.references if version not in truth]
    return [*others, *sample.students[bits], *truth]
