"""Stages on several devices."""

from lightning.pytorch.strategies import DDPStrategy


class StagedDDP(DDPStrategy):
    """DDP for a staged module: which parameters take part changes from stage to stage, and a run may have none.

    Runs that only observe join what their observers note by themselves; DDP would refuse a module that has nothing to
    train.
    """

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True)

    def configure_ddp(self) -> None:
        if self.lightning_module.trains:
            super().configure_ddp()

    def wrap_again(self) -> None:
        """For parameters that have changed their shapes: DDP has reserved room for the old ones."""
        self.model = self.lightning_module
        self.configure_ddp()
