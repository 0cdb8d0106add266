"""Quantize a diffusion super-resolution model: ``python train.py method=qartsr bits=w4a4``."""

import hydra
from omegaconf import DictConfig

from quantsr.launch import command_line, launch


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    return launch(cfg, "train")


if __name__ == "__main__":
    command_line(main)
