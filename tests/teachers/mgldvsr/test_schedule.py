"""The respaced schedule is ancestral sampling as diffusers has it, over the timesteps that the authors' code picks."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from quantsr.teachers.mgldvsr.schedule import RespacedSchedule
from quantsr.teachers.one_step import STABLE_DIFFUSION_SCHEDULE

CHAINS = [(50, 999), (4, 999), (1000, 999), (4, 499), (2, 1), (500, 499)]
"""Steps and the timestep of the first."""


def diffusers_schedule(timesteps: torch.Tensor) -> DDPMScheduler:
    theirs = DDPMScheduler(**STABLE_DIFFUSION_SCHEDULE, clip_sample=False, variance_type="fixed_small")
    theirs.set_timesteps(timesteps=timesteps.tolist())
    return theirs


def test_timesteps_of_the_released_sampling():
    timesteps = RespacedSchedule(50, 999, STABLE_DIFFUSION_SCHEDULE).timesteps
    # `space_timesteps(1000, [50])`, which walks from 0 in strides of 999 / 49 and rounds.
    walked = [round(i * (999 / 49)) for i in range(50)]
    assert timesteps.dtype == torch.int64
    assert timesteps.flip(0).tolist() == walked == np.linspace(0, 999, 50).round().astype(int).tolist()
    theirs = DDPMScheduler(**STABLE_DIFFUSION_SCHEDULE, timestep_spacing="linspace")
    theirs.set_timesteps(50)
    assert torch.equal(timesteps, theirs.timesteps)


@pytest.mark.parametrize(("steps", "start"), CHAINS)
def test_timesteps_go_down_from_the_start_to_zero(steps, start):
    timesteps = RespacedSchedule(steps, start, STABLE_DIFFUSION_SCHEDULE).timesteps
    assert len(timesteps) == steps and timesteps[0] == start and timesteps[-1] == 0
    assert (timesteps.diff() < 0).all()


def test_one_step_is_the_start_alone():
    schedule = RespacedSchedule(1, 499, STABLE_DIFFUSION_SCHEDULE)
    assert schedule.timesteps.tolist() == [499]
    assert (schedule.from_clean.item(), schedule.from_noisy.item()) == (1, 0)


@pytest.mark.parametrize(("steps", "start"), CHAINS)
def test_steps_are_those_of_diffusers(steps, start):
    schedule = RespacedSchedule(steps, start, STABLE_DIFFUSION_SCHEDULE)
    theirs = diffusers_schedule(schedule.timesteps)
    for step in sorted({0, steps // 2, steps - 2, steps - 1}):
        t = schedule.timesteps[step]
        x, epsilon = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        expected = theirs.step(epsilon, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        clean = (x - schedule.noise[step] * epsilon) / schedule.signal[step]
        ours = schedule.from_clean[step] * clean + schedule.from_noisy[step] * x
        if step < steps - 1:
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
            ours = ours + (schedule.log_variance[step] / 2).exp() * noise
        assert_close(ours, expected, atol=1e-3, rtol=1e-3)
        assert_close(schedule.log_variance[step], theirs._get_variance(int(t)).log(), atol=2e-3, rtol=1e-4)


def test_signal_and_noise_are_those_of_the_timestep():
    schedule = RespacedSchedule(5, 999, STABLE_DIFFUSION_SCHEDULE)
    abar = DDPMScheduler(**STABLE_DIFFUSION_SCHEDULE).alphas_cumprod[schedule.timesteps]
    assert_close(schedule.signal, abar.sqrt())
    assert_close(schedule.noise, (1 - abar).sqrt())


def test_the_last_step_ends_at_the_clean_latent():
    schedule = RespacedSchedule(3, 999, STABLE_DIFFUSION_SCHEDULE)
    assert_close(schedule.from_clean[-1].item(), 1.0)
    assert schedule.from_noisy[-1] == 0
    assert_close(schedule.log_variance[-1].item(), math.log(1e-20))


def test_another_schedule_is_an_argument():
    other = RespacedSchedule(3, 999, {"beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "linear"})
    assert not torch.allclose(other.signal, RespacedSchedule(3, 999, STABLE_DIFFUSION_SCHEDULE).signal)


def test_it_has_no_state():
    assert not RespacedSchedule(3, 999, STABLE_DIFFUSION_SCHEDULE).state_dict()


@pytest.mark.parametrize("start", [-1, 1000])
def test_a_start_that_the_schedule_lacks_is_refused(start):
    with pytest.raises(ValueError, match="from 0 to 999"):
        RespacedSchedule(1, start, STABLE_DIFFUSION_SCHEDULE)


@pytest.mark.parametrize("steps", [-1, 0, 6, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="there are 1 to 5 steps"):
        RespacedSchedule(steps, 4, STABLE_DIFFUSION_SCHEDULE)
