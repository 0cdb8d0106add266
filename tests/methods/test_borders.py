"""Outputs noted in one model stand in for the blocks of another."""

import pytest
import torch

from quantsr.methods.borders import call_of, checkpoint_gradients, recorded, replayed, tensor_of
from tests.conftest import micro_teacher, micro_video_teacher


@pytest.fixture
def blocks(teacher) -> list[str]:
    return teacher.blocks()["denoiser"]


def test_what_is_replayed_continues_as_if_it_had_been_computed(teacher, lq, blocks):
    latent = torch.randn(2, 4, 16, 16)
    with recorded(teacher, blocks) as outputs:
        epsilon = teacher.denoise(latent)
    assert list(outputs) == blocks
    for number in range(len(blocks) + 1):
        with replayed(teacher, {name: outputs[name] for name in blocks[:number]}):
            assert torch.equal(teacher.denoise(torch.zeros_like(latent) if number > 1 else latent), epsilon)


def test_replayed_blocks_compute_nothing_and_are_not_in_the_graph(teacher, blocks):
    latent = torch.randn(1, 4, 16, 16)
    with torch.no_grad(), recorded(teacher, blocks) as outputs:
        teacher.denoise(latent)
    teacher.requires_grad_(True)
    ran = []
    for name, module in teacher.unet.named_modules():
        # Of a replayed block the hook is called all the same; of what is in it, not.
        if not list(module.children()) and f"unet.{name}" not in blocks:
            module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(f"unet.{name}"))
    with replayed(teacher, {name: outputs[name] for name in blocks[:-2]}):
        teacher.denoise(latent).sum().backward()
    assert not [name for name in ran if any(f"{name}.".startswith(f"{block}.") for block in blocks[:-2])]
    with_gradient = {name for name, p in teacher.named_parameters() if p.grad is not None}
    assert with_gradient and all(name.startswith((*blocks[-2:], "unet.conv_norm_out")) for name in with_gradient)


def test_afterwards_blocks_compute_again(teacher, blocks):
    latent = torch.randn(1, 4, 16, 16)
    expected = teacher.denoise(latent)
    with pytest.raises(RuntimeError, match="interrupted"), replayed(teacher, {blocks[0]: None}):
        raise RuntimeError("interrupted")
    with recorded(teacher, blocks):
        pass
    assert torch.equal(teacher.denoise(latent), expected)
    assert not any(teacher.get_submodule(name)._forward_hooks for name in blocks)


def test_attention_blocks_give_a_tuple():
    x = torch.ones(2)
    assert tensor_of(x) is x and tensor_of((x,)) is x


def test_a_model_runs_up_to_a_block_and_no_further(teacher, blocks):
    latent, block, ran = torch.randn(1, 4, 16, 16), "unet.mid_block.attentions.0", []
    with recorded(teacher, [block]) as outputs:
        teacher.denoise(latent)
    for name in blocks:
        teacher.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    call = call_of(teacher, block, lambda: teacher.denoise(latent))
    assert ran == blocks[: blocks.index(block)]
    assert torch.equal(call.of(teacher, block), tensor_of(outputs[block]))
    assert not call.args[0].requires_grad
    ran.clear()
    teacher.denoise(latent)
    assert ran == blocks


def test_a_block_that_does_not_run_is_named(teacher):
    with pytest.raises(ValueError, match=r"vae\.quant_conv does not run"):
        call_of(teacher, "vae.quant_conv", lambda: teacher.denoise(torch.randn(1, 4, 16, 16)))


@pytest.mark.parametrize("build", [micro_teacher, micro_video_teacher], ids=["image", "video"])
def test_checkpointed_blocks_keep_less_and_give_the_same_gradients(build):
    teacher = build().eval()
    latent = torch.randn(1, *((3,) if teacher.frames > 1 else ()), 4, 16, 16)

    def gradients() -> tuple[int, list[torch.Tensor]]:
        kept = {}

        def keep(tensor):
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = teacher.denoise(latent).square().sum()
        kept = sum(kept.values())
        return kept, torch.autograd.grad(loss, list(teacher.unet.parameters()), allow_unused=True)

    before, expected = gradients()
    checkpoint_gradients(teacher, teacher.blocks()["denoiser"])
    after, found = gradients()
    assert after < before / 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_checkpointed_blocks_compute_plainly_without_gradients_and_after_a_replay(teacher, blocks):
    latent = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        expected = teacher.denoise(latent)
        checkpoint_gradients(teacher, blocks)
        with recorded(teacher, blocks) as outputs:
            assert torch.equal(teacher.denoise(latent), expected)
        with replayed(teacher, {blocks[0]: outputs[blocks[0]]}):
            assert torch.equal(teacher.denoise(latent), expected)
        assert torch.equal(teacher.denoise(latent), expected)
    wrapped = teacher.get_submodule(blocks[0]).__dict__["forward"]
    assert wrapped.func.__name__ == "_checkpointed"
