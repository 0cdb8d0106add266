"""A batch that goes through the model in pieces makes the step of the whole batch."""

import pytest
import torch

from quantsr.errors import UserError
from quantsr.methods.base import pieces
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qdiffusion import QDiffusion
from quantsr.quant.spec import Bits


def trained(build, fit, size: int | None) -> dict[str, torch.Tensor]:
    """A student after a few steps on batches of 4, of which ``size`` go through at a time."""
    method = build(parts=["denoiser"], observation_steps=1, steps=3)
    sizes: list[int] = []
    if size is not None:
        method.split_batches(size)
    method.student.unet.conv_in.register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0])) if torch.is_grad_enabled() else None
    )
    fit(method, batch_size=4)
    assert set(sizes) == {size or 4}
    return {name: tensor.clone() for name, tensor in method.student.state_dict().items()}


@pytest.mark.parametrize("size", [1, 2])
def test_result_is_that_of_the_whole_batch(build, fit, size):
    whole, split = trained(build, fit, None), trained(build, fit, size)
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_pieces_carry_their_share():
    batch = {"lq": torch.arange(5.0), "name": list("abcde")}
    found = list(pieces(batch, 2))
    assert [piece["name"] for piece, _ in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert [share for _, share in found] == pytest.approx([0.4, 0.4, 0.2])
    assert torch.equal(torch.cat([piece["lq"] for piece, _ in found]), batch["lq"])


def test_observation_has_batches_of_its_own(build, fit):
    method = build(observation_steps=2, observation_batch=4, steps=1)
    assert method.first_batches == [(2, 4), (2, 4)]
    assert build(observation_steps=2).first_batches == []


def test_no_samples_are_refused(build):
    with pytest.raises(UserError, match="micro_batch must be at least 1, not 0"):
        build().split_batches(0)


def test_qdiffusion_refuses(teacher):
    with pytest.raises(UserError, match="leave micro_batch out"):
        QDiffusion(teacher, Bits(4, 4)).split_batches(1)


def test_second_half_of_a_stage_is_slower_by_the_drop(teacher):
    stage = PassionSR(teacher, Bits(8, 8), drop=0.1).plan[-1]
    assert [stage.schedule(progress) for progress in (0.0, 0.49, 0.5, 0.99)] == [1, 1, 0.1, 0.1]
