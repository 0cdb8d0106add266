import pytest
import torch

from quantsr.quant.hadamard import PALEY_ORDERS, factor, hadamard_transform, paley, random_orthogonal

SIZES = {1: 1, 2: 1, 4: 1, 8: 1, 64: 1, 256: 1, 12: 12, 24: 12, 20: 20, 40: 20, 60: 60, 120: 60}
STABLE_DIFFUSION = {320: 20, 640: 20, 1280: 20, 960: 60}
NO_HADAMARD = [3, 5, 7, 10, 28, 36, 50, 100, 321]


def dense(size: int) -> torch.Tensor:
    """The Kronecker product that the fast transform applies, by definition."""
    matrix = paley(factor(size)) if factor(size) > 1 else torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return matrix / size**0.5


@pytest.mark.parametrize("order", PALEY_ORDERS)
def test_small_matrices_are_hadamard(order):
    matrix = paley(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize(("size", "order"), {**SIZES, **STABLE_DIFFUSION}.items(), ids=str)
def test_sizes_with_a_hadamard_matrix(size, order):
    assert factor(size) == order


@pytest.mark.parametrize("size", [*SIZES, *STABLE_DIFFUSION])
def test_the_transform_is_orthogonal_and_spreads_evenly(size):
    matrix = hadamard_transform(torch.eye(size))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5))


@pytest.mark.parametrize("size", [*SIZES, *STABLE_DIFFUSION])
def test_the_fast_transform_equals_the_dense_product(size):
    x = torch.randn(2, 3, size)
    torch.testing.assert_close(hadamard_transform(x), x @ dense(size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 40])
def test_the_transform_has_the_gradient_of_a_product(size):
    x, cotangent = torch.randn(5, size, requires_grad=True), torch.randn(5, size)
    (hadamard_transform(x) * cotangent).sum().backward()
    torch.testing.assert_close(x.grad, cotangent @ dense(size).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_type_is_kept(dtype):
    assert hadamard_transform(torch.randn(3, 40, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("size", NO_HADAMARD)
def test_other_sizes_are_refused_by_name(size):
    assert factor(size) is None
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {size}"):
        hadamard_transform(torch.randn(2, size))


@pytest.mark.parametrize("size", NO_HADAMARD)
def test_random_matrices_are_orthogonal_and_repeatable(size):
    first, again = (random_orthogonal(size, torch.Generator().manual_seed(1)) for _ in range(2))
    other = random_orthogonal(size, torch.Generator().manual_seed(2))
    torch.testing.assert_close(first @ first.T, torch.eye(size), rtol=0, atol=1e-5)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first.abs(), torch.eye(size), atol=0.1)


def test_what_inference_makes_first_training_can_use():
    paley.cache_clear()
    with torch.inference_mode():
        hadamard_transform(torch.randn(2, 20))
    x = torch.randn(2, 20, requires_grad=True)
    hadamard_transform(x).sum().backward()
    assert x.grad is not None
