"""Perceptual metrics of images by name: pyiqa computes them, from weights that are on disk.

Each is pyiqa's metric of that name with its own defaults: LPIPS over AlexNet, NIQE on the luma of YIQ, MUSIQ and
MANIQA as trained on KonIQ-10k, CLIPIQA over RN50, FID as clean-fid computes it.
"""

import contextlib
import importlib.util
import io
import logging
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.errors import UserError
from quantsr.metrics.weights import URLS, found, missing

SMALLEST = {"lpips": 32, "dists": 16, "niqe": 96, "clipiqa": 32}
"""Shorter side in pixels below which a metric fails; NIQE's blocks have 96 pixels. Others enlarge small images."""


def description(name: str) -> dict[str, Any]:
    """What pyiqa says of a metric: ``metric_mode`` FR (with a reference) or NR, ``lower_better`` if it is so."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS  # Takes seconds: only if such a metric is asked for.

    return DEFAULT_CONFIGS[name]


class ImageMetric:
    """A metric of single images. The network is frozen.

    Args:
        name: as pyiqa and :data:`quantsr.metrics.weights.URLS` call it; not ``fid``, which is of a set of images.
        weights_dir: looked into first for the weights, then torch.hub's folder.

    Attributes:
        needs_reference: whether it compares with the ground truth.
        smallest: shorter side in pixels that an image must have.

    Raises:
        UserError: weights are missing or not readable.
    """

    def __init__(self, name: str, weights_dir: str | Path | None = None):
        self.name, self.smallest = name, SMALLEST.get(name, 1)
        self.needs_reference = description(name)["metric_mode"] == "FR"
        self._model = _build(name, weights_dir)

    def to(self, device: torch.device | str) -> "ImageMetric":
        """Compute on this device."""
        self._model.to(device)
        return self

    def __call__(self, image: Tensor, gt: Tensor | None) -> float:
        """Score of one image ``(3, h, w)`` in [0, 1], against the ground truth if it needs that.

        Raises:
            UserError: the image is too small.
        """
        if min(image.shape[-2:]) < self.smallest:
            size = f"{image.shape[-1]} x {image.shape[-2]}"
            raise UserError(f"{self.name} needs images of {self.smallest} pixels a side or more, not {size}")
        pair = (image, gt) if self.needs_reference else (image,)
        return self._model(*(picture[None].float() for picture in pair)).item()


class FrechetDistance:
    """FID (Heusel et al., arXiv 1706.08500) between the outputs of each model and the ground truth, as sets.

    The images wait in a temporary folder as PNG until all are there: pyiqa resizes and reads them from files, as
    clean-fid (arXiv 2104.11222) asks for. Then they go through the network one by one, the ground truth once. Whole
    images are compared, not patches; a set of fewer than 2048 images gives a distance that is biased upwards.

    Args:
        weights_dir: looked into first for the weights, then torch.hub's folder.

    Raises:
        UserError: the weights are missing or not readable.
    """

    def __init__(self, weights_dir: str | Path | None = None):
        self._model = _build("fid", weights_dir)
        self._folder = tempfile.TemporaryDirectory(prefix="quantsr_fid_")
        self._device: torch.device | str = "cpu"

    def to(self, device: torch.device | str) -> "FrechetDistance":
        """Compute on this device."""
        self._model.to(device)
        self._device = device
        return self

    def add(self, model: str, image: Tensor) -> None:
        """Add an image ``(3, h, w)`` in [0, 1] to the set of a model, or of ``gt``."""
        folder = Path(self._folder.name, model)
        folder.mkdir(exist_ok=True)
        eight_bits = (image.clamp(0, 1) * 255).round().byte()
        to_pil_image(eight_bits).save(folder / f"{len(list(folder.iterdir())):06d}.png")

    def compute(self) -> dict[str, float]:
        """The distance of every model's set to that of ``gt``; then the images are gone.

        Raises:
            UserError: fewer than two images.
        """
        features = {folder.name: self._features(folder) for folder in Path(self._folder.name).iterdir()}
        self._folder.cleanup()
        truth = features.pop("gt")
        return {model: frechet_distance(own, truth) for model, own in features.items()}

    def _features(self, folder: Path) -> np.ndarray:
        """Features of all images in a folder, ``(n, 2048)``."""
        from pyiqa.archs.fid_arch import get_folder_features

        settings = {"num_workers": 0, "batch_size": 1, "device": self._device, "verbose": False}
        return get_folder_features(str(folder), self._model.net.model, **settings)


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, ``(n, d)`` and ``(m, d)``.

    The trace of the root of the product of both covariances A'A and B'B is the sum of the singular values of AB'. pyiqa
    takes the root itself, of a 2048 x 2048 matrix that is singular for fewer than 2048 images: minutes, and inexact.

    Raises:
        UserError: fewer than two images in a set.
    """
    if min(len(features), len(others)) < 2:
        raise UserError("fid compares sets of two images or more, and there is one")
    factors = [_covariance_factor(x.astype(np.float64)) for x in (features, others)]
    shift = np.square(features.mean(axis=0, dtype=np.float64) - others.mean(axis=0, dtype=np.float64)).sum()
    traces = sum(np.square(factor).sum() for factor in factors)
    return float(shift + traces - 2 * np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())


