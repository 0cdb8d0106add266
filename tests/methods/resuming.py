"""A run that is stopped inside a stage, and one that is not."""

from pathlib import Path

import torch
from lightning.pytorch import Callback

from quantsr.methods.base import StagedModule


class SaveInside(Callback):
    """Saves a checkpoint in every stage: after its first step, so in its middle; and on its border, in its end."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage = module.stage

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = module.locate(module.step_index - 1)[1]
        if step == 0:
            trainer.save_checkpoint(self.folder / f"{self.stage.name}.ckpt")
        if step == self.stage.steps - 1:
            trainer.save_checkpoint(self.folder / f"{self.stage.name}-end.ckpt")


def state(method: StagedModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.model.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different, f"{len(different)} tensors differ, the first: {different[:3]}"
