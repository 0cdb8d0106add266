from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantsr.flow import leaves_frame, occlusion, resize_flow, warp

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "mgldvsr_video_vae_tiny.safetensors"


def constant_flow(x: float, y: float, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, height, width)


@pytest.fixture
def image():
    return torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_no_motion_leaves_the_image(image):
    torch.testing.assert_close(warp(image, constant_flow(0, 0)), image)


def test_a_pixel_takes_the_value_that_its_flow_points_to(image):
    warped = warp(image, constant_flow(3, -2))  # from 3 to the right and 2 above
    torch.testing.assert_close(warped[..., 2:, :-3], image[..., :-2, 3:])


def test_outside_the_image_is_zero(image):
    warped = warp(image, constant_flow(3, -2))
    assert warped[..., :2, :].abs().max() < 1e-5 and warped[..., -3:].abs().max() < 1e-5


def test_between_pixels_it_is_linear(image):
    torch.testing.assert_close(
        warp(image, constant_flow(0.25, 0))[..., :-1], image[..., :-1] * 0.75 + image[..., 1:] / 4
    )


def test_a_single_row_can_be_warped(image):
    row = image[..., :1, :]
    torch.testing.assert_close(warp(row, constant_flow(1, 0, height=1))[..., :-1], row[..., 1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype_and_exact_coordinates(dtype):
    image = torch.arange(600).remainder(7).view(1, 1, 1, 600).to(dtype)
    warped = warp(image, constant_flow(1, 0, 1, 600).to(dtype))
    assert warped.dtype == dtype
    torch.testing.assert_close(warped[..., :-1], image[..., 1:], atol=1e-2, rtol=0)


def test_warp_is_differentiable(image):
    flow = constant_flow(0.3, -0.6).double().clone().requires_grad_()
    assert torch.autograd.gradcheck(warp, (image.double().requires_grad_(), flow))


def test_a_flow_of_another_size_is_refused(image):
    with pytest.raises(ValueError, match="has the shape"):
        warp(image, constant_flow(0, 0, 8, 11))


def test_resized_flow_is_in_pixels_of_the_new_grid():
    resized = resize_flow(constant_flow(3, -2, 8, 12), (4, 24))
    torch.testing.assert_close(resized, constant_flow(6, -1, 4, 24))


def test_consistent_flows_are_occluded_only_where_the_target_is_outside():
    forward, backward = occlusion(constant_flow(2, 0), constant_flow(-2, 0))
    expected = torch.zeros(1, 1, 8, 12)
    expected[..., -2:] = 1
    torch.testing.assert_close(forward, expected)
    torch.testing.assert_close(backward, expected.flip(-1))


def test_flows_that_contradict_each_other_are_occluded():
    forward, backward = occlusion(constant_flow(1, 1), constant_flow(1, 1))
    assert forward.all() and backward.all()


def test_flows_may_differ_by_half_a_pixel():
    forward, _ = occlusion(constant_flow(1, 0), constant_flow(-0.51, 0))
    assert not forward[..., :-1].any()
    forward, _ = occlusion(constant_flow(1, 0), constant_flow(-0.47, 0))
    assert forward.all()


@pytest.mark.skipif(not REFERENCE.is_file(), reason="reference vectors (../shared/reference) are not here")
def test_occlusion_is_that_of_the_authors():
    vectors = load_file(REFERENCE)
    forward, backward = occlusion(vectors["occlusion.fwd_flow"], vectors["occlusion.bwd_flow"])
    assert torch.equal(forward.squeeze(1), vectors["occlusion.fwd"])
    assert torch.equal(backward.squeeze(1), vectors["occlusion.bwd"])


def test_pixels_that_leave_the_frame():
    outside = leaves_frame(constant_flow(2, -1))
    expected = torch.zeros(1, 1, 8, 12)
    expected[..., -2:] = expected[..., :1, :] = 1
    torch.testing.assert_close(outside, expected)
    assert not leaves_frame(constant_flow(0, 0)).any()
