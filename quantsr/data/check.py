"""``python -m quantsr.data.check NAME FOLDER``: what a data set's folder holds, and what is wrong with it.

It looks at what a run would look at, and leaves out what a run would leave out, but decodes no image: sizes come from
the headers, and of PNG files the checksums are compared. A JPEG that ends early is found by the run alone.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from quantsr.data.benchmarks import clip_benchmark, image_benchmark
from quantsr.data.clip_folders import ClipMatch, open_clips
from quantsr.data.clip_frames import FolderFrames
from quantsr.data.files import Skipped, Unusable, check_ratio, check_side, image_size, written
from quantsr.data.frames import LATENT_MULTIPLE
from quantsr.data.layouts import DATA_SETS, Found, find
from quantsr.data.pairs import PairsDataModule
from quantsr.errors import UserError

SHOWN = 10  # of what cannot be used
Size = tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """An image, pair or clip that can be used: (height, width) of its versions, None for one that is not there."""

    gt: Size | None
    lq: Size | None
    frames: int = 1


@dataclass(frozen=True)
class Contents:
    """What a folder holds.

    Attributes:
        name: of the data set.
        found: where it is.
        entries: what can be used.
        skipped: (name, reason) of what cannot.
    """

    name: str
    found: Found
    entries: list[Entry]
    skipped: list[Skipped]


def check(name: str, root: str | Path, scale: int = 4) -> Contents:
    """Look at a data set.

    Args:
        name: one of :data:`quantsr.data.layouts.DATA_SETS`.
        root: the folder.
        scale: how many times larger a clean version must be.

    Raises:
        UserError: no layout is found, or nothing matches by name.
    """
    found = find(name, root)
    if DATA_SETS[name].clips:
        data = clip_benchmark(name, root, scale=scale)
        _, scenes = data.matches
        looks = [lambda match=match: _look_at_clip(match, scale) for match in scenes]
    else:
        data = image_benchmark(name, root, scale)
        pairs = isinstance(data, PairsDataModule)
        scenes = data.matches[1] if pairs else [(path.stem, None, path) for path in data.paths()[1]]
        looks = [lambda lq=lq, gt=gt: _look_at_image(lq, gt, scale) for _, lq, gt in scenes]
    entries, skipped = _sorted_out([scene[0] for scene in scenes], looks)
    return Contents(name, found, entries, data.skipped + skipped)


def _sorted_out(names: Sequence[str], looks: Sequence[Callable[[], Entry]]) -> tuple[list[Entry], list[Skipped]]:
    entries, skipped = [], []
    for name, look in track(list(zip(names, looks, strict=True)), "looking", console=Console(), transient=True):
        try:
            entries.append(look())
        except Unusable as reason:
            skipped.append((name, str(reason)))
    return entries, skipped


def _look_at_image(lq: Path | None, gt: Path | None, scale: int) -> Entry:
    sizes = {"gt": gt, "lq": lq}
    sizes = {version: None if path is None else image_size(path, checksums=True) for version, path in sizes.items()}
    if lq is None:
        check_side(sizes["gt"], LATENT_MULTIPLE * scale)
    elif gt is not None:
        check_ratio(sizes["lq"], sizes["gt"], scale)
    return Entry(**sizes)


def _look_at_clip(match: ClipMatch, scale: int) -> Entry:
    clips, skipped = open_clips([match], scale, frames=1, side=scale, decode_to=0)
    if skipped:
        raise Unusable(skipped[0][1])
    [clip] = clips
    for version in clip.versions:
        for path in version.paths if isinstance(version, FolderFrames) else ():
            try:
                image_size(path, checksums=True)
            except Unusable as reason:
                raise Unusable(f"Frame {path.absolute()} is {reason}: replace it.") from reason
    return Entry(*(None if version is None else version.size for version in (clip.gt, clip.lq)), len(clip))


def print_contents(contents: Contents) -> None:
    """What was found as a table, and the first of what cannot be used below it."""
    table = Table(show_header=False, title=DATA_SETS[contents.name].title, title_justify="left")
    for row in _rows(contents):
        table.add_row(*row)
    console = Console()
    console.print(table, markup=False, highlight=False)
    if contents.skipped:
        problems = Table("cannot be used", "why", title_justify="left")
        for name, reason in contents.skipped[:SHOWN]:
            problems.add_row(name, reason)
        console.print(problems, markup=False, highlight=False)
        if len(contents.skipped) > SHOWN:
            console.print(f"and {len(contents.skipped) - SHOWN} more", highlight=False)


def _rows(contents: Contents) -> Iterator[tuple[str, str]]:
    wanted, found, entries = DATA_SETS[contents.name], contents.found, contents.entries
    kind = _kind(contents) if len(entries) != 1 else _kind(contents)[:-1]
    yield "layout", str(found.layout)
    yield "clean", str(found.gt or "none: measured without a reference")
    yield "low quality", str(found.lq or "made of the clean version")
    yield "usable", f"{len(entries)} {kind}" + (f" (complete: {wanted.content})" if wanted.content else "")
    yield "cannot be used", str(len(contents.skipped))
    if wanted.clips:
        yield "frames", f"{sum(entry.frames for entry in entries)}, {_range(sorted(e.frames for e in entries))} a clip"
    for label, sizes in (("clean pixels", [e.gt for e in entries]), ("low-quality pixels", [e.lq for e in entries])):
        given = sorted({size for size in sizes if size is not None}, key=lambda size: size[0] * size[1])
        if given:
            yield label, _range([written(size) for size in given])
    if found.gt and found.lq and entries:
        yield "scale", str(entries[0].gt[0] // entries[0].lq[0])


def _kind(contents: Contents) -> str:
    if DATA_SETS[contents.name].clips:
        return "clips"
    return "pairs" if contents.found.gt and contents.found.lq else "images"


def _range(values: Sequence) -> str:
    """The first and the last value, or the only one; of nothing, 0."""
    ends = dict.fromkeys([*values[:1], *values[-1:]])
    return " to ".join(map(str, ends)) or "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder; returns the exit code, 2 if nothing in it can be used."""
    parser = argparse.ArgumentParser(
        prog="python -m quantsr.data.check",
        description="Print what a data set's folder holds and what is wrong with it: its layout, how many images or "
        "clips, their sizes, and what cannot be used, with the reason.",
        epilog="example: python -m quantsr.data.check realsr FOLDER, as in data=realsr data.root=FOLDER",
    )
    parser.add_argument("name", choices=DATA_SETS, metavar="NAME", help=", ".join(DATA_SETS))
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that has the data set")
    options = parser.parse_args(arguments)
    log = logging.getLogger("quantsr.data")
    level = log.level
    log.setLevel(logging.ERROR)  # The table names what is left out.
    try:
        contents = check(options.name, options.folder)
        print_contents(contents)
        if not contents.entries:
            raise UserError(f"none of the {_kind(contents)} in {options.folder} can be used")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        log.setLevel(level)
    return 0


if __name__ == "__main__":
    sys.exit(main())
