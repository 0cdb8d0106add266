"""Weights & Biases as runs use it: one run a job, grouped by sweep, and one that compares them."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    project: str, name: str, save_dir: str, group: str | None = None, tags: Sequence[str] = ()
) -> WandbLogger:
    """Online when WANDB_API_KEY is set, else offline in ``save_dir``: ``wandb sync`` uploads it later.

    Args:
        project: of W&B.
        name: of the run.
        save_dir: folder of the run.
        group: of the runs that belong together. A job of a sweep has the sweep's, from WANDB_RUN_GROUP.
        tags: what runs are filtered by.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(
        project=project,
        name=name,
        save_dir=save_dir,
        offline=_offline(),
        group=os.environ.get("WANDB_RUN_GROUP", group),
        tags=list(tags),
    )


def log_comparison(folder: Path, group: str, project: str = "quantsr") -> None:
    """Log one run "comparison" that holds the table and the pictures of a report.

    Args:
        folder: of the report: ``table.csv``, with a row of headings, and ``crops/*.png``, of which there may be none.
        group: the sweep's, as its runs have it.
        project: as the runs'.
    """
    import wandb

    with (folder / "table.csv").open(newline="") as file:
        headings, *rows = csv.reader(file)
    values = [[_number(cell) for cell in row] for row in rows]
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = "offline" if _offline() else "online"
    with wandb.init(
        project=project,
        name="comparison",
        group=group,
        job_type="comparison",
        tags=["comparison"],
        dir=folder,
        mode=os.environ.get("WANDB_MODE", mode),
        reinit="create_new",  # A run of this process is not ended by it.
    ) as run:
        run.log({"table": wandb.Table(columns=headings, data=values, allow_mixed_types=True)})
        crops = sorted((folder / "crops").glob("*.png"))
        if crops:
            run.log({"crops": [wandb.Image(str(path), caption=path.stem) for path in crops]})


def _offline() -> bool:
    return not os.environ.get("WANDB_API_KEY")


def _number(cell: str) -> float | str:
    """Numbers as such, so that W&B can sort by them and draw them."""
    try:
        return float(cell)
    except ValueError:
        return cell
