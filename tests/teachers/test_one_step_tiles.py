"""Images larger than a tile: any size, no seam, near the result without tiles; students of the teacher, too."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.data.degradations import to_float
from quantsr.data.photos import packaged_photos
from quantsr.errors import UserError
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.quarot import QuaRot
from quantsr.normalization import SharedStatistics
from quantsr.quant.calibrate import mode, settle
from quantsr.quant.folded import fold
from quantsr.quant.spec import Bits
from quantsr.teachers.files import build_teacher, load_teacher, save_teacher
from quantsr.teachers.micro import MICRO
from tests.conftest import micro_teacher

TILE = 32  # Of the micro teacher, whose sizes are padded to multiples of 4 and whose latents are half as large.


def calls_of(network) -> list[tuple[int, ...]]:
    """Sizes of what a network is called with from now on."""
    sizes = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    return sizes


@pytest.fixture
def tiled_teacher(teacher):
    """The micro teacher with tiles of 32 pixels: inputs of 8 are not tiled."""
    teacher.tile = TILE
    return teacher


@pytest.mark.parametrize("size", [(9, 9), (8, 23), (17, 5), (1, 40), (13, 22), (16, 16)], ids=str)
def test_any_size(tiled_teacher, size):
    lq = torch.rand(2, 3, *size)
    sr = tiled_teacher(lq)
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert sr.isfinite().all() and sr.std() > 0


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (3, 8)], ids=str)
def test_up_to_a_tile_nothing_changes(teacher, size):
    lq = torch.rand(2, 3, *size)
    whole = teacher(lq)
    teacher.tile = TILE
    assert torch.equal(teacher(lq), whole)


@pytest.mark.parametrize("size, expected", [((8, 8), 3), ((9, 8), 12), ((16, 16), 3 * 4 + 9 + 2 * 9), ((5, 3), 3)])
def test_tiles_are_counted_and_none_is_larger(tiled_teacher, size, expected):
    calls = [calls_of(network) for network in tiled_teacher.networks]
    tiled_teacher(torch.rand(1, 3, *size))
    assert sum(map(len, calls)) == expected == tiled_teacher.tiles(4 * size[0], 4 * size[1])
    for sizes, side in zip(calls, (TILE, TILE // 2, TILE // 2), strict=True):
        assert max(max(tile) for tile in sizes) <= side


def test_batch_does_not_matter(tiled_teacher):
    lq = torch.rand(2, 3, 12, 20) * torch.tensor([1, 0.2]).view(2, 1, 1, 1)
    torch.testing.assert_close(tiled_teacher(lq), torch.cat([tiled_teacher(x[None]) for x in lq]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("together", [2, 100])
def test_tiles_in_batches_give_the_same(tiled_teacher, together):
    lq = torch.rand(2, 3, 12, 20)
    one_by_one = tiled_teacher(lq)
    tiled_teacher.tile_batch = together
    calls = []
    tiled_teacher.vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    torch.testing.assert_close(tiled_teacher(lq), one_by_one, atol=1e-5, rtol=1e-5)
    assert max(calls) == 2 * min(together, 6)  # Six tiles of two images.


def test_gradients_pass_through_tiles(tiled_teacher):
    lq = torch.rand(1, 3, 12, 20, requires_grad=True)
    tiled_teacher.unet.requires_grad_(True)
    tiled_teacher.predict(lq).square().mean().backward()
    assert lq.grad.isfinite().all() and lq.grad.abs().sum((0, 1)).gt(0).all()
    assert tiled_teacher.unet.conv_in.weight.grad.any()


class TestTileOption:
    @pytest.mark.parametrize("side", [0, -4, 30, 6])
    def test_other_sizes_are_refused_and_change_nothing(self, teacher, side):
        with pytest.raises(UserError, match="tile takes a multiple of 4 output pixels"):
            teacher.tile = side
        with pytest.raises(UserError, match="tile takes a multiple of 4"):
            micro_teacher(tile=side)
        assert teacher.tile == 512

    def test_it_is_kept_in_files_and_twins_have_their_own(self, teacher, tmp_path):
        save_teacher(micro_teacher(tile=64), tmp_path / "a.safetensors")
        assert load_teacher(tmp_path / "a.safetensors").tile == 64
        teacher.twin().tile = 64
        assert teacher.tile == 512

    def test_files_from_before_there_were_tiles(self):
        assert load_teacher("tiny_image").tile == 512

    def test_the_default_is_osediffs_latent_tile(self):
        four = {"block_out_channels": [8] * 4, "norm_num_groups": 4}
        vae = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        teacher = build_teacher(vae=MICRO["vae"] | four | vae, unet=MICRO["unet"])
        assert (teacher.latent_factor, teacher._latent_tile) == (8, 64)


# Students


def calibrated(method) -> torch.nn.Module:
    """Its student, calibrated on crops of a tile's size."""
    student, crops = method.student, torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for observation in ("observe_smoothing", "observe_ranges"):
        with torch.no_grad(), mode(student, observation):
            student(crops)
        settle(student)
    return fold(student).freeze()


