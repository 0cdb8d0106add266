"""What the data modules have in common: the run's seed changes what is trained on, and nothing of what is measured."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quantsr.data.clips import ClipsDataModule
from quantsr.data.files import stamp
from quantsr.data.frames import FramesDataModule
from quantsr.data.images import ImagesDataModule
from quantsr.data.motion import MotionDataModule
from quantsr.data.pairs import PairsDataModule
from quantsr.data.photos import PhotosDataModule


@pytest.fixture
def root(tmp_path, save_image) -> Path:
    """Six images and six clips of three frames."""
    for number in range(6):
        save_image(tmp_path / "images" / f"{number}.png", seed=number)
        save_image(tmp_path / "lq" / f"{number}.png", 16, 16, seed=number)
        for frame in range(3):
            save_image(tmp_path / "clips" / str(number) / f"{frame}.png", seed=10 * number + frame)
    return tmp_path


MODULES: dict[str, Callable[[Path, int], FramesDataModule]] = {
    "photos": lambda _, seed: PhotosDataModule(crop=96, seed=seed),
    "images": lambda root, seed: ImagesDataModule(root / "images", validation_share=0.5, crop=32, seed=seed),
    "pairs": lambda root, seed: PairsDataModule(root / "lq", root / "images", validation_share=0.5, crop=32, seed=seed),
    "clips": lambda root, seed: ClipsDataModule(
        root / "clips", validation_share=0.5, frames=3, crop=32, random_crops=True, seed=seed
    ),
    "motion": lambda root, seed: MotionDataModule(
        root / "images", validation_share=0.5, frames=2, validation_frames=2, crop=32, seed=seed
    ),
}
EVERY = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)


def samples(data) -> list[tuple[str, torch.Tensor]]:
    return [(sample["name"], sample["lq"]) for sample in (data[number] for number in range(len(data)))]


@EVERY
def test_runs_of_all_seeds_are_measured_on_the_same_samples(build, root):
    """So that their spread is that of the method, and eval.py measures on nothing that a run was calibrated on."""
    modules = [build(root, seed) for seed in range(3)]
    first, *others = [samples(module.validation()) for module in modules]
    for other in others:
        assert [name for name, _ in other] == [name for name, _ in first]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, other, strict=True))
    seen = [samples(module.calibration()) for module in modules[:2]]
    assert any(not torch.equal(a, b) for (_, a), (_, b) in zip(*seen, strict=True))


@EVERY
def test_no_file_is_in_both_parts(build, root):
    calibration, validation = build(root, 0).paths()
    assert not {*calibration} & {*validation}
    assert all(path.exists() for path in (*calibration, *validation))
    assert bool(calibration) == bool(validation) == (type(build(root, 0)) is not PhotosDataModule)


@pytest.mark.parametrize("what", ["images", "clips"])
def test_a_stamp_changes_with_the_files(root, what):
    paths = sorted((root / what).iterdir())
    before = stamp(paths)
    assert stamp(paths) == before != stamp(paths[1:])
    file = paths[2] if what == "images" else paths[2] / "1.png"
    os.utime(file, (0, 0))
    assert stamp(paths) != before
