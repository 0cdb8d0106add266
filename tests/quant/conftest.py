from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantsr.quant.calibrate import mode, settle

MODULES = {
    "linear": (lambda: nn.Linear(12, 6), (2, 5, 12)),
    "linear_without_bias": (lambda: nn.Linear(12, 6, bias=False), (3, 12)),
    "linear_odd": (lambda: nn.Linear(7, 6), (2, 5, 7)),
    "conv1d_strided": (lambda: nn.Conv1d(12, 6, 3, stride=2, padding=1), (2, 12, 9)),
    "conv2d": (lambda: nn.Conv2d(12, 6, 3, padding=1), (2, 12, 6, 5)),
    "conv2d_odd_1x1": (lambda: nn.Conv2d(5, 6, 1), (2, 5, 4, 4)),
    "conv2d_strided_dilated": (
        lambda: nn.Conv2d(12, 6, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2)),
        (2, 12, 7, 6),
    ),
    "conv3d_over_time": (lambda: nn.Conv3d(12, 6, (3, 1, 1), padding=(1, 0, 0)), (1, 12, 4, 3, 3)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=MODULES.values(), ids=MODULES.keys())
def module_and_input(request) -> tuple[nn.Module, Tensor]:
    """A frozen layer of every kind, and an input with a mean and a few loud channels."""
    make, shape = request.param
    module = make().requires_grad_(False)
    axis = -1 if isinstance(module, nn.Linear) else 1
    x = torch.randn(shape) + 0.3
    x.select(axis, 1).mul_(8)
    return module, x


@pytest.fixture
def image_layer():
    """A convolution and an input, for tests that need no other kind."""
    return nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False), torch.randn(2, 8, 6, 5)


@pytest.fixture
def calibrate() -> Callable[[nn.Module, Tensor], nn.Module]:
    """A function that calibrates a model on one batch and returns it."""

    def calibrate(model: nn.Module, *inputs: Tensor) -> nn.Module:
        for observation in ("observe_smoothing", "observe_ranges"):
            with mode(model, observation), torch.no_grad():
                model(*inputs)
            settle(model)
        return model

    return calibrate


@pytest.fixture
def saved_bytes() -> Callable[..., int]:
    """A function that tells how many bytes the autograd graph of a call keeps, beside those of ``known`` tensors."""

    def saved_bytes(function: Callable[[], Tensor], known: tuple[Tensor, ...] = ()) -> int:
        kept = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = function()  # Held until all is counted: a freed address could be given out twice.
        for tensor in known:
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        assert result.requires_grad
        return sum(kept.values())

    return saved_bytes
