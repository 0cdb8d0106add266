"""Outputs as files: images, and clips as frames and as videos."""

from pathlib import Path

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.data.video import write_video

FRAMES_PER_SECOND = 24  # Of written clips: data sets of frames do not say.


def as_saved(image: Tensor) -> Tensor:
    """The image as an 8-bit file would hold it, in [0, 1]: what the papers measure."""
    return (image.clamp(0, 1) * 255).round() / 255


def save_output(output: Tensor, folder: Path, name: str) -> None:
    """An image as ``name.png``; a clip as the frames ``name/00000.png`` and on, and as ``name.mp4``."""
    _save_frames(output, folder, name)
    if output.ndim == 4:
        write_video(folder / f"{name}.mp4", output, FRAMES_PER_SECOND)


def save_versions(versions: dict[str, Tensor], folder: Path) -> None:
    """Every version of an image as ``folder/VERSION.png``, of a clip as the frames ``folder/VERSION/00000.png``."""
    for version, picture in versions.items():
        _save_frames(as_saved(picture), folder, version)


def _save_frames(output: Tensor, folder: Path, name: str) -> None:
    frames = output if output.ndim == 4 else output[None]
    names = [f"{name}.png"] if output.ndim == 3 else [f"{name}/{i:05d}.png" for i in range(len(frames))]
    (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
    for file, frame in zip(names, frames, strict=True):
        to_pil_image(frame).save(folder / file)
