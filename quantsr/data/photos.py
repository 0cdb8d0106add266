"""The photographs inside the packages scikit-image and scikit-learn: real images without a download."""

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from quantsr.data.clip_folders import PARTS
from quantsr.data.degradations import Degradation
from quantsr.data.files import NamedImage, read_image
from quantsr.data.frames import DegradedCrops, FramesDataModule, corner, cut
from quantsr.data.splits import VALIDATION_SEED, split
from quantsr.errors import UserError

# (importable name, name to install, folder inside the package, file)
PHOTOS = (
    ("skimage", "scikit-image", "data", "astronaut.png"),
    ("skimage", "scikit-image", "data", "chelsea.png"),
    ("skimage", "scikit-image", "data", "coffee.png"),
    ("skimage", "scikit-image", "data", "rocket.jpg"),
    ("sklearn", "scikit-learn", "datasets/images", "china.jpg"),
    ("sklearn", "scikit-learn", "datasets/images", "flower.jpg"),
)
VALIDATION_SHARE = 1 / 3


class PhotosDataModule(FramesDataModule):
    """Six photographs cut into a grid of crops that do not overlap, a third of them for validation.

    Every photo with two crops or more gives to both parts, if both are wanted. Crops of 192 pixels make 20 for
    calibration and 10 for validation.

    Args:
        crop: side of the crops in clean pixels, a multiple of the degradation's scale.
        validation_share: share of a photograph's crops kept for validation.
        degradation: makes the low-quality images; default `Degradation()`.
        batch_size, num_workers, seed: see `FramesDataModule`.
    """

    def __init__(
        self,
        crop: int = 192,
        validation_share: float = VALIDATION_SHARE,
        degradation: Degradation | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.crop, self.validation_share = crop, validation_share
        self.degradation = degradation or Degradation()

    def load_calibration(self) -> Dataset:
        return self._crops(part=0)

    def load_validation(self) -> Dataset:
        return self._crops(part=1)

    def _crops(self, part: int) -> Dataset:
        crops = []
        for number, photo in enumerate(packaged_photos()):
            crops += split(grid(*photo, self.crop), self.validation_share, VALIDATION_SEED + number)[part]
        if not crops:
            raise UserError(
                f"No crop of the packaged photographs is left for {PARTS[part]}: "
                f"change crop ({self.crop} pixels) or validation_share ({self.validation_share})."
            )
        return DegradedCrops(crops, self.crop, self.degradation, VALIDATION_SEED if part else self.seed)


def packaged_photos() -> list[NamedImage]:
    """Read the photographs from the packages' own folders: no import of the packages, no network.

    Raises:
        UserError: if a package is not installed, or was built without its images.
    """
    photos = []
    for module, package, folder, file in PHOTOS:
        spec = find_spec(module)
        if spec is None:
            raise UserError(f"The packaged photographs need {package}: pip install {package}")
        path = Path(spec.origin).parent / folder / file
        if not path.is_file():
            raise UserError(f"{package} has no {path}: reinstall it (pip install --force-reinstall {package}).")
        photos.append((path.stem, read_image(path)))
    return photos


def grid(name: str, image: Tensor, crop: int) -> list[NamedImage]:
    """Every whole square crop of (3, H, W) on a grid about the centre, named `name_row_column`."""
    rows, columns = (side // crop for side in image.shape[-2:])
    top, left = corner(image, (rows * crop, columns * crop))
    return [
        (f"{name}_{row}_{column}", cut(image, (top + row * crop, left + column * crop), (crop, crop)))
        for row in range(rows)
        for column in range(columns)
    ]
