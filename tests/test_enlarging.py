"""Bicubic enlargement is PyTorch's or Pillow's."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from quantsr.data.photos import packaged_photos
from quantsr.enlarging import bicubic


@pytest.fixture
def photo() -> torch.Tensor:
    """A part of a photograph, neither square nor even, (3, 37, 61) uint8."""
    return packaged_photos()[0][1][:, 40:77, 20:81]


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_pillows_is_what_resize_makes(photo, scale):
    size = scale * photo.shape[2], scale * photo.shape[1]
    want = pil_to_tensor(to_pil_image(photo).resize(size, Image.Resampling.BICUBIC)).int()
    up = bicubic(photo[None] / 255, scale, "pillow")[0] * 255
    torch.testing.assert_close(up, up.round())
    apart = (up.round().int() - want).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.001


def test_torchs_is_interpolate(photo):
    lq = photo[None] / 255
    assert torch.equal(bicubic(lq, 4), F.interpolate(lq, scale_factor=4, mode="bicubic").clamp(0, 1))


@pytest.mark.parametrize("kernel", ["torch", "pillow"])
def test_a_clip_is_its_frames_and_the_input_stays(kernel):
    clips = torch.rand(2, 3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    before = clips.clone()
    up = bicubic(clips, 2, kernel)
    assert up.shape == (2, 3, 3, 10, 14)
    assert torch.equal(up, torch.stack([bicubic(clip, 2, kernel) for clip in clips]))
    bicubic(clips, 1, kernel)
    assert torch.equal(clips, before)
