"""The MGLD-VSR teacher samples step by step, follows the optical flow, and takes large frames in tiles."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from quantsr.errors import UserError
from quantsr.flow import flow_estimator
from quantsr.teachers import mgldvsr
from quantsr.teachers.base import Noisy
from quantsr.teachers.mgldvsr.guidance import flow_loss, motion
from quantsr.tiling import tiled
from tests.conftest import micro_video_teacher


def calls_of(module: nn.Module) -> list[tuple]:
    """The arguments of all calls of a module from now on."""
    calls = []
    module.register_forward_pre_hook(lambda _, args: calls.append(args))
    return calls


# Steps


def test_parts_in_a_row_are_the_whole(teacher, lq):
    latent = teacher.encode(lq)
    assert latent.shape == (2, 3, 4, 8, 8)
    noisy = teacher.start(latent)
    epsilon = teacher.denoise(latent, noisy)
    clean = teacher.clean(latent, epsilon, noisy)
    assert epsilon.shape == clean.shape == latent.shape
    assert teacher.decode(clean, lq).shape == (2, 3, 3, 32, 32)
    assert torch.equal(teacher.render(clean, lq), teacher.predict(lq, noisy))
    assert torch.equal(teacher.render(teacher.clean_latent(lq), lq), teacher.restore(lq))
    assert torch.equal(teacher.restore(lq).clamp(0, 1), teacher(lq))


def test_without_a_noisy_latent_the_first_step_is_meant(teacher, lq):
    latent = teacher.encode(lq)
    noisy = teacher.noisy(lq, 0)
    epsilon = teacher.denoise(latent)
    assert torch.equal(epsilon, teacher.denoise(latent, noisy))
    assert torch.equal(teacher.clean(latent, epsilon), teacher.clean(latent, epsilon, noisy))
    assert torch.equal(teacher.predict(lq), teacher.predict(lq, noisy))


def test_sampling_starts_at_the_noised_low_quality_latent(teacher, lq):
    latent = teacher.encode(lq)
    noisy = teacher.noisy(lq, 0)
    noise = (noisy.latent - teacher.schedule.signal[0] * latent) / teacher.schedule.noise[0]
    assert noisy.step.tolist() == [0, 0]
    assert_close(noise[0], noise[1])  # The same for all clips.
    assert abs(noise[0].mean()) < 0.2 and abs(noise[0].std() - 1) < 0.2
    assert not torch.allclose(noise[0, 0], noise[0, 1])


@pytest.mark.parametrize("flow", [None, "dis"], ids=["unguided", "guided"])
def test_trajectory_holds_what_the_denoiser_sees_and_answers(flow, lq):
    teacher = micro_video_teacher(flow=flow).freeze()
    latent, points = teacher.encode(lq), list(teacher.trajectory(lq))
    assert len(points) == teacher.steps
    for number, point in enumerate(points):
        noisy = teacher.noisy(lq, number)
        assert point["step"].tolist() == noisy.step.tolist() == [number, number]
        assert torch.equal(point["noisy"], noisy.latent) and torch.equal(point["latent"], latent)
        assert torch.equal(point["epsilon"], teacher.denoise(latent, noisy))
    # The last step adds no noise; without guidance it ends at the clean latent as the denoiser sees it.
    if flow is None:
        assert_close(teacher.clean(latent, point["epsilon"], noisy), teacher.clean_latent(lq))


def test_every_step_adds_noise_of_its_own(teacher, lq):
    schedule, points = teacher.schedule, list(teacher.trajectory(lq))
    first = points[0]["noisy"] - schedule.signal[0] * points[0]["latent"]
    noises = [first[0].flatten()]
    for number, (point, following) in enumerate(pairwise(points)):
        clean = teacher.clean(point["latent"], point["epsilon"], Noisy(point["noisy"], point["step"]))
        mean = schedule.from_clean[number] * clean + schedule.from_noisy[number] * point["noisy"]
        noise = (following["noisy"] - mean) / (schedule.log_variance[number] / 2).exp()
        assert_close(noise[0], noise[1], atol=1e-3, rtol=1e-3)  # The same for all clips.
        assert abs(noise[0].mean()) < 0.2 and abs(noise[0].std() - 1) < 0.2
        noises.append(noise[0].flatten())
    correlation = torch.corrcoef(torch.stack(noises))
    assert (correlation - torch.eye(teacher.steps)).abs().max() < 0.2


def test_clean_undoes_the_noise(teacher):
    clean, epsilon = torch.randn(2, 3, 3, 4, 8, 8)
    step = torch.tensor([0, 1, 2])
    signal, noise = (values[step].view(-1, 1, 1, 1, 1) for values in (teacher.schedule.signal, teacher.schedule.noise))
    noisy = Noisy(signal * clean + noise * epsilon, step)
    assert_close(teacher.clean(torch.zeros_like(clean), epsilon, noisy), clean, atol=1e-5, rtol=1e-4)


def test_structure_is_that_of_the_low_quality_latent_at_the_timestep(teacher, lq):
    calls = calls_of(teacher.structure)
    latent, noisy = teacher.encode(lq), teacher.noisy(lq, 1)
    calls.clear()
    teacher.denoise(latent, noisy)
    ((seen, timesteps),) = calls
    assert torch.equal(seen, latent.flatten(0, 1))
    assert timesteps.tolist() == [int(teacher.schedule.timesteps[1])] * 6


def test_clips_of_a_batch_can_be_at_different_steps(teacher, lq):
    latent, points = teacher.encode(lq), [teacher.noisy(lq, number) for number in range(2)]
    mixed = Noisy(torch.stack([point.latent[i] for i, point in enumerate(points)]), torch.tensor([0, 1]))
    epsilons = torch.stack([teacher.denoise(latent, point)[i] for i, point in enumerate(points)])
    assert_close(teacher.denoise(latent, mixed), epsilons, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", [None, 0, 2])
def test_losses_reach_every_weight_of_the_denoiser(lq, step):
    teacher = micro_video_teacher()
    noisy = None if step is None else teacher.noisy(lq, step)
    teacher.predict(lq, noisy).square().mean().backward()
    for name, parameter in teacher.unet.named_parameters():
        assert name.endswith("bias") or parameter.grad.abs().max() > 0, name
    assert teacher.structure.time_embed[0].weight.grad.abs().max() > 0


def test_sampling_takes_no_gradient(lq):
    teacher = micro_video_teacher()
    assert not teacher.clean_latent(lq).requires_grad
    assert not any(value.requires_grad for point in teacher.trajectory(lq) for value in point.values())


def test_features_of_every_resolution_of_all_frames(teacher):
    found = teacher.features(torch.rand(2, 3, 3, 16, 24))
    assert [tuple(f.shape) for f in found] == [(6, 32, 16, 24), (6, 32, 8, 12), (6, 32, 4, 6)]


def test_detail_of_the_low_quality_clip_reaches_the_decoder(teacher, lq):
    latent = teacher.encode(lq)
    assert not torch.allclose(teacher.decode(latent, lq), teacher.decode(latent, 1 - lq), atol=1e-3)


# Guidance


def test_guidance_makes_latents_follow_the_flow(panning):
    """All sample with the same noise, and the more guidance, the smaller the loss that it goes down.

    The weights are below the authors': the gradient of a mean is larger on smaller latents.
    """
    losses = []
    for weight in (0.0, -0.5, -2.0):
        teacher = micro_video_teacher(flow="dis", guidance=weight).freeze()
        moves = motion(teacher.upscale(panning), (16, 16), flow_estimator("dis"))
        losses.append(flow_loss(teacher.clean_latent(panning), moves).item())
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("changes", [{"flow": None}, {"flow": "dis", "guidance": 0.0}], ids=["no flow", "no weight"])
def test_without_guidance_no_flow_is_estimated(monkeypatch, changes, panning):
    monkeypatch.setattr(mgldvsr, "flow_estimator", lambda *_: pytest.fail("an estimator was made"))
    teacher = micro_video_teacher(**changes).freeze()
    assert torch.equal(teacher(panning), micro_video_teacher().freeze()(panning))


def test_the_estimator_is_made_once_and_gets_its_weights(monkeypatch, panning):
    made = []

    def make(name, weights):
        made.append((name, weights))
        return lambda first, second: torch.zeros(len(first), 2, *first.shape[-2:])

    monkeypatch.setattr(mgldvsr, "flow_estimator", make)
    teacher = micro_video_teacher(flow="raft_large", flow_weights="raft.pth").freeze()
    teacher(panning)
    teacher(panning)
    assert made == [("raft_large", "raft.pth")]


def test_unknown_flow_estimator_is_refused(panning):
    with pytest.raises(UserError, match="no optical flow estimator 'farneback'"):
        micro_video_teacher(flow="farneback").freeze()(panning)


# Tiles


@pytest.mark.parametrize(("size", "tiles"), [((64, 64), 1), ((8, 64), 1), ((8, 72), 2), ((72, 8), 2)], ids=str)
def test_latents_larger_than_64_are_tiled(teacher, size, tiles):
    calls = calls_of(teacher.unet)
    assert teacher.denoise(torch.randn(1, 3, 4, *size)).shape == (1, 3, 4, *size)
    assert [args[0].shape[-2:] for args in calls] == [tuple(min(side, 64) for side in size)] * tiles


def test_tiles_of_latents_blend(monkeypatch, teacher):
    monkeypatch.setattr(mgldvsr, "LATENT_TILE", 16)
    monkeypatch.setattr(mgldvsr, "LATENT_STRIDE", 8)
    calls = calls_of(teacher.unet)
    latent = torch.randn(2, 3, 4, 24, 16)
    noisy = teacher.start(latent)
    epsilon = teacher.denoise(latent, noisy)
    assert epsilon.shape == latent.shape and len(calls) == 2

    def one_tile(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Each tile with the structure of its own place."""
        return teacher.denoise(z, Noisy(x, noisy.step))

    expected = tiled(one_tile, [noisy.latent, latent], 16, 8, "gaussian")
    assert_close(epsilon, expected)
    assert_close(epsilon[..., :8, :], one_tile(noisy.latent[..., :16, :], latent[..., :16, :])[..., :8, :])


