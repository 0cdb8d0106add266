"""Data and models that need no training."""

import torch

from quantsr.evaluation import as_saved


class Samples(list):
    """Five samples of an image and its quarter."""

    def __init__(self, count: int = 5):
        generator = torch.Generator().manual_seed(0)
        gts = [torch.rand(3, 32, 48, generator=generator) for _ in range(count)]
        super().__init__({"lq": gt[:, ::4, ::4].clone(), "gt": gt, "name": f"s{i}"} for i, gt in enumerate(gts))


def without_gt(samples: list[dict]) -> list[dict]:
    """The same as low-quality ones alone."""
    return [{key: value for key, value in sample.items() if key != "gt"} for sample in samples]


def nearest(lq: torch.Tensor) -> torch.Tensor:
    return lq.repeat_interleave(4, -1).repeat_interleave(4, -2)


def dark(lq: torch.Tensor) -> torch.Tensor:
    return nearest(lq) * 0.5


class Clips(list):
    """Two clips of four frames that move to the right by four pixels a frame; of the first the flow is known."""

    def __init__(self):
        wide = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
        gts = [torch.stack([as_saved(scene[..., 12 - 4 * i : 60 - 4 * i]) for i in range(4)]) for scene in wide]
        super().__init__({"lq": gt[..., ::4, ::4].clone(), "gt": gt, "name": f"c{i}"} for i, gt in enumerate(gts))
        self[0]["flow"] = torch.tensor([4.0, 0]).view(1, 2, 1, 1).expand(3, 2, 32, 48)
