"""Run folders as runs leave them, made without running anything."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

METRICS = {
    "bicubic": {"psnr_y": 23.34, "ssim": 0.547},
    "teacher": {"psnr_y": 23.954, "ssim": 0.58461},
    "student": {"psnr_y": 23.391, "ssim": 0.54594},
    "fidelity_psnr": 31.702,
    "images": 10,
    "bytes": {"artefact": 3_010_000, "fp32": 18_450_000},
}

MakeRun = Callable[..., Path]


def student(psnr_y: float, ssim: float = 0.5, **others) -> dict:
    """Metrics of a run with these figures of the student; others stand beside ``student``."""
    return METRICS | {"student": {"psnr_y": psnr_y, "ssim": ssim}} | others


def write_pictures(folder: Path, versions: dict[str, np.ndarray]) -> None:
    """``outputs/SAMPLE``: a version ``(h, w, 3)`` as a picture, ``(t, h, w, 3)`` as frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in versions.items():
        if pixels.ndim == 3:
            Image.fromarray(pixels).save(folder / f"{name}.png")
        else:
            (folder / name).mkdir()
            for number, frame in enumerate(pixels):
                Image.fromarray(frame).save(folder / name / f"{number:05d}.png")


@pytest.fixture
def make_run(tmp_path) -> MakeRun:
    """A function that makes a run's folder, by default the next job of a sweep in ``tmp_path / "sweep"``."""
    count = iter(range(1000))

    def make(
        method: str = "minmax",
        bits: str | None = "w4a4",
        seed: int = 0,
        metrics: dict | None = METRICS,
        overrides: tuple[str, ...] = (),
        data: str = "photos",
        teacher: str = "tiny_image",
        outputs: dict[str, dict[str, np.ndarray]] | None = None,
        losses: list[tuple[int, str, float]] = (),
        name: str = "",
    ) -> Path:
        folder = tmp_path / "sweep" / (name or f"{next(count)}_{method}")
        (folder / ".hydra").mkdir(parents=True)
        config = {"method": {"_target_": "quantsr.methods.Any"}, "seed": seed, "data": {"_target_": "a.B"}}
        if bits:
            config["method"]["bits"] = dict(zip(("weight", "act"), map(int, bits[1:].split("a")), strict=True))
        given = [f"method={method}", f"seed={seed}", *([f"bits={bits}"] if bits else []), *overrides]
        choices = {"method": method, "bits": bits, "teacher": teacher, "data": data, "experiment": None}
        (folder / "config.yaml").write_text(yaml.dump(config))
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.dump(given))
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.dump({"hydra": {"runtime": {"choices": choices}}}))
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps(metrics))
        for sample, versions in (outputs or {}).items():
            write_pictures(folder / "outputs" / sample, versions)
        if losses:
            stages = list(dict.fromkeys(stage for _, stage, _ in losses))
            lines = [",".join(["epoch", "step", "loss", *(f"loss/{stage}" for stage in stages)])]
            for step, stage, loss in losses:
                lines.append(",".join(["0", str(step), str(loss), *(str(loss) if s == stage else "" for s in stages)]))
            (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        return folder

    return make
