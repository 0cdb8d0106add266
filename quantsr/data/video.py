"""Video files: read frame by frame or in part, and written."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import av
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from quantsr.data.clip_frames import FolderFrames, Frames
from quantsr.data.files import EXTENSIONS
from quantsr.data.yuv import from_video_frame, pad_to_even, to_video_frame
from quantsr.errors import UserError

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
QUALITY = 17
"""Constant rate factor of written videos: hardly told from the original."""
DEFAULT_FPS = 25
"""Taken for a file that does not say."""


class VideoFrames(Frames):
    """The first video stream of a file, turned upright as the file says.

    Attributes:
        fps: frames per second, on average.

    Args:
        path: the video file.

    Raises:
        UserError: if the file is missing, is no video or has no frame.
    """

    fps: Fraction

    def __len__(self) -> int:
        return self._index[0]

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        count = None if stop is None else max(stop - start, 0)
        try:
            yield from map(from_video_frame, islice(self._decode(start), count))
        except (av.FFmpegError, OSError) as error:
            reason = f"not readable as a video ({error.strerror}){self._kinds()}"
            raise UserError(f"{self.path.absolute()} is {reason}.") from error

    def _kinds(self) -> str:
        """What files can be, where this one is not named like a video."""
        if self.path.suffix.lower() in VIDEO_EXTENSIONS:
            return ""
        return f": images end in {' '.join(EXTENSIONS)}, videos in {' '.join(VIDEO_EXTENSIONS)}"

    def _decode(self, start: int) -> Iterator[av.VideoFrame]:
        with self._open() as container:
            stream = container.streams.video[0]
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            times, keys = self._index[1:] if start else ([], [])
            if not times:
                yield from islice(container.decode(stream), start, None)
            elif start < len(times):
                # Decoding can begin at a key frame only, and players' order is not the file's.
                container.seek(max((key for key in keys if key <= times[start]), default=times[0]), stream=stream)
                yield from (frame for frame in container.decode(stream) if frame.pts >= times[start])

    @cached_property
    def _index(self) -> tuple[int, list[int], list[int]]:
        """Number of frames, and the sorted times of all of them and of the key frames; none in a file without."""
        with self._open() as container:
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in container.demux(container.streams.video[0])
                if packet.size and not packet.is_discard
            ]
            # Of AVI, what a packet says is its place in the file.
            timed = container.format.name != "avi" and all(time is not None for time, _ in packets)
        if not timed:
            return len(packets), [], []
        return len(packets), sorted(time for time, _ in packets), sorted(time for time, is_key in packets if is_key)

    def _open(self) -> av.container.InputContainer:
        if not self.path.is_file():
            raise UserError(f"No video file at {self.path.absolute()}.")
        container = av.open(self.path)
        if not container.streams.video:
            container.close()
            raise UserError(f"{self.path.absolute()} has no video in it.")
        return container


def open_frames(path: str | Path) -> Frames:
    """A folder of images as `FolderFrames`, a file as `VideoFrames`; errors as there.

    Raises:
        UserError: if there is neither, too.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"No video file and no folder of images at {path.absolute()}.")
    return FolderFrames(path) if path.is_dir() else VideoFrames(path)


def iter_frames(path: str | Path) -> Iterator[Tensor]:
    """The frames of a folder of images, in natural order, or of a video file, one after the other.

    Yields:
        (3, h, w) float RGB in [0, 1].

    Raises:
        UserError: if the clip is missing, empty or not readable.
    """
    return iter(open_frames(path))


def write_video(path: str | Path, frames: Iterable[Tensor], fps: Fraction | float) -> None:
    """Write an mp4 file that every player plays: H.264, colour at half the size (yuv420p, BT.709).

    The frames are asked for one by one and none is kept. An odd side gets one more row or column of pixels, a
    copy of the last. Written under a temporary name and moved: no half file is left.

    Args:
        path: ends in `.mp4`.
        frames: (3, h, w) float RGB each, all of one size; clamped to [0, 1].
        fps: frames per second.

    Raises:
        UserError: if the name has another ending or is a folder's, or PyAV was built without H.264.
        ValueError: if there are no frames, or frames of two sizes.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"Videos are written as mp4: give a name that ends in .mp4, not {path.name}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder, and the video would have that name: give another name.")
    if "libx264" not in av.codecs_available:
        raise UserError("This PyAV cannot write H.264: install the wheel of PyPI (pip install --force-reinstall av).")
    unfinished = path.with_suffix(".unfinished")
    try:
        _encode(unfinished, iter(frames), Fraction(fps).limit_denominator(1001))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterator[Tensor], fps: Fraction) -> None:
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    # The index in front lets a browser play while it loads.
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(QUALITY)})
        height, width = pad_to_even(first).shape[-2:]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        for frame in chain([first], frames):
            if frame.shape != first.shape:
                raise ValueError(f"frames of {tuple(first.shape)} and {tuple(frame.shape)} in one video")
            container.mux(stream.encode(to_video_frame(pad_to_even(frame), Colorspace.ITU709)))
        container.mux(stream.encode(None))
