"""Import a student that its authors released: ``python import.py 'files=[FILE,FILE]' teacher=... bits=w6a6``."""

import hydra
from omegaconf import DictConfig

from quantsr.launch import command_line, launch


@hydra.main(version_base="1.3", config_path="conf", config_name="import")
def main(cfg: DictConfig) -> None:
    launch(cfg, "import_released")


if __name__ == "__main__":
    command_line(main)
