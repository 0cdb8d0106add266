"""The two ways in which a run ends early without a bug: the user has to change something, or has stopped it."""

from pathlib import Path


class UserError(Exception):
    """Something that the user can put right: shown as its one sentence, without a traceback."""


class Interrupted(Exception):
    """A run was asked to stop and has saved itself.

    Args:
        checkpoint: where the run can be resumed from.
    """

    def __init__(self, checkpoint: str | Path):
        self.checkpoint = Path(checkpoint)
        super().__init__(f"stopped; resume with ckpt_path={checkpoint}")
