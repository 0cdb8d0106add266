"""How benchmark data sets lie on people's disks: one table of layouts, and the search for one in a folder.

A layout names folders below the folder that the user gives. Big and small letters are the same, ``.`` is that folder
itself and ``*`` stands for the name of a clip. Every layout is one that the data set's authors, or a code base that
many measure with, ships or expects; where it comes from is said beside it.
"""

from dataclasses import dataclass
from pathlib import Path, PurePath

from quantsr.data.clip_folders import ANY, list_clips
from quantsr.data.files import list_images
from quantsr.data.video import VIDEO_EXTENSIONS
from quantsr.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where the versions of a data set are, relative to the folder given.

    Attributes:
        gt: folder of the clean version; None where there is none.
        lq: folder of the low-quality version; None: it is made of the clean one.
        pattern: glob pattern of the stems of the clean images.
    """

    gt: str | None = None
    lq: str | None = None
    pattern: str = "*"

    def __str__(self) -> str:
        folders = " and ".join(folder for folder in (self.gt, self.lq) if folder is not None)
        named = f" (named {self.pattern})" if self.pattern != "*" else ""
        return ("the folder itself" if folders == "." else folders) + named


@dataclass(frozen=True)
class DataSet:
    """A data set by the layouts that it is found in; the first that fits is taken.

    Attributes:
        title: its name.
        content: what it has when it is whole.
        clips: whether it is of clips; else of images.
        layouts: in order of preference.
        names: of its clips, where a layout has others too; empty for all.
    """

    title: str
    content: str
    clips: bool
    layouts: tuple[Layout, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A layout in a folder: the paths of its two versions, either of which may be None."""

    layout: Layout
    gt: Path | None
    lq: Path | None


TEST_SETS = (
    Layout("test_HR", "test_LR"),  # StableSR's test sets; OSEDiff, TSD-SR, PassionSR take them as they are
    Layout("HR", "LR"),
    Layout("HR", "LR/X4"),  # PassionSR
    Layout("gt", "lq"),  # StableSR's synthetic DIV2K
)
CLIP_FOLDERS = (
    Layout("GT", "LQ"),  # QuantVSR, DOVE
    Layout("GT", "BDx4"),  # BasicSR, VRT, MMagic: Gaussian blur, then every fourth pixel
    Layout("GT", "BIx4"),  # MMagic: bicubic
)
DATA_SETS = {
    "realsr": DataSet("RealSR", "100 pairs", False, TEST_SETS),
    "drealsr": DataSet("DRealSR", "93 pairs", False, TEST_SETS),
    "div2k_val": DataSet(
        "DIV2K validation",
        "100 images, in StableSR's version 3000 pairs",
        False,
        (
            Layout("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X4"),  # the authors' archives
            *TEST_SETS,
            Layout("DIV2K_valid_HR"),
        ),
    ),
    "urban100": DataSet(
        "Urban100",
        "100 images",
        False,
        (
            Layout("image_SRF_4", pattern="*_HR"),  # the authors' archive: both versions in one folder
            Layout("GTmod12"),  # BasicSR
            Layout("HR"),  # EDSR's benchmark archive
            Layout(".", pattern="*_HR"),
            Layout(".", pattern="img_???"),
        ),
    ),
    "reds4": DataSet(
        "REDS4",
        "4 clips of 100 frames",
        True,
        (
            Layout("GT", "LQ"),
            Layout("GT", "sharp_bicubic"),  # EDVR, VRT, MMagic
            Layout("train_sharp", "train_sharp_bicubic/X4"),  # the authors' archives, as BasicSR and MMagic want them
            Layout("train/train_sharp", "train/train_sharp_bicubic/X4"),  # the same, unpacked in place
        ),
        names=("000", "011", "015", "020"),
    ),
    "udm10": DataSet("UDM10", "10 clips of 32 frames", True, (*CLIP_FOLDERS, Layout("*/truth", "*/blur4"))),  # PFNL
    "spmcs": DataSet("SPMCS", "30 clips of 31 frames", True, (*CLIP_FOLDERS, Layout("*/truth", "*/input4"))),  # SPMC
    "mvsr4x": DataSet("MVSR4x", "15 clips", True, (Layout("GT", "LQ"),)),
    "videolq": DataSet(
        "VideoLQ",
        "50 clips without ground truth",
        True,
        (
            Layout(lq="LQ"),  # DOVE
            Layout(lq="Input"),
            Layout(lq="."),  # RealBasicVSR, MMagic
        ),
    ),
    "images": DataSet("clean images", "", False, (Layout("."),)),
    "clips": DataSet("clean clips", "", True, (Layout("."),)),
}


def find(name: str, root: str | Path) -> Found:
    """Find a data set in a folder.

    Args:
        name: one of :data:`DATA_SETS`.
        root: the folder that holds those of a layout.

    Raises:
        UserError: an unknown name, no such folder, or no layout in it: with what was looked for, and the folder to
            give instead where the one above or one inside it is right.
    """
    if name not in DATA_SETS:
        raise UserError(f"There is no data set {name!r}: known are {', '.join(DATA_SETS)}.")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"No folder at {root.absolute()}: give the one that holds {name}.")
    found = _search(name, root)
    if found is None:
        wanted = DATA_SETS[name]
        kind, layouts = "clips" if wanted.clips else "images", ", or in ".join(map(str, wanted.layouts))
        raise UserError(
            f"No {wanted.title} in {root.absolute()}: looked for {kind} in {layouts}; it holds {_content(root)}."
            f"{_better(name, root)}"
        )
    return found


def _search(name: str, root: Path) -> Found | None:
    has_content = _has_clips if DATA_SETS[name].clips else _has_images
    for layout in DATA_SETS[name].layouts:
        gt, lq = (None if folder is None else _located(root, folder) for folder in (layout.gt, layout.lq))
        wanted = [(gt, layout.pattern)] * (layout.gt is not None) + [(lq, "*")] * (layout.lq is not None)
        if all(path is not None and has_content(path, pattern) for path, pattern in wanted):
            return Found(layout, gt, lq)
    return None


def _located(root: Path, folder: str) -> Path | None:
    """The folder below the root, in big or small letters; behind ``*`` as it is written."""
    path = root
    for part in PurePath(folder).parts:
        if ANY in (part, *path.parts):
            path = path / part
            continue
        same = [inner for inner in path.iterdir() if inner.name.lower() == part.lower() and inner.is_dir()]
        if not same:
            return None
        path = next((inner for inner in same if inner.name == part), same[0])
    return path


def _has_images(folder: Path, pattern: str) -> bool:
    try:
        return bool(list_images(folder, pattern))
    except UserError:
        return False


def _has_clips(folder: Path, pattern: str) -> bool:
    try:
        clips = [path for _, path in list_clips(folder)]
    except UserError:
        return False
    return any(path.suffix.lower() in VIDEO_EXTENSIONS or _has_images(path, "*") for path in clips)


def _better(name: str, root: Path) -> str:
    """A sentence that names the folder to give, if there is one."""
    here = root.absolute()
    near = [path for path in sorted(here.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if _has_images(here, "*") or _has_clips(here, "*"):  # Then it may be one part of what was meant.
        near.insert(0, here.parent)
    right = [path for path in near if _search(name, path) is not None]
    return f" Give {right[0]}." if right else ""


def _content(root: Path, shown: int = 5) -> str:
    """What a folder holds, in words."""
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}" if names else "nothing"
