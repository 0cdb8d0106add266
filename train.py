"""Quantize a diffusion super-resolution model: ``python train.py method=passionsr bits=w4a4``. All options: ``--help``."""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    from quantsr.launch import launch

    launch(cfg, "train")


if __name__ == "__main__":
    sys.exit(main())
