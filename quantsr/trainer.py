"""The Lightning trainer of a run, without what Lightning says about things that are as they should be."""

import logging
import warnings
from pathlib import Path

import lightning
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from quantsr.callbacks.interrupt import SaveOnInterrupt
from quantsr.callbacks.progress import StageProgress
from quantsr.errors import UserError
from quantsr.methods.distributed import StagedDDP


def quiet() -> None:
    """Leave out what Lightning says about things that are as they should be."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training.*",  # Normalization and dropout stay as the teacher has them.
        ".*Experiment logs directory.*",  # The run folder holds Hydra's files too.
        ".*Checkpoint directory.*",
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*smaller than the logging interval.*",
        ".*ModelCheckpoint with manual optimization.*",  # It saves between two steps, so nothing is half done.
        ".*dirpath has changed.*",
        ".*callbacks used to create the checkpoint.*",  # A run that is gone on with may have another checkpoint_every.
        ".*your dataloader is not resumable.*",  # Batches follow from the step that the run resumes at.
    ):
        warnings.filterwarnings("ignore", message)


def build_trainer(cfg: DictConfig, folder: Path, trains: bool) -> lightning.Trainer:
    """The Lightning trainer with the run's loggers, progress bar and checkpoints.

    On several devices gradients are averaged, see :class:`StagedDDP`.

    Raises:
        UserError: devices that are not there.
    """
    callbacks = [StageProgress(), SaveOnInterrupt(folder / "checkpoints" / "interrupted.ckpt")]
    if trains:
        every = cfg.checkpoint_every
        callbacks.append(ModelCheckpoint(folder / "checkpoints", every_n_train_steps=every, save_last=True))
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    several = str(cfg.trainer.devices) not in ("1", "auto") or cfg.trainer.num_nodes > 1
    strategy = {"strategy": StagedDDP()} if several else {}
    settings = {"default_root_dir": folder, "enable_checkpointing": trains, **strategy}
    try:
        return instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, **settings)
    except InstantiationException as error:
        reason = error.__cause__  # Of devices Lightning complains in several classes; an unknown key is not about them.
        if not isinstance(reason, MisconfigurationException | TypeError | ImportError) or "keyword" in str(reason):
            raise
        asked = f"trainer.accelerator={cfg.trainer.accelerator} with trainer.devices={cfg.trainer.devices}"
        raise UserError(f"{asked} cannot be used here: {reason}") from error
