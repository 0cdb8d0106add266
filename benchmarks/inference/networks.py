"""What is measured: one network of a model, or the whole of it."""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from quantsr.deploy.openvino import mgldvsr, one_step
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import build_teacher, load_teacher
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.micro import MICRO, MICRO_VIDEO
from quantsr.teachers.osediff import architecture, random_osediff

MICROS = {"tiny_image": MICRO, "tiny_video": {"kind": MGLDVSRTeacher.kind, **MICRO_VIDEO}}
"""In place of packaged models, where everything is to be small."""


@dataclass(frozen=True)
class Network:
    """One of a model.

    Attributes:
        name: ``denoiser`` or ``decoder`` of Stable Diffusion 2.1, or the name of a packaged model, all of it.
        side: of its input in pixels: of the latent, or of the image for a whole model.
        kind: how its model is taken apart.
        whole: whether it is a packaged model.
    """

    name: str
    side: int
    kind: ModuleType = one_step
    whole: bool = False

    @property
    def parts(self) -> list[str]:
        """The networks of the model that are converted."""
        return list(self.kind.NETWORKS) if self.whole else [self.name]

    def teacher(self, dtype: str, small: bool) -> Teacher:
        """The model: packaged weights for the whole, random ones for a part."""
        if self.whole:
            model = build_teacher(**MICROS[self.name]) if small else load_teacher(self.name)
            return model.to(getattr(torch, dtype))
        return random_osediff(dtype=dtype, **(MICRO if small else {}))

    def architecture(self, small: bool) -> Teacher:
        """The same model; of a part without weights, on the meta device."""
        if self.whole:
            return self.teacher("float32", small)
        with torch.device("meta"):
            return architecture(**(MICRO if small else {}))

    def module(self, model: Teacher) -> nn.Module:
        """The network of a model, one tensor to one tensor."""
        return model if self.whole else self.kind.NETWORKS[self.name](model)

    def input(self, model: Teacher, small: bool) -> Tensor:
        """A random input, float32."""
        side = 16 if small else self.side
        if self.whole:
            frames = [model.frames] if model.frames > 1 else []
            return torch.rand(1, *frames, 3, side, side, generator=torch.Generator().manual_seed(0))
        return self.kind.example(model, self.name, side)[0]


NETWORKS = {
    "unet": Network("denoiser", 64),
    "decoder32": Network("decoder", 32),
    "decoder64": Network("decoder", 64),
    "tiny_image": Network("tiny_image", 128, whole=True),
    "tiny_video": Network("tiny_video", 64, mgldvsr, whole=True),
}
