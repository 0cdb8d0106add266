"""The models of all cases, and a step of each."""

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import Case
from diffusers import UNet2DConditionModel
from plain import PlainDualBranch, PlainLayer
from torch import Tensor, nn

from quantsr.quant.calibrate import mode, settle
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import LowRank
from quantsr.quant.prepare import prepare
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec

TOKENS = 77
RANK = 16
DRIFT = 0.02
"""How far QuantVSR's branches are from their start, relative to their size."""


def unet(small: bool) -> UNet2DConditionModel:
    """Stable Diffusion 2.1's UNet, narrower; with ``small``, just enough of one to see that the script works."""
    shape = {"block_out_channels": (96, 192, 384, 384), "attention_head_dim": (2, 4, 8, 8), "cross_attention_dim": 320}
    if small:
        shape = {
            "block_out_channels": (32, 64),
            "attention_head_dim": 2,  # In diffusers' configurations this is the number of heads.
            "cross_attention_dim": 32,
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
    torch.manual_seed(0)
    return UNet2DConditionModel(**shape, use_linear_projection=True).eval().requires_grad_(False)


def passionsr(width: int) -> LayerRecipe:
    """Learned bounds, smoothing with offset, channel split."""
    return LayerRecipe(
        weight=AffineSpec(width, granularity="channel", range="learned"),
        act=AffineSpec(width, range="learned"),
        smoothing=0.3,
        offset=True,
        channel_split=True,
    )


def quantvsr(width: int) -> LayerRecipe:
    """Dynamic ranges of inputs, rotation, low-rank branch, channel split, bias alignment."""
    return LayerRecipe(
        weight=AffineSpec(width, granularity="channel"),
        act=AffineSpec(width, range="dynamic"),
        rotation=True,
        rank=RANK,
        channel_split=True,
        bias_alignment=True,
    )


def rules(recipe: Callable[[int], LayerRecipe], bits: int, attention: bool) -> list[Rule]:
    """A method's layers, and PassionSR's attention; first and last layer at 8 bits at least."""
    exceptions = [Rule(name, recipe(max(bits, 8))) for name in ("*time_embedding.linear_1", "conv_out")]
    products = [Rule("*", AttentionRecipe(AffineSpec(bits, range="learned"), smoothing=0.3))] if attention else []
    return [*exceptions, Rule("*", recipe(bits)), *products]


class Bench:
    """Models and inputs of all cases; every model shares the weights of the full-precision one.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(args.threads)
        self.bits, self.method = args.bits, args.method
        self.models: dict[str, nn.Module] = {"full precision": unet(args.small)}
        config = self.models["full precision"].config
        self.latent = torch.randn(1, config.in_channels, args.size, args.size)
        self.prompt = torch.randn(1, TOKENS, config.cross_attention_dim)
        self.target = torch.randn_like(self.latent)

    def model(self, name: str) -> nn.Module:
        """The model ``name``, built and calibrated when first asked for."""
        if name not in self.models:
            self.models[name] = self._plain() if name == "plain" else self._quantized(attention="attention" in name)
        return self.models[name]

    def _quantized(self, attention: bool) -> nn.Module:
        model = _sharing_copy(self.models["full precision"])
        prepare(model, rules(passionsr if self.method == "passionsr" else quantvsr, self.bits, attention))
        for observation in ("observe_smoothing", "observe_ranges"):
            with torch.no_grad(), mode(model, observation):
                self.output(model, self.latent)
            settle(model)
        with torch.no_grad():
            for parameter in _own_parameters(model, (LowRank,)):
                parameter.addcmul_(parameter, torch.randn_like(parameter), value=DRIFT)
        return model

    def _plain(self) -> nn.Module:
        model = _sharing_copy(self.model("layers"))
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLayer):
                model.set_submodule(name, (PlainLayer if self.method == "passionsr" else PlainDualBranch)(module))
        return model

    def output(self, model: nn.Module, latent: Tensor) -> Tensor:
        """The model's prediction, ``(1, c, h, w)``."""
        return model(latent, 999, self.prompt).sample

    def step(self, case: Case) -> Callable[[], None]:
        """One step of the case, ready to run."""
        model = self.model(case.model)

        def run() -> None:
            model.requires_grad_(False)
            for parameter in _own_parameters(model, case.trains):
                parameter.requires_grad_(True)
            latent = self.latent.clone().requires_grad_()
            F.mse_loss(self.output(model, latent), self.target).backward()
            model.zero_grad()

        return run


def _own_parameters(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Parameter]:
    found = []
    for module in model.modules():
        if isinstance(module, kinds):
            layer = isinstance(module, QuantizedLayer)
            found += [module.bias_alignment] if layer else list(module.parameters(recurse=False))
    return found


def _sharing_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})
