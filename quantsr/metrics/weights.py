"""Where the weights of perceptual metrics lie: looked for on disk before a run starts, and never downloaded.

Every file may lie in one folder that the user names; those that do not are looked for where the libraries keep them,
in subfolders of torch.hub's folder.
"""

from pathlib import Path

import torch

from quantsr.errors import UserError

PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
TORCHVISION = "https://download.pytorch.org/models/"
CLIP = "https://openaipublic.azureedge.net/clip/models/"

URLS = {
    "lpips": {
        "checkpoints/alexnet-owt-7be5be79.pth": TORCHVISION,
        "pyiqa/LPIPS_v0.1_alex-df73285e.pth": PYIQA,
    },
    "dists": {
        "checkpoints/vgg16-397923af.pth": TORCHVISION,
        "pyiqa/DISTS_weights-f5e65c96.pth": PYIQA,
    },
    "niqe": {"pyiqa/niqe_modelparameters.mat": PYIQA},
    "musiq": {"pyiqa/musiq_koniq_ckpt-e95806b9.pth": PYIQA},
    "maniqa": {"pyiqa/ckpt_koniq10k.pt": PYIQA},
    "clipiqa": {"clip/RN50.pt": f"{CLIP}afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/"},
    "fid": {"pyiqa/pt_inception-2015-12-05-6726825d.pth": PYIQA},
    "dover": {"checkpoints/DOVER.pth": "https://github.com/QualityAssessment/DOVER/releases/download/v0.1.0/"},
}
"""By metric: its files, each by its place in torch.hub's folder, with the address that it is found at."""

STANDS_IN = {"niqe_modelparameters.mat": "niqe_pris_params.npz"}
"""Another file that holds the same: BasicSR's parameters of NIQE."""


def find(place: str, weights_dir: str | Path | None = None) -> Path | None:
    """The file at ``place`` of torch.hub's folder; one of that name in ``weights_dir`` comes first.

    Raises:
        UserError: ``weights_dir`` is no folder.
    """
    for folder in _folders(place, weights_dir):
        for name in (Path(place).name, STANDS_IN.get(Path(place).name)):
            if name is not None and (folder / name).is_file():
                return folder / name
    return None


def found(metric: str, weights_dir: str | Path | None = None) -> dict[str, Path]:
    """Those files of a metric that are there, by their place in torch.hub's folder."""
    files = {place: find(place, weights_dir) for place in URLS[metric]}
    return {place: file for place, file in files.items() if file is not None}


def missing(metric: str, weights_dir: str | Path | None = None) -> str | None:
    """Which weights of a metric are not there, where they were looked for and how to get them; None if all are."""
    there = found(metric, weights_dir)
    lost = [
        f"no {Path(place).name} in {' or '.join(map(_shown, _folders(place, weights_dir)))} "
        f"(put {url}{Path(place).name} there)"
        for place, url in URLS[metric].items()
        if place not in there
    ]
    return "; ".join(lost) or None


def _shown(folder: Path) -> str:
    """A folder as it is written in messages and tables, which others read too."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _folders(place: str, weights_dir: str | Path | None) -> list[Path]:
    own = []
    if weights_dir is not None:
        own = [Path(weights_dir).expanduser().absolute()]
        if not own[0].is_dir():
            raise UserError(f"metrics.weights_dir={weights_dir} is no folder")
    return [*own, Path(torch.hub.get_dir(), place).parent]
