"""A run that is stopped inside a stage, and one that is not."""

from collections.abc import Collection
from pathlib import Path

import torch
from lightning.pytorch import Callback

from quantsr.methods.base import StagedModule


class SaveInside(Callback):
    """Saves checkpoints by name: ``STAGE`` after its first step, so in its middle; ``STAGE-end`` on its border."""

    def __init__(self, folder: Path, names: Collection[str]):
        self.folder, self.names = folder, names

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage = module.stage

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = module.locate(module.step_index - 1)[1]
        for name, last in ((self.stage.name, 0), (f"{self.stage.name}-end", self.stage.steps - 1)):
            if step == last and name in self.names:
                trainer.save_checkpoint(self.folder / f"{name}.ckpt")


def state(method: StagedModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.model.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different, f"{len(different)} tensors differ, the first: {different[:3]}"
