"""A degradation is a seeded function from a clean image to a smaller, worse one."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from quantsr.data.degradations import DOWNSCALERS, Degradation, add_noise, blur, compress, downscale
from quantsr.errors import UserError


@pytest.fixture
def gt() -> torch.Tensor:
    """A smooth image with an edge, (3, 64, 96)."""
    ramp = torch.linspace(0.1, 0.9, 96).expand(3, 64, 96).clone()
    ramp[:, 20:40, 30:60] = torch.tensor([0.9, 0.2, 0.4])[:, None, None]
    return ramp


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("scale", [1, 2, 4], ids=lambda scale: f"scale {scale}")
def test_result_is_smaller_by_the_scale(gt, scale):
    assert Degradation(scale)(gt, generator()).shape == (3, 64 // scale, 96 // scale)


def test_result_is_float_in_range_in_8_bit_steps():
    harsh = Degradation(noise=(100, 100))
    lq = harsh(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), generator())
    assert lq.dtype == torch.float32
    assert lq.min() >= 0 and lq.max() <= 1
    assert_close(lq * 255, (lq * 255).round(), atol=1e-4, rtol=0)


def test_equal_generators_give_equal_results(gt):
    assert_close(Degradation()(gt, generator(3)), Degradation()(gt, generator(3)), atol=0, rtol=0)


def test_different_generators_give_different_results(gt):
    assert not torch.equal(Degradation()(gt, generator(3)), Degradation()(gt, generator(4)))


def test_global_random_state_has_no_say(gt):
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(Degradation()(gt, generator()))
    assert torch.equal(*results)


def test_mildest_settings_nearly_keep_the_image(gt):
    mild = Degradation(scale=1, blur=(0, 0), noise=(0, 0), jpeg=(100, 100))
    smooth = gt[:, :16]
    assert_close(mild(smooth, generator()), smooth, atol=4 / 255, rtol=0)


def test_input_is_left_as_it_was(gt):
    before = gt.clone()
    Degradation()(gt, generator())
    assert torch.equal(gt, before)


@pytest.mark.parametrize("kernel", DOWNSCALERS)
def test_downscaling_keeps_a_flat_image(kernel):
    assert_close(downscale(torch.full((3, 32, 32), 0.3), 4, kernel), torch.full((3, 8, 8), 0.3))


def test_blur_spreads_a_point_with_its_sigma():
    point = torch.zeros(3, 41, 41)
    point[:, 20, 20] = 1
    profile = blur(point, sigma=2.0)[0].sum(0)
    variance = (profile * (torch.arange(41) - 20) ** 2).sum() / profile.sum()
    # Cutting off at three sigma loses a few percent of the variance.
    assert variance.sqrt().item() == pytest.approx(2.0, rel=0.03)


def test_blur_of_a_tiny_image_works():
    assert blur(torch.rand(3, 4, 4), sigma=2.0).shape == (3, 4, 4)


def test_noise_has_its_sigma():
    noisy = add_noise(torch.zeros(3, 200, 200), sigma=10 / 255, rng=generator())
    assert noisy.std().item() * 255 == pytest.approx(10, rel=0.02)


def test_lower_jpeg_quality_loses_more(gt):
    errors = [(compress(gt, quality) - gt).square().mean() for quality in (10, 50, 95)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"scale": 0}, "scale", id="scale of zero"),
        pytest.param({"scale": 2.5}, "scale", id="broken scale"),
        pytest.param({"blur": (2, 1)}, "blur", id="range runs backwards"),
        pytest.param({"blur": (-1, 1)}, "blur", id="negative blur"),
        pytest.param({"noise": (0, 300)}, "noise", id="noise above the value range"),
        pytest.param({"jpeg": (0, 90)}, "jpeg", id="JPEG quality of zero"),
        pytest.param({"jpeg": 50}, "jpeg", id="number for a range"),
        pytest.param({"jpeg": (10, 20, 30)}, "jpeg", id="three numbers"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UserError, match=f"Degradation {message}"):
        Degradation(**arguments)


def test_lists_as_from_a_configuration_file_are_welcome():
    assert Degradation(blur=[1, 2]) == Degradation(blur=(1, 2))


def test_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="30x32"):
        Degradation()(torch.rand(3, 32, 30), generator())
