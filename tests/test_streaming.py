"""Segments of a long clip come together as if there were none, with no more than one of them in memory."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from quantsr.errors import UserError
from quantsr.streaming import restore_clip, stream

SEGMENT = 5
OVERLAPS = range(SEGMENT)


def random_clip(length: int) -> Tensor:
    return torch.rand(length, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def enlarge(clip: Tensor) -> Tensor:
    """A restoration of each frame by itself, to twice the size."""
    return clip.sin().repeat_interleave(2, -1).repeat_interleave(2, -2)


def largest_jump(clip: Tensor) -> float:
    return clip.diff(dim=0).abs().max().item()


class Recorded:
    """A restoration that keeps what it was given."""

    def __init__(self):
        self.segments: list[Tensor] = []

    def __call__(self, clip: Tensor) -> Tensor:
        self.segments.append(clip[0].clone())
        return clip


class Counting:
    """Adds the number of the call: every segment has a brightness of its own."""

    def __init__(self):
        self.calls = 0

    def __call__(self, clip: Tensor) -> Tensor:
        self.calls += 1
        return clip + self.calls


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("length", [*range(1, 12), 60])
def test_a_restoration_frame_by_frame_is_the_same_as_without_segments(length, overlap):
    clip = random_clip(length)
    result = restore_clip(enlarge, clip, SEGMENT, overlap)
    assert result.shape == (length, 3, 8, 12)
    assert torch.equal(result, enlarge(clip))


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("length", [1, 4, 5, 6, 13])
def test_the_model_gets_segments_of_its_length(length, overlap):
    restore = Recorded()
    restore_clip(restore, random_clip(length), SEGMENT, overlap)
    assert [len(segment) for segment in restore.segments] == [SEGMENT] * len(restore.segments)
    # No segment more than needed: each but the first brings at least one frame that no earlier one had.
    assert len(restore.segments) == 1 + max(0, -(-(length - SEGMENT) // (SEGMENT - overlap)))


def test_without_overlap_segments_are_disjoint():
    restore, clip = Recorded(), random_clip(10)
    restore_clip(restore, clip, SEGMENT, 0)
    assert torch.equal(torch.cat(restore.segments), clip)


def test_neighbouring_segments_share_the_overlap():
    restore, clip = Recorded(), random_clip(11)
    restore_clip(restore, clip, SEGMENT, 2)
    for number, segment in enumerate(restore.segments):
        assert torch.equal(segment, clip[3 * number : 3 * number + SEGMENT])


@pytest.mark.parametrize("length, expected", [(3, [0, 1, 2, 2, 2]), (7, [5, 6, 6, 6, 6])])
def test_a_short_last_segment_is_continued_by_its_last_frame(length, expected):
    restore, clip = Recorded(), random_clip(length)
    restore_clip(restore, clip, SEGMENT, 0)
    assert torch.equal(restore.segments[-1], clip[expected])


class TestSeams:
    """60 equal frames through models that treat the frames of a segment differently."""

    CLIP = torch.zeros(60, 3, 2, 2)

    @pytest.mark.parametrize("overlap", [1, 2, 3, 4])
    def test_of_a_model_that_gets_brighter_within_a_segment(self, overlap):
        def restore(clip: Tensor) -> Tensor:
            return clip + torch.arange(SEGMENT).view(1, SEGMENT, 1, 1, 1)

        jumps = {o: largest_jump(restore_clip(restore, self.CLIP, SEGMENT, o)[10:-10]) for o in (0, overlap)}
        assert jumps[0] == SEGMENT - 1
        assert jumps[overlap] < jumps[0] / 1.5

    @pytest.mark.parametrize("overlap", [1, 2])
    def test_of_a_model_that_differs_between_segments(self, overlap):
        """Spread evenly over the overlap, which leaves no step larger than another."""
        assert largest_jump(restore_clip(Counting(), self.CLIP, SEGMENT, 0)) == 1
        jump = largest_jump(restore_clip(Counting(), self.CLIP, SEGMENT, overlap))
        assert jump == pytest.approx(1 / (overlap + 1), abs=1e-5)

    @pytest.mark.parametrize("overlap", [1, 2, 3, 4])
    def test_every_frame_of_an_overlap_has_a_part_of_both_segments(self, overlap):
        length = 2 * SEGMENT - overlap
        result = restore_clip(Counting(), self.CLIP[:length], SEGMENT, overlap)[:, 0, 0, 0]
        assert (result[: SEGMENT - overlap] == 1).all()
        shared = result[SEGMENT - overlap : SEGMENT]
        assert (shared > 1).all() and (shared < 2).all()
        assert (result.diff() >= 0).all()


class TestMemory:
    @pytest.mark.parametrize("overlap", OVERLAPS)
    def test_does_not_grow_with_the_length(self, overlap):
        """Of the frames that are read, at most a segment is alive, and of those given out, the caller's."""
        alive = {"given": weakref.WeakSet(), "returned": weakref.WeakSet()}
        most = dict.fromkeys(alive, 0)

        def note(name: str, frame: Tensor) -> Tensor:
            alive[name].add(frame)
            most[name] = max(most[name], len(alive[name]))
            return frame

        frames = (note("given", torch.full((3, 2, 2), float(number))) for number in range(60))
        count = 0
        for count, frame in enumerate(stream(enlarge, frames, SEGMENT, overlap), 1):  # noqa: B007
            note("returned", frame)
        assert count == 60
        assert most["given"] <= SEGMENT + 1  # and the one that the source has in hand
        assert most["returned"] <= 2  # the caller's loop holds one until it has the next

    def test_a_frame_that_is_kept_does_not_keep_its_segment(self):
        for frame in stream(enlarge, random_clip(12), SEGMENT, 2):
            assert frame.untyped_storage().nbytes() == frame.numel() * frame.element_size()

    @pytest.mark.parametrize("overlap", OVERLAPS)
    def test_a_waiting_stream_holds_no_whole_segment(self, overlap):
        outputs = []

        def restore(clip: Tensor) -> Tensor:
            restored = enlarge(clip)
            outputs.append(weakref.ref(restored))
            return restored

        for _ in stream(restore, random_clip(20), SEGMENT, overlap):
            assert all(output() is None for output in outputs)

    def test_no_gradients_are_kept_and_the_caller_keeps_his(self):
        model = nn.Conv3d(SEGMENT, SEGMENT, 1)
        for frame in stream(model, random_clip(7), SEGMENT, 2):
            assert not frame.requires_grad
            assert torch.is_grad_enabled()


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_frames_come_out_before_the_clip_is_read_to_its_end(overlap):
    read = 0

    def frames() -> Iterator[Tensor]:
        nonlocal read
        for frame in random_clip(60):
            read += 1
            yield frame

    for given, _ in enumerate(stream(enlarge, frames(), SEGMENT, overlap)):
        # A segment begins at a multiple of the stride, and is read when its first frame is asked for.
        assert read <= given + SEGMENT
    assert read == 60


def test_no_frames_give_none():
    assert list(stream(enlarge, [], SEGMENT, 2)) == []


@pytest.mark.parametrize("segment, overlap", [(5, 5), (5, 6), (5, -1), (1, 1), (0, 0)])
def test_an_impossible_overlap_is_refused_at_once(segment, overlap):
    with pytest.raises(UserError, match="overlap"):
        stream(enlarge, random_clip(10), segment, overlap)


def test_a_model_that_loses_frames():
    with pytest.raises(ValueError, match="1 segment of 5 frames has come back as 1 of 4"):
        list(stream(lambda clip: clip[:, 1:], random_clip(5), SEGMENT, 0))
