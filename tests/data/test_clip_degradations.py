"""A clip is degraded the same in all its frames, but for the noise and what the codec makes of it."""

import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from quantsr.data.clip_degradations import ClipDegradation, compress_clip
from quantsr.data.degradations import DOWNSCALERS, blur, downscale
from quantsr.errors import UserError

HASH_OF_A_CLIP = """
import hashlib, sys
junk = [bytearray(97 * number) for number in range(int(sys.argv[1]))]
del junk[::2]
import torch
from quantsr.data.clip_degradations import compress_clip
clip = torch.rand(5, 3, 30, 34, generator=torch.Generator().manual_seed(0))
print(hashlib.sha256(compress_clip(clip, 24).numpy().tobytes()).hexdigest())
"""

ONLY_BLUR = ClipDegradation(noise=(0, 0), crf=None)


@pytest.fixture
def gt() -> torch.Tensor:
    """A bright block that moves over a ramp, (5, 3, 64, 96)."""
    clip = torch.linspace(0.1, 0.9, 96).expand(5, 3, 64, 96).clone()
    for number, frame in enumerate(clip):
        frame[:, 20:40, 30 + 3 * number : 60 + 3 * number] = torch.tensor([0.9, 0.2, 0.4])[:, None, None]
    return clip


@pytest.fixture
def still(gt) -> torch.Tensor:
    """Five times the same frame."""
    return gt[:1].repeat(5, 1, 1, 1)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def without(monkeypatch, codec: str) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {codec})


@pytest.mark.parametrize("scale", [1, 2, 4], ids=lambda scale: f"scale {scale}")
@pytest.mark.parametrize("crf", [(18, 33), None], ids=["compressed", "not compressed"])
def test_result_is_smaller_by_the_scale_in_8_bit_steps(gt, scale, crf):
    lq = ClipDegradation(scale, crf=crf)(gt, generator())
    assert lq.shape == (5, 3, 64 // scale, 96 // scale) and lq.dtype == torch.float32
    assert lq.min() >= 0 and lq.max() <= 1
    assert_close(lq * 255, (lq * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("crf", [(18, 33), None], ids=["compressed", "not compressed"])
def test_only_the_generator_decides(gt, crf):
    degradation = ClipDegradation(crf=crf)
    first, second, other = (degradation(gt, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_global_random_state_has_no_say(gt):
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(ClipDegradation()(gt, generator()))
    assert torch.equal(*results)


@pytest.mark.parametrize("seed", range(5))
def test_blur_and_kernel_are_one_for_the_clip(gt, still, seed):
    lq = ONLY_BLUR(still, generator(seed))
    assert torch.equal(lq, lq[:1].expand_as(lq))
    # A frame is degraded as it would be alone.
    assert torch.equal(ONLY_BLUR(gt, generator(seed))[3], ONLY_BLUR(gt[3:4], generator(seed))[0])


def test_blur_is_that_of_an_image(gt):
    lq = ClipDegradation(blur=(1.5, 1.5), noise=(0, 0), crf=None)(gt, generator())
    candidates = [downscale(blur(gt[2], 1.5), 4, kernel) for kernel in DOWNSCALERS]
    assert min((lq[2] - candidate).abs().max() for candidate in candidates) < 0.6 / 255


def test_noise_is_another_one_in_every_frame_of_one_strength():
    gray = torch.full((4, 3, 256, 256), 0.5)
    lq = ClipDegradation(blur=(0, 0), noise=(5, 20), crf=None)(gray, generator())
    noise = (lq - 0.5) * 255
    assert noise.std((1, 2, 3)).numpy() == pytest.approx(noise.std().item(), rel=0.05)
    assert 5 < noise.std() < 20
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1]) < 0.05


def test_compression_changes_pixels(gt):
    mild, strong = (ClipDegradation(noise=(0, 0), crf=(crf, crf))(gt, generator()) for crf in (18, 40))
    clean = ONLY_BLUR(gt, generator())
    assert 0 < (mild - clean).abs().mean() < (strong - clean).abs().mean()


class TestCompressClip:
    @pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
    def test_is_deterministic_and_worse_with_a_higher_factor(self, gt, codec, monkeypatch):
        if codec == "mpeg4":
            without(monkeypatch, "libx264")
        errors = [(compress_clip(gt, crf) - gt).square().mean() for crf in (18, 26, 33, 45)]
        assert errors == sorted(errors)
        assert torch.equal(compress_clip(gt, 28), compress_clip(gt, 28))

    def test_is_the_same_in_every_process(self):
        """However the memory of a process is laid out: the layouts differ by allocator, contents and size."""
        layouts = [(0, {"MALLOC_PERTURB_": "90"}), (500, {"PYTHONMALLOC": "malloc", "JUNK": "x" * 1001})]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", HASH_OF_A_CLIP, str(size)], env=os.environ | environment, stdout=subprocess.PIPE
            )
            for size, environment in layouts
        ]
        hashes = {process.communicate()[0] for process in processes}
        assert len(hashes) == 1 and all(process.returncode == 0 for process in processes)

    def test_codecs_are_of_like_quality(self, gt, monkeypatch):
        h264 = (compress_clip(gt, 28) - gt).square().mean()
        without(monkeypatch, "libx264")
        assert 0.25 < (compress_clip(gt, 28) - gt).square().mean() / h264 < 4

    @pytest.mark.parametrize("size", [(8, 8), (17, 31), (32, 33)], ids=str)
    def test_any_size_and_length(self, size):
        for length in (1, 2, 11):
            x = torch.full((length, 3, *size), 0.4)
            assert compress_clip(x, 20).shape == x.shape

    def test_colours_stay(self):
        colours = torch.tensor([[0.8, 0.1, 0.3], [0.1, 0.7, 0.2], [0.2, 0.3, 0.9], [0, 0, 0], [1, 1, 1]])
        clips = colours[:, None, :, None, None].expand(-1, 3, -1, 32, 32)
        for clip in clips:
            assert_close(compress_clip(clip, 18), clip, atol=3 / 255, rtol=0)

    def test_frames_keep_their_order(self):
        clip = torch.linspace(0, 1, 12)[:, None, None, None].expand(12, 3, 16, 16)
        assert_close(compress_clip(clip, 18), clip, atol=5 / 255, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"scale": 0}, "scale", id="scale of zero"),
        pytest.param({"blur": (2, 1)}, "blur", id="range runs backwards"),
        pytest.param({"noise": (0, 300)}, "noise", id="noise above the value range"),
        pytest.param({"crf": (18, 52)}, "crf", id="factor beyond the codec's"),
        pytest.param({"crf": 23}, "crf", id="number for a range"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UserError, match=f"ClipDegradation {message}"):
        ClipDegradation(**arguments)


def test_lists_as_from_a_configuration_file_are_welcome():
    assert ClipDegradation(crf=[20, 30]) == ClipDegradation(crf=(20, 30))


def test_clip_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="30x32"):
        ClipDegradation()(torch.rand(2, 3, 32, 30), generator())
