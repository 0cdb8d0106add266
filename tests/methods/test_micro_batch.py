"""A batch that goes through the model in pieces makes the step of the whole batch."""

import pytest
import torch

from quantsr.errors import UserError
from quantsr.methods.base import pieces
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qdiffusion import QDiffusion
from quantsr.quant.spec import Bits


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_add_up_to_those_of_the_whole_batch(build_method, fit, size):
    method = build_method(parts=["denoiser"], observation_steps=1, steps=1)
    fit(method, batch_size=4)
    stage, batch = method.plan[-1], {"lq": torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    method._enter(stage)

    def gradients(size: int | None) -> torch.Tensor:
        for parameter in stage.parameters:
            parameter.grad = None
        for piece, share in pieces(batch, size):
            (stage.loss(piece) * share).backward()
        return torch.cat([parameter.grad.flatten() for parameter in stage.parameters])

    whole = gradients(None)
    assert whole.any()
    torch.testing.assert_close(gradients(size), whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_pieces_go_through_the_model_one_after_the_other(build_method, fit):
    method, sizes = build_method(parts=["denoiser"], observation_steps=1, steps=2), []
    method.split_batches(1)
    entrance = method.student.get_submodule(method.teacher.entrance)
    entrance.register_forward_pre_hook(
        lambda layer, inputs: sizes.append((layer.mode, torch.is_grad_enabled(), len(inputs[0])))
    )
    fit(method, batch_size=4)
    assert {n for mode, grad, n in sizes if grad} == {1}  # Training.
    assert {n for mode, grad, n in sizes if mode != "quantized" and mode != "full_precision"} == {4}  # Observation.


def test_pieces_carry_their_share():
    batch = {"lq": torch.arange(5.0), "name": list("abcde")}
    found = list(pieces(batch, 2))
    assert [piece["name"] for piece, _ in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert [share for _, share in found] == pytest.approx([0.4, 0.4, 0.2])
    assert torch.equal(torch.cat([piece["lq"] for piece, _ in found]), batch["lq"])


def test_observation_has_batches_of_its_own(build_method):
    method = build_method(observation_steps=2, observation_batch=4, steps=1)
    assert method.first_batches == [(2, 4), (2, 4)]
    assert build_method(observation_steps=2).first_batches == []


def test_no_samples_are_refused(build_method):
    with pytest.raises(UserError, match="micro_batch must be at least 1, not 0"):
        build_method().split_batches(0)


def test_qdiffusion_refuses(teacher):
    with pytest.raises(UserError, match="leave micro_batch out"):
        QDiffusion(teacher, Bits(4, 4)).split_batches(1)


def test_second_half_of_a_stage_is_slower_by_the_drop(teacher):
    stage = PassionSR(teacher, Bits(8, 8), drop=0.1).plan[-1]
    assert [stage.schedule(progress) for progress in (0.0, 0.49, 0.5, 0.99)] == [1, 1, 0.1, 0.1]
