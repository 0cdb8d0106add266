"""Measure a student: ``python eval.py artefact=runs/... data=realsr data.root=FOLDER``; all options: ``--help``."""

import hydra
from omegaconf import DictConfig

from quantsr.launch import command_line, launch


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    launch(cfg, "evaluate")


if __name__ == "__main__":
    command_line(main)
