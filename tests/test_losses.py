"""The distance in encoder features grows with the difference, and trains the image alone."""

import pytest
import torch

from quantsr.losses import EncoderFeatures


@pytest.fixture
def distance(teacher) -> EncoderFeatures:
    return EncoderFeatures(teacher.vae.encoder)


def test_equal_images_are_at_distance_zero(distance):
    image = torch.rand(2, 3, 16, 16)
    assert distance(image, image) == 0


def test_grows_with_the_difference(distance):
    image, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    distances = [distance(image + amount * noise, image).item() for amount in (0.01, 0.05, 0.2)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_features_have_unit_length_at_every_resolution(distance):
    features = distance.features(torch.rand(1, 3, 16, 16))
    assert [tuple(f.shape[-2:]) for f in features] == [(8, 8), (8, 8)]
    for feature in features:
        assert torch.allclose(feature.norm(dim=1), torch.ones(1, *feature.shape[-2:]), atol=1e-4)


def test_gradient_goes_to_the_image_and_not_to_target_or_encoder(distance):
    image, target = (torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2))
    distance(image, target).backward()
    assert image.grad.abs().sum() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_a_step_down_the_gradient_comes_closer(distance):
    image, target = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16)
    before = distance(image, target)
    (gradient,) = torch.autograd.grad(before, image)
    assert distance(image - 0.1 * gradient / gradient.abs().max(), target) < before
