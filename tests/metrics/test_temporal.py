import pytest
import torch
import torch.nn.functional as F

from quantsr.errors import UserError
from quantsr.flow import warp
from quantsr.metrics.temporal import WarpingError, occluded_pixels, warping_error

HEIGHT, WIDTH = 48, 64


def smooth_noise(height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1).squeeze(0)


def constant_flow(x: float, y: float, pairs: int = 3) -> torch.Tensor:
    return torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).repeat(pairs, 1, HEIGHT, WIDTH)


def pan(x: int, y: int, t: int = 4) -> torch.Tensor:
    """A clip ``(t, 3, h, w)`` in which everything moves by (x, y) from frame to frame."""
    canvas = smooth_noise(HEIGHT + 40, WIDTH + 40)
    views = [(20 - i * y, 20 - i * x) for i in range(t)]
    return torch.stack([canvas[:, top : top + HEIGHT, left : left + WIDTH] for top, left in views])


def flicker(amplitude: float, t: int = 4) -> torch.Tensor:
    """Every other frame is brighter."""
    return amplitude * (torch.arange(t) % 2).view(-1, 1, 1, 1)


def no_occlusion(flow: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(flow[:, :1])


def test_a_static_clip_has_no_error():
    clip = pan(0, 0)
    assert warping_error(clip, constant_flow(0, 0), no_occlusion(constant_flow(0, 0))) < 1e-20


def test_a_clip_that_moves_by_its_flow_has_no_error():
    flow = constant_flow(3, -2)
    assert warping_error(pan(3, -2), flow, occluded_pixels(flow)) < 1e-8
    assert warping_error(pan(3, -2), -flow, occluded_pixels(-flow)) > 1


def test_flicker_costs_its_square_in_thousandths():
    flow = constant_flow(3, -2)
    error = warping_error(pan(3, -2) * 0.9 + flicker(0.1), flow, occluded_pixels(flow))
    assert error.dtype == torch.float64
    torch.testing.assert_close(error.item(), 0.1**2 * 1000, rtol=1e-5, atol=0)


def test_occluded_pixels_do_not_count():
    clip, flow, occluded = pan(0, 0), constant_flow(0, 0), no_occlusion(constant_flow(0, 0))
    clip[1, :, :10] = 1 - clip[1, :, :10]
    assert warping_error(clip, flow, occluded) > 1
    occluded[:, :, :10] = 1
    assert warping_error(clip, flow, occluded) < 1e-20


def test_the_mean_is_over_what_counts():
    flow, occluded = constant_flow(0, 0), no_occlusion(constant_flow(0, 0))
    occluded[:, :, 5:] = 1
    torch.testing.assert_close(warping_error(flicker(0.1).expand(4, 3, HEIGHT, WIDTH), flow, occluded).item(), 10.0)


def test_a_pair_that_is_all_occluded_counts_as_zero():
    flow, occluded = constant_flow(0, 0), no_occlusion(constant_flow(0, 0))
    occluded[0] = 1
    error = warping_error(flicker(0.3).expand(4, 3, HEIGHT, WIDTH), flow, occluded)
    torch.testing.assert_close(error.item(), 90.0 * 2 / 3)


def test_without_a_backward_flow_only_what_leaves_the_frame_is_occluded():
    flow = constant_flow(3, -2)
    flow[:, :, 20:30] *= 2  # a boundary of the motion
    occluded = occluded_pixels(flow)
    assert occluded[..., -3:].all() and occluded[..., :2, :].all()
    assert not occluded[..., 2:, :-6].any()


def test_with_a_backward_flow_contradictions_and_boundaries_are_occluded():
    flow = constant_flow(3, -2)
    assert not occluded_pixels(flow, -flow)[..., 2:, :-3].any()
    wrong = -flow
    wrong[..., 10:20, 10:20] += 2
    occluded = occluded_pixels(flow, wrong)
    assert occluded[..., 12:22, 7:17].all()  # the pixels that point there
    assert occluded.sum() == occluded_pixels(flow, -flow).sum() + 3 * 100
    forward = flow.clone()
    forward[..., 24:, :] += 0.5
    occluded = occluded_pixels(forward, -flow)
    assert occluded[..., 23, :].all() and not occluded[..., 24:-2, :-4].any()


@pytest.mark.parametrize("estimated", [False, True])
def test_metric_of_a_moving_clip_sees_flicker(estimated):
    errors = []
    for amplitude in (0.0, 0.1):
        metric = WarpingError("dis" if estimated else None)
        clip = (pan(2, 1) * 0.8 + flicker(amplitude)).unsqueeze(0)
        metric.update(clip, *([] if estimated else [constant_flow(2, 1).unsqueeze(0)]))
        errors.append(metric.compute().item())
    assert errors[0] < 0.5
    assert errors[1] == pytest.approx(10, rel=0.3 if estimated else 1e-5)


def test_the_true_flow_takes_the_place_of_the_estimate():
    metric, flow = WarpingError("dis"), constant_flow(2, 1).unsqueeze(0)
    metric.update(pan(0, 0).unsqueeze(0), flow)
    assert metric.compute() > 1


def test_metric_averages_clips_not_batches():
    clips = torch.stack([flicker(a).expand(4, 3, HEIGHT, WIDTH) for a in (0.1, 0.2, 0.3)])
    flow = torch.zeros(3, 3, 2, HEIGHT, WIDTH)
    metric = WarpingError()
    metric.update(clips[:2], flow[:2])
    metric.update(clips[2:], flow[2:], -flow[2:])
    torch.testing.assert_close(metric.compute().item(), (10 + 40 + 90) / 3, rtol=1e-5, atol=0)


def test_a_warped_clip_is_measured_in_the_first_frames_grid():
    first = smooth_noise(HEIGHT, WIDTH).unsqueeze(0)
    flow = constant_flow(0.5, 0.0, pairs=1)
    clip = torch.cat([warp(first, flow), first])  # what is at p in frame 0 is at p + flow in frame 1
    assert warping_error(clip, flow, occluded_pixels(flow)) < 1e-8


def test_neither_flow_nor_estimator():
    with pytest.raises(UserError, match="true flow of the clips or an optical flow estimator"):
        WarpingError().update(pan(0, 0).unsqueeze(0))


def test_unknown_estimators_are_named():
    with pytest.raises(UserError, match="farneback"):
        WarpingError("farneback")


@pytest.mark.parametrize("clips", [torch.rand(1, 1, 3, 32, 32), torch.rand(2, 3, 32, 32)])
def test_not_a_clip(clips):
    with pytest.raises(UserError, match="two frames or more"):
        WarpingError("dis").update(clips)


def test_flow_and_occlusion_of_wrong_shapes():
    clip, flow = pan(0, 0), constant_flow(0, 0)
    with pytest.raises(UserError, match="the flow of a clip"):
        warping_error(clip, flow[:2], no_occlusion(flow))
    with pytest.raises(UserError, match="occlusions of a clip"):
        warping_error(clip, flow, no_occlusion(flow)[:, 0])
    with pytest.raises(UserError, match="the flow of a clip"):
        WarpingError().update(clip.unsqueeze(0), flow[..., :-1].unsqueeze(0))
