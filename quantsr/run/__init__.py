"""The commands ``train``, ``evaluate``, ``export`` and ``import_released``: take a ``cfg``, instantiate, run, report.

Hydra's configuration is seen here, and where models and the trainer are built of it; below, signatures are the schema.
"""

from quantsr.run.evaluation import evaluate
from quantsr.run.exporting import export
from quantsr.run.importing import import_released
from quantsr.run.training import dry_run, train

__all__ = ["dry_run", "evaluate", "export", "import_released", "train"]
