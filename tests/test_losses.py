"""Perceptual distances grow with the difference, and train the image alone; LPIPS is the published one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import VGG16_Weights, vgg16

from quantsr.errors import UserError
from quantsr.losses import LPIPS, PERCEPTUAL, EncoderFeatures, perceptual_distance

VGG16 = VGG16_Weights.DEFAULT.url.rpartition("/")[2]


def random_vgg16() -> dict[str, Tensor]:
    """The state dict of a VGG16 that takes 200 kB in a file: most values are one that is repeated with stride 0."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16(weights=None).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        state[name] = torch.zeros(()).expand(shape)
        if name.startswith("features") and len(shape) == 4:
            outputs, inputs, *kernel = shape
            # The first layer is random all over; later ones sum over their inputs.
            kinds = inputs if inputs == 3 else 1
            weight = torch.randn(outputs, kinds, *kernel, generator=generator) / (3 * inputs**0.5)
            state[name] = weight.expand(shape)
    return state


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Path]:
    """A folder of torch.hub that holds a VGG16; nothing can be downloaded."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    torch.save(random_vgg16(), folder / "checkpoints" / VGG16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "_hub_dir", str(folder))
        patch.delattr(torch.hub, "download_url_to_file")
        yield folder


@pytest.fixture(scope="module")
def lpips(hub) -> LPIPS:
    return LPIPS()


@pytest.fixture
def distance(teacher) -> EncoderFeatures:
    return EncoderFeatures(teacher.features)


def test_equal_images_are_at_distance_zero(distance):
    image = torch.rand(2, 3, 16, 16)
    assert distance(image, image) == 0


def test_grows_with_the_difference(distance):
    image, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    distances = [distance(image + amount * noise, image).item() for amount in (0.01, 0.05, 0.2)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_features_have_unit_length_at_every_resolution(distance):
    features = distance.unit_features(torch.rand(1, 3, 16, 16))
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


class TestLPIPS:
    def test_equal_images_are_at_distance_zero(self, lpips):
        image = torch.rand(2, 3, 32, 32)
        assert lpips(image, image) == 0

    def test_grows_with_the_difference(self, lpips):
        image, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
        distances = [lpips(image + amount * noise, image).item() for amount in (0.01, 0.05, 0.2)]
        assert 0 < distances[0] < distances[1] < distances[2]

    def test_is_that_of_torchmetrics(self, lpips):
        image, target = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
        metric = LearnedPerceptualImagePatchSimilarity("vgg", normalize=True)
        assert lpips(image, target).item() == pytest.approx(metric(image, target).item(), rel=1e-5)

    def test_values_outside_of_the_range_are_no_error(self, lpips):
        image = torch.rand(1, 3, 16, 16) * 1.2 - 0.1
        assert lpips(image, image.clamp(0, 1)) > 0

    def test_half_precision_images_are_measured_in_float32(self, lpips):
        image, target = torch.rand(2, 1, 3, 16, 16).bfloat16()
        assert lpips(image, target) == lpips(image.float(), target.float())

    def test_gradient_goes_to_the_image_alone(self, lpips):
        image, target = (torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2))
        lpips(image, target).backward()
        assert image.grad.abs().sum() > 0
        assert target.grad is None

    def test_whoever_holds_it_neither_trains_nor_stores_it(self, lpips):
        module = LightningModule()
        module.distance = lpips
        image = torch.rand(1, 3, 16, 16)
        before = lpips(image, 1 - image)
        assert list(module.parameters()) == [] and module.state_dict() == {}
        assert module.train().distance(image, 1 - image) == before

    def test_too_small_an_image(self, lpips):
        with pytest.raises(UserError, match="16 x 16 pixels or more, not 32 x 12"):
            lpips(torch.rand(1, 3, 12, 32), torch.rand(1, 3, 12, 32))


class TestPerceptualDistance:
    def test_by_name(self, hub, teacher):
        built = [type(perceptual_distance(name, teacher.features)) for name in PERCEPTUAL]
        assert built == [EncoderFeatures, LPIPS]

    def test_features_are_those_of_the_encoder(self, teacher):
        assert perceptual_distance("features", teacher.features).features == teacher.features

    def test_unknown_name(self, teacher):
        with pytest.raises(UserError, match=r"one of \['features', 'lpips'\], not 'dists'"):
            perceptual_distance("dists", teacher.features)

    def test_missing_weights_are_named_with_where_they_come_from(self, hub, teacher, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        with pytest.raises(UserError) as error:
            perceptual_distance("lpips", teacher.features)
        expected = (str(tmp_path / "checkpoints" / VGG16), VGG16_Weights.DEFAULT.url, "method.perceptual=features")
        assert all(text in str(error.value) for text in expected)

    @pytest.mark.parametrize("content", [b"", b"no weights"], ids=["empty", "text"])
    def test_unreadable_weights(self, hub, teacher, tmp_path, monkeypatch, content):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / VGG16).write_bytes(content)
        with pytest.raises(UserError, match="does not hold the weights of VGG16"):
            perceptual_distance("lpips", teacher.features)
