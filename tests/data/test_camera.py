"""A camera path is smooth and stays on the photograph, and the flow of its clip is exact."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from quantsr.data.camera import camera_path, render, true_flow

SIZE = (96, 128)
SEEDS = pytest.mark.parametrize("seed", range(6), ids=lambda seed: f"seed {seed}")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth_photo(height: int = 240, width: int = 320) -> torch.Tensor:
    """Slow waves, which interpolation hardly changes, (3, height, width)."""
    y, x = torch.meshgrid(torch.arange(height) / 20, torch.arange(width) / 20, indexing="ij")
    return 0.5 + 0.2 * torch.stack([torch.sin(x + y), torch.cos(x - 0.5 * y), torch.sin(0.7 * x) * torch.cos(y)])


def pixels(size: tuple[int, int]) -> torch.Tensor:
    """(2, height, width): x and y of every pixel."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    return torch.stack([x, y])


def look_up(frames: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, 3, h, w) frames where the flow points to, and (t, h, w) whether all that is interpolated is inside."""
    size = flow.shape[-2:]
    longest = torch.tensor([size[1] - 1, size[0] - 1])[:, None, None]
    places = pixels(size) + flow
    inside = ((places >= 1) & (places <= longest - 1)).all(1)
    grid = (2 * places / longest - 1).movedim(1, -1)
    return F.grid_sample(frames, grid, mode="bicubic", align_corners=True), inside


@SEEDS
def test_next_frame_where_the_flow_points_to_is_the_frame(seed):
    path = camera_path((240, 320), SIZE, 6, generator(seed))
    clip, flow = render(smooth_photo(), path, SIZE), true_flow(path, SIZE)
    warped, inside = look_up(clip[1:], flow)
    assert inside.float().mean() > 0.85
    error = (warped - clip[:-1]).abs().amax(1)[inside]
    still = (clip[1:] - clip[:-1]).abs().amax(1)[inside]
    # Two interpolations of the same waves.
    assert error.max() < 3e-3 and error.mean() < still.mean() / 2


@SEEDS
def test_flow_leads_to_the_same_point_of_the_photo(seed):
    path = camera_path((240, 320), SIZE, 6, generator(seed))
    centre = torch.tensor([63.5, 47.5])[:, None, None]
    here = pixels(SIZE).expand(5, -1, -1, -1) - centre
    there = here + true_flow(path, SIZE)
    seen_here, seen_there = (
        maps[..., :2] @ places.flatten(2).double() + maps[..., 2:]
        for maps, places in ((path[:-1], here), (path[1:], there))
    )
    assert_close(seen_here, seen_there, atol=1e-4, rtol=0)


@SEEDS
def test_composed_flow_leads_to_a_later_frame(seed):
    """Flow is a map: what frame 0 -> 1 -> 2 says is what the path says about 0 -> 2."""
    path = camera_path((240, 320), SIZE, 3, generator(seed))
    first, second = true_flow(path, SIZE)
    both, inside = look_up(second[None], first[None])
    direct = true_flow(path[::2], SIZE)
    assert_close((first + both[0])[:, inside[0]], direct[0][:, inside[0]], atol=1e-3, rtol=0)


@SEEDS
@pytest.mark.parametrize("photo", [(321, 481), (481, 321), (130, 140), (128, 128)], ids=str)
def test_camera_never_looks_outside_the_photo(photo, seed):
    path = camera_path(photo, (128, 128), 40, generator(seed))
    corners = torch.tensor([[x, y, 1] for x in (-63.5, 63.5) for y in (-63.5, 63.5)], dtype=torch.float64)
    seen = path @ corners.T
    assert seen.amin() > 0
    assert seen[:, 0].max() < photo[1] - 1 and seen[:, 1].max() < photo[0] - 1


@SEEDS
def test_no_border_is_seen(seed):
    """The outermost pixels of this photo are black."""
    photo = F.pad(torch.ones(3, 236, 316), (2, 2, 2, 2))
    photo[:, 1:-1, 1:-1] = 1
    clip = render(photo, camera_path((240, 320), SIZE, 20, generator(seed)), SIZE)
    assert clip.min() > 0.99


@SEEDS
def test_motion_is_mild_and_smooth(seed):
    flow = true_flow(camera_path((1000, 1000), SIZE, 50, generator(seed)), SIZE)
    speed = flow.norm(dim=1)
    assert speed.mean() > 0.05 and speed.max() < 15
    assert (flow[1:] - flow[:-1]).norm(dim=1).max() < 5


def test_there_is_pan_rotation_and_zoom_by_parts_of_a_pixel():
    flow = true_flow(camera_path((1000, 1000), SIZE, 10, generator()), SIZE)
    centre = flow[..., 47:49, 63:65].mean((-2, -1))
    assert ((centre % 1 > 0.01) & (centre % 1 < 0.99)).any()
    right = flow[..., -1] - flow[..., 0]
    assert right[:, 0].abs().amax() > 0.01 and right[:, 1].abs().amax() > 0.01


def test_photo_is_sampled_at_about_its_own_size():
    for seed in range(20):
        path = camera_path((321, 481), (128, 128), 10, generator(seed))
        sampling = torch.linalg.det(path[..., :2]).sqrt()
        assert sampling.min() > 0.75 and sampling.max() < 1.25


def test_standing_camera_has_no_flow():
    path = camera_path((240, 320), SIZE, 1, generator()).expand(3, -1, -1)
    assert_close(true_flow(path, SIZE), torch.zeros(2, 2, *SIZE))


def test_flow_counts_right_and_down_as_positive():
    """A camera that moves right and down by (3, 2) sees everything move left and up."""
    path = torch.eye(2, 3, dtype=torch.float64).repeat(2, 1, 1)
    path[:, :, 2] = torch.tensor([[100.0, 100], [103, 102]])
    flow = true_flow(path, SIZE)
    assert_close(flow[0], torch.tensor([-3.0, -2])[:, None, None].expand(2, *SIZE))


def test_straight_view_of_whole_pixels_is_the_crop():
    photo = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    path = torch.eye(2, 3, dtype=torch.float64)[None]
    path[:, :, 2] = torch.tensor([10 + 7.5, 20 + 3.5])
    assert_close(render(photo, path, (8, 16))[0], photo[:, 20:28, 10:26], atol=1e-4, rtol=0)


def test_frames_are_in_range_whatever_interpolation_does():
    clip = render((smooth_photo() > 0.5).float(), camera_path((240, 320), SIZE, 3, generator()), SIZE)
    assert clip.shape == (3, 3, *SIZE) and clip.dtype == torch.float32
    assert clip.min() >= 0 and clip.max() <= 1


def test_generator_decides():
    paths = [camera_path((240, 320), SIZE, 5, generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(paths[0], paths[1]) and not torch.equal(paths[0], paths[2])
