"""``export.py``: a student as models of another runtime, beside its artefact."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from quantsr.deploy.artefact import artefact_folder, read_config
from quantsr.deploy.runtimes.openvino import available
from quantsr.errors import UserError

RUNTIMES = ("openvino",)


def export(cfg: DictConfig) -> Path:
    """Write the models of ``cfg.artefact`` for ``cfg.runtime`` and say what of them are integers.

    Returns:
        The new folder.

    Raises:
        UserError: no artefact, another runtime, one that is not installed, or a student that it cannot express.
    """
    if cfg.artefact is None:
        raise UserError("export.py takes the student of a run: give artefact=FOLDER")
    if cfg.runtime not in RUNTIMES:
        raise UserError(f"runtime takes one of {list(RUNTIMES)}, not {cfg.runtime!r}")
    config = read_config(cfg.artefact)
    if (reason := available(artefact_folder(cfg.artefact), "cpu")) is not None:
        raise UserError(f"runtime={cfg.runtime} cannot be used here: {reason}")
    from quantsr.deploy import openvino  # An extra, and heavy.
    from quantsr.deploy.openvino.overflow import overflows

    folder, floating, sizes = openvino.export(cfg.artefact)
    layers = [key.partition(":")[0] for key in config["modules"] if not key.endswith(":Attention")]
    count = len(layers) - sum(f.name in layers for f in floating)
    print(f"{count} of {len(layers)} quantized layers multiply integers")
    for why, count in Counter(f.why for f in floating).items():
        print(f"{count} stay in floating point: {why}")
    if overflows():
        print("this processor lacks exact products of 8 bits (VNNI): here these are computed in floating point, too")
    width = max(map(len, sizes))
    for part, size in sizes.items():
        print(f"{part:<{width}}  {size / 1e6:.2f} MB")
    print(f"result   {folder}")
    return folder
