"""Where the figures of a run go: to its loggers and to a file."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning


def log_results(trainer: lightning.Trainer, summary: dict[str, Any], extras: dict[str, Path]) -> None:
    """Give the loggers the final figures and, where they take them, pictures (.png) and tables (.csv) by name."""
    nested = {key: values if isinstance(values, dict) else {"": values} for key, values in summary.items()}
    named = {f"{key}/{name}".rstrip("/"): value for key, values in nested.items() for name, value in values.items()}
    figures = {name: value for name, value in named.items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_metrics(figures)
        for name, path in extras.items():
            if path.suffix == ".png" and hasattr(logger, "log_image"):
                logger.log_image(name, [str(path)])
            elif path.suffix == ".csv" and hasattr(logger, "log_table"):
                columns, *rows = csv.reader(path.open(newline=""))
                logger.log_table(name, columns, rows)
        logger.finalize("success")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name and move: a killed run leaves no half file."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)
