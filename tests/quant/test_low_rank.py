import pytest
import torch
from torch import nn

from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import SMALL, LowRank, LowRankUpdate, own_rank, truncated_svd
from quantsr.quant.operation import Operation
from tests.quant.layers import DYNAMIC, recipe

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


@pytest.mark.parametrize("shape", [(SMALL + 8, SMALL + 90), (SMALL + 90, SMALL + 8)], ids=["wide", "tall"])
def test_large_matrices_take_another_way_to_the_same(shape):
    """Also where singular values are far apart, as those of trained weights are."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 40, generator=generator)).Q for n in shape)
    matrix = left * torch.logspace(2, -3, 40) @ right.T + 1e-5 * torch.randn(shape, generator=generator)
    up, down = truncated_svd(matrix, 16)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close((up @ down).double(), (u[:, :16] * s[:16]) @ vh[:16], rtol=0, atol=1e-5)
    torch.testing.assert_close(up.norm(dim=0).double(), s[:16], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(down @ down.T, torch.eye(16), rtol=0, atol=1e-5)


def test_a_large_matrix_of_lower_rank_has_a_branch_without_nans():
    up, down = truncated_svd(torch.zeros(SMALL + 1, SMALL + 1), 4)
    assert not (up @ down).any()


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


@pytest.mark.parametrize("rank", [1, 2, 5, 40])
@SHAPES
def test_a_resized_branch_is_a_new_one_of_that_rank(shape, rank):
    weight = torch.randn(shape)
    branch, fresh = LowRank(weight, 2), LowRank(weight, rank)
    parameters = dict(branch.named_parameters())
    torch.nn.init.normal_(branch.L1)
    branch.resize(weight, rank)
    assert all(branch.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert torch.equal(branch.L1, fresh.L1) and torch.equal(branch.L2, fresh.L2)
    assert branch.down.shape == fresh.down.shape and branch.up.shape == fresh.up.shape
    assert branch.L1.shape[1] == min(rank, own_rank(weight))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("rank", [2, 5])
def test_an_optimizer_from_before_trains_a_resized_branch(rank, inference):
    weight, x, target = torch.randn(8, 6), torch.randn(20, 6), torch.randn(20, 8)

    def loss(branch: LowRank) -> torch.Tensor:
        return (x @ branch.down.T @ branch.up.T - target).square().mean()

    branch, fresh = LowRank(weight, 3), LowRank(weight, rank)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-2) for module in (branch, fresh)]
    loss(branch).backward()  # Leaves gradients of the old size.
    with torch.inference_mode(inference):
        branch.resize(weight, rank)
    assert branch.L1.grad is None and branch.L2.grad is None
    start = loss(branch).item()
    for step in range(3):
        for module, optimizer in zip((branch, fresh), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=step > 0)
            loss(module).backward()
        for ours, theirs in zip(branch.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert loss(branch) < start


def test_gradients_of_a_resized_branch_are_those_of_its_product():
    weight, x, target = torch.randn(8, 6), torch.randn(20, 6), torch.randn(20, 8)
    branch = LowRank(weight, 2)
    branch.resize(weight, 4)
    (x @ branch.down.T @ branch.up.T - target).square().sum().backward()
    of_product = 2 * (x @ (branch.L1 @ branch.L2).T - target).T @ x
    torch.testing.assert_close(branch.L1.grad, of_product @ branch.L2.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(branch.L2.grad, branch.L1.T @ of_product, rtol=1e-4, atol=1e-4)


def test_a_layer_notices_that_its_branch_was_resized(module_and_input, calibrate):
    """The quantized residual is kept while nothing trains: it has to be that of the new rank."""
    module, x = module_and_input
    layer, fresh = (
        calibrate(QuantizedLayer(module, recipe(act=DYNAMIC, rank=rank)), x).requires_grad_(False) for rank in (2, 4)
    )
    layer.weight_quantizer.load_state_dict(fresh.weight_quantizer.state_dict())
    assert not torch.equal(layer(x), fresh(x))
    for rank in (3, 4, 3, 4):
        layer.low_rank.resize(layer.weight, rank)
        layer(x)
    assert torch.equal(layer(x), fresh(x))


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_of_another_rank_loads(rank, assign):
    weight = torch.randn(8, 6, 3)
    stored = nn.Sequential(LowRank(weight, rank))
    torch.nn.init.normal_(stored[0].L1)
    module = nn.Sequential(LowRank(weight, 3))
    parameters = list(module.parameters())
    module.load_state_dict(stored.state_dict(), assign=assign)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(module.parameters(), stored.parameters(), strict=True))
    assert assign or all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    (module[0].L1 @ module[0].L2).sum().backward()
    assert module[0].L1.grad.shape == (8, rank)


def test_a_state_of_another_weight_does_not_load():
    module = LowRank(torch.randn(8, 6), 3)
    with pytest.raises(RuntimeError, match="size mismatch for L1"):
        module.load_state_dict(LowRank(torch.randn(9, 6), 4).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})


@pytest.mark.parametrize("rank", [0, -1])
def test_a_branch_has_a_rank(rank):
    weight = torch.randn(8, 6)
    with pytest.raises(ValueError, match="rank of 1 or more"):
        LowRank(weight, 2).resize(weight, rank)


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