def _covariance_factor(features: np.ndarray) -> np.ndarray:
    """A with A'A the covariance of features ``(n, d)``, of no more than d rows."""
    return np.linalg.qr((features - features.mean(axis=0)) / (len(features) - 1) ** 0.5, mode="r")


def _build(name: str, weights_dir: str | Path | None) -> Any:
    """pyiqa's model of a metric, on the CPU, from files that are there."""
    lost = missing(name, weights_dir)
    if lost is not None:
        raise UserError(f"{name} cannot be measured: {lost}")
    from pyiqa.models.inference_model import InferenceModel

    files = found(name, weights_dir)
    # Given as a file, CLIP is taken as it is; by its name it is downloaded again where its checksum is another.
    options = {"backbone": str(files["clip/RN50.pt"])} if name == "clipiqa" else {}
    logging.getLogger("pyiqa").setLevel(logging.WARNING)  # It tells what it builds, and what it loads.
    try:
        with _only(files), contextlib.redirect_stdout(io.StringIO()):
            return InferenceModel(name, device=torch.device("cpu"), **options).requires_grad_(False)
    except Exception as error:  # torch.load has many.
        paths = " or ".join(str(file) for file in files.values())
        raise UserError(f"{paths} does not hold the weights of {name} ({type(error).__name__})") from error


@contextlib.contextmanager
def _only(files: dict[str, Path]) -> Iterator[None]:
    """For a moment torch.hub's folder holds these files, by their place in it, and nothing can be downloaded."""
    from pyiqa.utils import download_util

    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for place, file in files.items():
            link = Path(folder, place)
            link.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".npz":
                _write_niqe_parameters(file, link)
            else:
                link.symlink_to(file.absolute())
        stack.enter_context(patch.object(download_util, "DEFAULT_CACHE_DIR", str(Path(folder, "pyiqa"))))
        for owner in (torch.hub, download_util):
            stack.enter_context(patch.object(owner, "download_url_to_file", _refuse))
        stack.enter_context(_untrained_backbones())
        stack.enter_context(_importable_clip())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _refuse(url: str, *args: Any, **kwargs: Any) -> None:
    raise UserError(f"this version of pyiqa asks for {url}, which is none of the files in {list(URLS)}")


@contextlib.contextmanager
def _untrained_backbones() -> Iterator[None]:
    """timm builds networks without their ImageNet weights: the checkpoint of MANIQA holds the whole network."""
    import timm

    create = timm.create_model
    with patch.object(timm, "create_model", lambda name, **options: create(name, **options | {"pretrained": False})):
        yield


@contextlib.contextmanager
def _importable_clip() -> Iterator[None]:
    """The package ``clip`` takes ``packaging`` from pkg_resources, which setuptools 82 and later do not have."""
    if importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    import packaging.version

    stand_in = types.ModuleType("pkg_resources")
    stand_in.packaging = packaging
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _write_niqe_parameters(npz: Path, mat: Path) -> None:
    """NIQE's mean and covariance of pristine images, from BasicSR's file to the one that pyiqa reads."""
    import scipy.io

    with np.load(npz) as values:
        scipy.io.savemat(mat, {f"{kind}_prisparam": values[f"{kind}_pris_param"] for kind in ("mu", "cov")})
