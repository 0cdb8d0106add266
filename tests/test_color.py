import pytest
import torch

from quantsr.color import adain, fix_color, low_frequencies, wavelet
from quantsr.errors import UserError


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 64, 48, generator=generator), torch.rand(2, 3, 64, 48, generator=generator) * 0.3


def test_adain_takes_mean_and_deviation_of_the_reference(pair):
    image, reference = pair
    fixed = adain(image, reference)
    torch.testing.assert_close(fixed.mean((-2, -1)), reference.mean((-2, -1)))
    torch.testing.assert_close(fixed.std((-2, -1)), reference.std((-2, -1)), rtol=1e-3, atol=1e-4)


def test_adain_of_a_flat_image_is_finite():
    fixed = adain(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.2))
    torch.testing.assert_close(fixed, torch.full((1, 3, 8, 8), 0.2))


@pytest.mark.parametrize("how", ["none", "adain", "wavelet"])
def test_an_image_is_its_own_correction(pair, how):
    image, _ = pair
    torch.testing.assert_close(fix_color(image, image, how), image)


def test_wavelet_removes_a_tint_and_keeps_details(pair):
    image, _ = pair
    tint = torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)
    torch.testing.assert_close(wavelet(image + tint, image), image)


def test_low_frequencies_keep_a_constant_and_flatten_noise(pair):
    image, _ = pair
    flat = torch.full((1, 3, 40, 40), 0.7)
    torch.testing.assert_close(low_frequencies(flat, 5), flat)
    assert low_frequencies(image, 3).std() < 0.15 * image.std()


def test_wavelet_works_on_images_smaller_than_its_reach():
    image = torch.rand(1, 3, 5, 7)
    torch.testing.assert_close(wavelet(image, image), image)


@pytest.mark.parametrize("height", [40, 47, 64, 90])
def test_wavelet_in_strips_is_that_of_the_whole(monkeypatch, height):
    image, reference = torch.rand(2, 1, 3, height, 20, generator=torch.Generator().manual_seed(0))
    whole = wavelet(image, reference)
    monkeypatch.setattr("quantsr.color.STRIP", 16)
    assert torch.equal(wavelet(image, reference), whole)


@pytest.mark.parametrize("how", ["adain", "wavelet"])
def test_corrections_are_differentiable(how):
    image = torch.rand(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: fix_color(a, b, how), (image, reference))


def test_unknown_correction_is_named(pair):
    with pytest.raises(UserError, match="'ycbcr' is unknown"):
        fix_color(*pair, "ycbcr")
