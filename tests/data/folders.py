"""Tiny versions of the benchmark data sets, in any of their layouts."""

from pathlib import Path

from PIL import Image

from quantsr.data.layouts import DATA_SETS, Layout
from tests.conftest import picture

LAYOUTS = [(name, layout) for name, data_set in DATA_SETS.items() for layout in data_set.layouts]
IDS = [f"{name}: {layout}" for name, layout in LAYOUTS]
NAMES = {"reds4": ("000", "011", "015", "020")}
# How the released files are called: (clean, low-quality).
FILES = {"div2k_val": ("080{}.png", "080{}x4.png"), "urban100": ("img_00{}.png", "")}
SIDE = 64


def make(root: Path, name: str, layout: Layout, count: int = 2, frames: int = 2) -> Path:
    """Write a data set of ``count`` images, or clips of so many frames, of 64 pixels a side; returns the root."""
    for folder, small in ((layout.gt, False), (layout.lq, True)):
        if folder is None:
            continue
        if DATA_SETS[name].clips:
            for number, clip in enumerate(NAMES.get(name, [f"clip{number}" for number in range(count)])):
                inner = root / (folder.replace("*", clip) if "*" in folder else f"{folder}/{clip}")
                for frame in range(frames):
                    _save(inner / f"{frame:08d}.png", number + frame, small)
        else:
            for number in range(1, count + 1):
                _save(root / folder / _file(name, layout, number, small), number, small)
    return root


def _file(name: str, layout: Layout, number: int, small: bool) -> str:
    if layout.pattern == "*_HR":
        return f"img_00{number}_SRF_4_HR.png"
    return FILES.get(name, ("Canon_00{}_LR4.png",) * 2)[small].format(number)


def _save(path: Path, number: int, small: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(number, side=SIDE)
    (image.resize((SIDE // 4,) * 2, Image.Resampling.BOX) if small else image).save(path)