def test_large_frames_are_restored_tile_by_tile(monkeypatch):
    monkeypatch.setattr(mgldvsr, "IMAGE_TILE", 32)
    monkeypatch.setattr(mgldvsr, "IMAGE_STRIDE", 24)
    teacher = micro_video_teacher(scale=1, color_fix="none", flow="dis").freeze()
    lq = torch.rand(1, 3, 3, 20, 56, generator=torch.Generator().manual_seed(1))
    sr = teacher.restore(lq)
    first, second = teacher.restore(lq[..., :32]), teacher.restore(lq[..., 24:])
    assert sr.shape == lq.shape
    assert_close(sr[..., :24], first[..., :24])
    assert_close(sr[..., 32:], second[..., 8:])
    assert_close(sr[..., 24:32], (first[..., 24:] + second[..., :8]) / 2)


def test_large_frames_are_corrected_as_a_whole(monkeypatch, teacher):
    monkeypatch.setattr(mgldvsr, "IMAGE_TILE", 32)
    monkeypatch.setattr(mgldvsr, "IMAGE_STRIDE", 24)
    adain = micro_video_teacher(color_fix="adain").freeze()
    lq = torch.rand(1, 3, 3, 8, 13)
    sr, upscaled = adain.restore(lq), adain.upscale(lq)
    assert sr.shape == (1, 3, 3, 32, 52)
    assert_close(sr.mean((-2, -1)), upscaled.mean((-2, -1)), atol=1e-4, rtol=1e-4)
