"""The commands: ``train(cfg)``, ``evaluate(cfg)`` and ``import_released(cfg)`` instantiate, run and report.

Hydra's configuration is seen here, and where models and the trainer are built of it; below, signatures are the schema.
"""

from quantsr.run.evaluation import evaluate
from quantsr.run.importing import import_released
from quantsr.run.training import dry_run, train

__all__ = ["dry_run", "evaluate", "import_released", "train"]