@pytest.mark.parametrize("kind", [MinMax, PassionSR, QuaRot], ids=lambda kind: kind.__name__)
def test_a_student_calibrated_on_crops_takes_large_images(tiled_teacher, kind):
    """Static ranges, learned scales of attention's keys, dynamic ranges by the token: both in tiles, at most twice as
    far from the teacher (root mean square) as both without. Crops do not show what norms of a whole image let pass."""
    student = calibrated(kind(tiled_teacher, Bits(8, 8)))
    assert student.tile == TILE
    keys = [m.key_scale.scale.numel() for m in student.modules() if getattr(m, "key_scale", None) is not None]
    generator = torch.Generator().manual_seed(0)
    lq, calls = torch.rand(1, 3, 13, 22, generator=generator), calls_of(student.vae.decoder)
    with torch.no_grad():
        sr = student(lq)
        error = (sr - tiled_teacher(lq)).square().mean()
        assert sr.shape == (1, 3, 52, 88) and set(calls) == {(TILE // 2, TILE // 2)}
        student.tile = tiled_teacher.tile = 512
        assert error < 4 * (student(lq) - tiled_teacher(lq)).square().mean()
    # In the middle of the VAE, a key for every latent pixel: tiles never ask for another number.
    assert kind is not PassionSR or (TILE // 2) ** 2 in keys


# Seams


def ramp(height: int, width: int) -> Tensor:
    """A gray gradient."""
    x, y = torch.linspace(0, 0.6, width), torch.linspace(0, 0.4, height)
    return (x + y[:, None]).expand(1, 3, height, width).contiguous()


def photo(height: int, width: int) -> Tensor:
    """A part of a photograph, scaled down by 4."""
    image = to_float(dict(packaged_photos())["chelsea"])[None, :, 30 : 30 + 4 * height, 60 : 60 + 4 * width]
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


BOUNDS = {"gradient": (ramp, 0.015, 0.002), "photo": (photo, 0.04, 0.003)}
"""Largest and mean difference to the untiled result, 16 pixels and more from the border."""


@pytest.mark.slow
@pytest.mark.parametrize(("make", "largest", "mean"), BOUNDS.values(), ids=BOUNDS)
def test_tiles_of_the_packaged_teacher_leave_no_seam(make, largest, mean):
    """Nine tiles of 128 pixels each in encoder and decoder, fifteen in the UNet; neither side divides by 8."""
    teacher, lq = load_teacher("tiny_image"), make(63, 79)
    with torch.no_grad():
        whole = teacher(lq)
        teacher.tile = 128
        difference = (teacher(lq) - whole)[..., 16:-16, 16:-16].abs()
    assert difference.max() < largest and difference.mean() < mean


@pytest.mark.slow
def test_without_shared_statistics_there_would_be_one(monkeypatch):
    """The bounds tell: tiles whose norms see only themselves are beyond them by far."""
    monkeypatch.setattr(SharedStatistics, "__init__", lambda self, network: vars(self).update(norms=[]))
    teacher, lq = load_teacher("tiny_image"), photo(63, 79)
    with torch.no_grad():
        whole = teacher(lq)
        teacher.tile = 128
        difference = (teacher(lq) - whole)[..., 16:-16, 16:-16].abs()
    assert -10 * math.log10(difference.square().mean()) < 45  # Seen: 41 dB, and 56 dB with shared statistics.
    assert difference.max() > BOUNDS["photo"][1] and difference.mean() > BOUNDS["photo"][2]
