"""Make a student that runs as integers: ``python export.py artefact=runs/DATE/RUN``; all options: ``--help``."""

import hydra
from omegaconf import DictConfig

from quantsr.launch import command_line, launch


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(cfg: DictConfig) -> None:
    launch(cfg, "export")


if __name__ == "__main__":
    command_line(main)
