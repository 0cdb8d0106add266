"""A model runs over images and clips of any length."""

import pytest
import torch

from quantsr.quant.prepare import prepare
from quantsr.quant.recipe import LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec
from quantsr.upscaling import on_device, stream_frames, takes_batches
from tests.conftest import micro_teacher, micro_video_teacher


class TestOnDevice:
    def test_an_image_model_takes_a_clip_frame_by_frame(self):
        teacher, clip = micro_teacher().freeze(), torch.rand(2, 4, 3, 8, 8)
        with torch.no_grad():
            expected = torch.stack([torch.cat([teacher(frame[None]) for frame in frames]) for frames in clip])
            torch.testing.assert_close(on_device(teacher, "cpu")(clip), expected)

    def test_an_image_model_takes_images(self, teacher, lq):
        with torch.no_grad():
            assert torch.equal(on_device(teacher, "cpu")(lq), teacher(lq))

    def test_a_video_model_takes_a_clip_of_its_own_length_as_it_is(self):
        teacher, clip = micro_video_teacher().freeze(), torch.rand(1, 3, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(on_device(teacher, "cpu")(clip), teacher(clip))

    def test_a_longer_clip_goes_through_in_segments_that_share_a_frame(self):
        """Seven frames in segments of three: 0 to 2, 2 to 4, 4 to 6; frame 2 is the mean of two."""
        teacher, clip = micro_video_teacher().freeze(), torch.rand(7, 3, 8, 8)
        seen = []
        teacher.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0][0], output[0])))
        restored = on_device(teacher, "cpu")(clip[None])[0]
        assert restored.shape == (7, 3, 32, 32)
        for (segment, _), first in zip(seen, (0, 2, 4), strict=True):
            assert torch.equal(segment, clip[first : first + 3])
        outputs = [output for _, output in seen]
        torch.testing.assert_close(restored[1], outputs[0][1])
        torch.testing.assert_close(restored[2], (outputs[0][2] + outputs[1][0]) / 2)
        torch.testing.assert_close(restored[3], outputs[1][1])

    @pytest.mark.parametrize("length", [1, 4])
    def test_any_length_comes_out_as_it_went_in(self, length):
        frames = stream_frames(micro_video_teacher().freeze(), torch.rand(length, 3, 8, 8), "cpu")
        assert [frame.shape for frame in frames] == [(3, 32, 32)] * length


class TestTakesBatches:
    @pytest.mark.parametrize(
        ("act", "expected"),
        [
            (AffineSpec(4), True),
            (AffineSpec(4, granularity="token", range="dynamic"), True),
            (AffineSpec(4, range="dynamic"), False),
        ],
        ids=["static", "dynamic by the token", "dynamic by the tensor"],
    )
    def test_not_where_all_that_is_given_at_a_time_has_one_range(self, teacher, act, expected):
        student = teacher.twin()
        prepare(student, [Rule("*", LayerRecipe(AffineSpec(4, granularity="channel"), act))])
        assert takes_batches(student) is expected

    def test_full_precision(self, teacher):
        assert takes_batches(teacher)
