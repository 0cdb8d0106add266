"""``import.py``: an artefact of a student that its authors calibrated and released."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from quantsr.deploy.artefact import save_student
from quantsr.deploy.released import existing_files, import_checkpoint, swaps_of
from quantsr.errors import UserError
from quantsr.loading import build_teacher

NEEDED = {
    "teacher": "teacher=NAME, the model that the authors quantized, such as osediff or mgldvsr: no such file holds it",
    "bits": "bits=NAME, the student's, such as w6a6: no such file says them",
}
"""What has to be chosen of groups."""


def import_released(cfg: DictConfig) -> dict[str, int]:
    """Make an artefact of a student that its authors released; see :func:`import_checkpoint`.

    Returns:
        Sizes in bytes, see :func:`save_student`.

    Raises:
        UserError: no teacher or no bits, or what :func:`import_checkpoint` refuses.
    """
    for group, what in NEEDED.items():
        if group not in cfg:
            raise UserError(f"give {what}")
    files, bits = existing_files(cfg.files), instantiate(cfg.bits)  # Before a teacher is loaded.
    teacher = build_teacher(cfg)
    student = import_checkpoint(files, teacher, bits)
    plain = OmegaConf.to_container(cfg, resolve=True)
    about = {
        "name": cfg.name,
        "method": "the authors' own",
        "bits": str(bits),
        "teacher": plain["teacher"].get("weights"),
        "data": "the authors' own",
        "config": {key: plain[key] for key in ("files", "teacher", "seed")},
    }
    folder, swaps = Path(cfg.run_dir) / "artefact", swaps_of(student)
    sizes = save_student(student, swaps, folder, sum(p.numel() for p in teacher.parameters()), about)
    print(f"{len(swaps)} layers and attention products at {bits} (simulated)")
    print(f"weights  {sizes['artefact'] / 1e6:.2f} MB packed, {sizes['fp32'] / 1e6:.2f} MB in float32")
    print(f"result   {folder}")
    return sizes
