"""The Weights & Biases logger as runs use it."""

import os

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(project: str, name: str, save_dir: str) -> WandbLogger:
    """Online when WANDB_API_KEY is set, else offline in ``save_dir``: ``wandb sync`` uploads it later."""
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(project=project, name=name, save_dir=save_dir, offline=not os.environ.get("WANDB_API_KEY"))
