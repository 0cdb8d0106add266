import pytest
import torch

from quantsr.quant.low_rank import LowRank, LowRankUpdate
from quantsr.quant.operation import Operation

SHAPES = pytest.mark.parametrize("shape", [(8, 6), (5, 12), (8, 6, 3), (8, 6, 3, 3), (4, 6, 3, 1, 1)], ids=str)


@SHAPES
@pytest.mark.parametrize("rank", [1, 3])
def test_the_branch_is_the_truncated_svd(shape, rank):
    """Of all matrices of a rank it is the nearest: what is left are the smaller singular values (Eckart-Young)."""
    weight = torch.randn(shape)
    branch = LowRank(weight, rank)
    u, s, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    torch.testing.assert_close((branch.L1 @ branch.L2).detach(), (u[:, :rank] * s[:rank]) @ vh[:rank])
    torch.testing.assert_close(branch.residual(weight).norm(), s[rank:].norm())


@SHAPES
def test_residual_and_branch_make_the_weight(shape):
    weight = torch.randn(shape)
    branch = LowRank(weight, 2)
    assert branch.residual(weight).shape == weight.shape
    torch.testing.assert_close(branch.residual(weight) + (branch.L1 @ branch.L2).view(shape), weight)


def test_two_small_products_equal_the_dense_one(module_and_input):
    module, x = module_and_input
    operation, branch = Operation.of(module), LowRank(module.weight, 3)
    small = operation.pointwise(operation(x, branch.down), branch.up)
    dense = operation(x, (branch.L1 @ branch.L2).view_as(module.weight))
    torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-4)


def test_the_rank_is_cut_to_that_of_the_weight():
    weight = torch.randn(4, 9)
    branch = LowRank(weight, 32)
    assert branch.L1.shape == (4, 4)
    torch.testing.assert_close(branch.residual(weight), torch.zeros(4, 9), rtol=0, atol=1e-5)


def test_a_weight_without_data_gets_a_branch_without_data():
    weight = torch.empty(4, 9, device="meta")
    assert LowRank(weight, 2).L2.shape == (2, 9)


def test_the_residual_does_not_depend_on_autocast():
    weight = torch.randn(8, 6)
    branch = LowRank(weight, 2)
    with torch.autocast("cpu", torch.bfloat16):
        residual = branch.residual(weight)
    assert torch.equal(residual, branch.residual(weight))


@SHAPES
def test_an_update_starts_at_zero_and_has_its_rank(shape):
    weight = torch.randn(shape)
    update = LowRankUpdate(weight, 2)
    assert torch.equal(update(weight), weight)
    torch.nn.init.normal_(update.F1)
    moved = (update(weight) - weight).flatten(1)
    assert torch.linalg.matrix_rank(moved, rtol=1e-4) == 2
    torch.testing.assert_close(moved, update.F1 @ update.F2, rtol=1e-4, atol=1e-4)


def test_an_update_has_the_size_of_its_weight_and_depends_on_the_seed_alone():
    weight = 0.01 * torch.randn(40, 60)
    first, again, other = (LowRankUpdate(weight, 8, seed).F2 for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(first.square().mean(), weight.square().mean(), rtol=0.2, atol=0)
