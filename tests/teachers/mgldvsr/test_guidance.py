from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantsr.flow import occlusion
from quantsr.teachers.mgldvsr.guidance import Motion, flow_loss, guide, motion

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "mgldvsr_video_vae_tiny.safetensors"
needs_reference = pytest.mark.skipif(not REFERENCE.is_file(), reason="reference vectors (../shared/reference) absent")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def translation(x: int, y: int, b: int = 1, t: int = 5, height: int = 8, width: int = 12) -> Motion:
    """All frames move by the same whole number of pixels."""
    forward = torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(b * (t - 1), 2, height, width)
    parts = (forward, -forward, *occlusion(forward, -forward))
    return Motion(*(part.unflatten(0, (b, t - 1)) for part in parts))


def panning_latents(x: int, y: int, t: int = 5, height: int = 8, width: int = 12) -> torch.Tensor:
    canvas = random(4, height + 64, width + 64)
    views = [canvas[:, 32 - i * y : 32 - i * y + height, 32 - i * x : 32 - i * x + width] for i in range(t)]
    return torch.stack(views).unsqueeze(0)


def loss_outside_open_pairs(latents: torch.Tensor, moves: Motion) -> torch.Tensor:
    """Without the pair in each direction that is compared with zero."""
    moves.forward_occluded[:, -1] = 1
    moves.backward_occluded[:, 0] = 1
    return flow_loss(latents, moves)


@pytest.fixture
def reference():
    vectors = load_file(REFERENCE)
    # The authors' "backward propagation" runs on the flow from a frame to the next.
    names = ("flow_backward_prop", "flow_forward_prop", "fwd_occlusion", "bwd_occlusion")
    return Motion(*(vectors[f"guidance.{name}"] for name in names)), vectors


@needs_reference
def test_loss_and_gradient_are_those_of_the_authors(reference):
    moves, vectors = reference
    latents = vectors["guidance.latents"].unsqueeze(0).requires_grad_()
    loss = flow_loss(latents, moves)
    torch.testing.assert_close(loss.detach(), vectors["guidance.loss"].squeeze())
    loss.backward()
    torch.testing.assert_close(latents.grad.squeeze(0), vectors["guidance.grad"])


@needs_reference
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_step_goes_along_the_gradient_of_the_authors(reference, mode):
    moves, vectors = reference
    with mode():
        latents = vectors["guidance.latents"].unsqueeze(0)
        moved = guide(latents, moves, weight=-10.0, log_variance=torch.tensor(-2.5))
        assert not moved.requires_grad
        torch.testing.assert_close(moved, latents - 25 * vectors["guidance.grad"])


def test_latents_that_follow_a_steady_motion_cost_nothing():
    latents = panning_latents(2, -1)
    assert loss_outside_open_pairs(latents, translation(2, -1)) < 1e-6
    assert loss_outside_open_pairs(latents, translation(-2, 1)) > 1  # the flows the wrong way round


def test_a_pair_without_a_flow_is_compared_with_zero():
    latents = random(1, 2, 4, 8, 12)
    torch.testing.assert_close(flow_loss(latents, translation(0, 0, t=2)), latents.abs().mean(dim=(2, 3, 4)).sum())


def test_occluded_pixels_do_not_count():
    moves = translation(0, 0)
    moves.forward_occluded = torch.ones_like(moves.forward_occluded)
    moves.backward_occluded = torch.ones_like(moves.backward_occluded)
    assert flow_loss(random(1, 5, 4, 8, 12), moves) == 0


def test_guidance_lowers_the_loss():
    latents, moves = panning_latents(1, 1) + 0.1 * random(1, 5, 4, 8, 12), translation(1, 1)
    moved = guide(latents, moves, weight=-10.0, log_variance=-1.0)
    assert flow_loss(moved, moves) < flow_loss(latents, moves)
    assert flow_loss(guide(latents, moves, 10.0, -1.0), moves) > flow_loss(latents, moves)


def test_a_clip_moves_the_same_in_any_batch():
    clips = random(3, 5, 4, 8, 12)
    together = guide(clips, translation(1, 0, b=3), -10.0, -1.0)
    alone = torch.cat([guide(clip.unsqueeze(0), translation(1, 0), -10.0, -1.0) for clip in clips])
    torch.testing.assert_close(together, alone)


def test_half_precision_latents_still_move():
    latents, moves = random(1, 5, 4, 8, 12).half(), translation(1, 0)
    moved = guide(latents, moves, -10.0, -20.0)
    assert moved.dtype == torch.float16
    torch.testing.assert_close(moved, guide(latents.float(), moves, -10.0, -20.0).half())


def test_motion_of_other_clips_is_refused():
    with pytest.raises(ValueError, match=r"no motion \(1, 4, 2, 8, 12\) for latents \(1, 4, 4, 8, 12\)"):
        flow_loss(random(1, 4, 4, 8, 12), translation(0, 0))


def test_motion_is_estimated_on_a_quarter_and_given_in_latent_pixels():
    sizes = []

    def estimator(first, second):
        """Every pair moves by 8 and -4 pixels times the difference of their brightness."""
        sizes.append(tuple(first.shape))
        difference = (second - first).mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return difference * torch.tensor([8.0, -4.0]).view(1, 2, 1, 1).expand(len(first), 2, *first.shape[-2:])

    brightness = torch.tensor([[0.0, 0.5, 0.25], [0.25, 0.25, 0.5]]).view(2, 3, 1, 1, 1)
    moves = motion(brightness.expand(2, 3, 3, 64, 96), (8, 12), estimator)
    assert sizes == [(4, 3, 16, 24)] * 2
    expected = torch.tensor([[0.5, -0.25], [0.0, 0.25]]).view(2, 2, 1) * torch.tensor([4.0, -2.0])
    torch.testing.assert_close(moves.forward, expected.view(2, 2, 2, 1, 1).expand(2, 2, 2, 8, 12))
    torch.testing.assert_close(moves.backward, -moves.forward)
    # The first pair of the first clip moves by 2 latent pixels to the right and by 1 up.
    lost = torch.zeros(8, 12)
    lost[:1] = lost[:, -2:] = 1
    torch.testing.assert_close(moves.forward_occluded[0, 0, 0], lost)
    torch.testing.assert_close(moves.backward_occluded[0, 0, 0], lost.flip(0, 1))
    assert moves.forward_occluded.shape == moves.backward_occluded.shape == (2, 2, 1, 8, 12)
