"""What is measured: one network of a model, or the whole of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantsr.deploy.openvino.one_step import NETWORKS as PARTS
from quantsr.deploy.openvino.one_step import example
from quantsr.teachers.files import load_teacher
from quantsr.teachers.micro import MICRO
from quantsr.teachers.one_step import OneStepTeacher
from quantsr.teachers.osediff import architecture, random_osediff


@dataclass(frozen=True)
class Network:
    """One of a model.

    Attributes:
        part: ``denoiser`` or ``decoder``; None for the whole model.
        side: of its input in pixels: of the latent, or of the image for a whole model.
    """

    part: str | None
    side: int

    @property
    def parts(self) -> list[str]:
        """What is quantized."""
        return ["encoder", "denoiser", "decoder"] if self.part is None else [self.part]

    def teacher(self, dtype: str, small: bool) -> OneStepTeacher:
        """The model: packaged weights for the whole, random ones for a part."""
        if self.part is None:
            return load_teacher("tiny_image").to(getattr(torch, dtype))
        return random_osediff(dtype=dtype, **(MICRO if small else {}))

    def architecture(self, small: bool) -> OneStepTeacher:
        """The same model; of a part without weights, on the meta device."""
        if self.part is None:
            return self.teacher("float32", small)
        with torch.device("meta"):
            return architecture(**(MICRO if small else {}))

    def module(self, model: OneStepTeacher) -> nn.Module:
        """The network of a model, one tensor to one tensor."""
        return model if self.part is None else PARTS[self.part](model)

    def input(self, model: OneStepTeacher, small: bool) -> Tensor:
        """A random input, float32."""
        side = 16 if small else self.side
        if self.part is None:
            return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        return example(model, self.part, side)[0]


NETWORKS = {
    "unet": Network("denoiser", 64),
    "decoder32": Network("decoder", 32),
    "decoder64": Network("decoder", 64),
    "tiny_image": Network(None, 128),
}
