import pytest
import torch
from torch import nn

from quantsr.quant.operation import Operation


def test_the_operation_is_the_module(module_and_input):
    module, x = module_and_input
    assert torch.equal(Operation.of(module)(x, module.weight, module.bias), module(x))


def test_the_axis_is_that_of_the_input_channels(module_and_input):
    module, x = module_and_input
    assert x.shape[Operation.of(module).axis] == module.weight.shape[1]


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=["both", "input", "weight"])
def test_gradients_are_those_of_autograd(module_and_input, wanted):
    module, x = module_and_input
    operation = Operation.of(module)
    inputs = [x.clone().requires_grad_(), module.weight.clone().requires_grad_()]
    y = operation(*inputs)
    cotangent = torch.randn_like(y)
    expected = torch.autograd.grad(y, inputs, cotangent)
    found = operation.gradients(cotangent, x, module.weight, wanted)
    for mine, theirs, is_wanted in zip(found, expected, wanted, strict=True):
        if is_wanted:
            torch.testing.assert_close(mine, theirs)
        else:
            assert mine is None


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_where_only_the_input_learns_it_is_not_kept(module_and_input, saved_bytes, autocast):
    module, x = module_and_input
    operation = Operation.of(module)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, plain = operation.product(x, module.weight), operation(x, module.weight)
    assert torch.equal(y, plain)
    cotangent = torch.randn_like(y)
    (mine,), (theirs,) = (torch.autograd.grad(out, [x], cotangent) for out in (y, plain))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {}
    torch.testing.assert_close(mine, theirs, **tolerance)
    assert saved_bytes(lambda: operation.product(x, module.weight), known=(module.weight,)) == 0


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3),
        nn.BatchNorm2d(4),
    ],
    ids=["grouped", "padding_by_word", "reflecting", "transposed", "no_product"],
)
def test_other_modules_are_refused_by_name(module):
    with pytest.raises(ValueError, match=type(module).__name__):
        Operation.of(module)
