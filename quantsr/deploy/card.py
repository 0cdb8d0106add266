"""The model card of an artefact."""

from typing import Any

import yaml

from quantsr.teachers.files import PACKAGED

PACKAGED_NAMES = {path.stem for path in PACKAGED.glob("*.safetensors")}


def front_matter(config: dict[str, Any]) -> dict[str, Any]:
    """What the hub reads about an artefact, from its configuration.

    The licence is that of the packaged teachers where the student is of one; any other teacher has its own, which a
    student of it inherits: ``other`` until its owner says which.
    """
    clips = config["model"]["kind"] == "mgldvsr"
    packaged = config.get("teacher") in PACKAGED_NAMES
    measured = (config.get("metrics") or {}).get("student") or {}
    names = {"psnr_y": "psnr", "ssim": "ssim", "lpips": "lpips"}
    matter = {
        "library_name": "quantsr",
        "pipeline_tag": "video-to-video" if clips else "image-to-image",
        "tags": ["super-resolution", "quantization", "diffusion"],
        "license": "apache-2.0" if packaged else "other",
        "metrics": [name for key, name in names.items() if key in measured],
    }
    return {key: value for key, value in matter.items() if value}


def with_front_matter(matter: dict[str, Any], text: str) -> str:
    """Markdown behind its front matter."""
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n{text}"


def model_card(config: dict[str, Any]) -> str:
    """Markdown with the hub's front matter, from an artefact's configuration."""
    sizes, clips = config["bytes"], config["model"]["kind"] == "mgldvsr"
    call = 'pipe("clip.mp4", output="large.mp4")' if clips else 'pipe("photo.jpg").save("large.png")'
    lines = [
        "",
        f"# {config.get('name', 'Quantized super-resolution student')}",
        "",
        f"Method {config.get('method')} at {config.get('bits')}, from teacher {config.get('teacher')}, "
        f"calibrated on {config.get('data')}.",
        "",
        f"{len(config['modules'])} modules quantized; weights {sizes['artefact'] / 1e6:.2f} MB on disk, "
        f"{sizes['artefact'] / sizes['fp32']:.3f} of the teacher's {sizes['fp32'] / 1e6:.2f} MB in float32.",
        "",
        *_measured(config.get("metrics") or {}),
        "```python",
        "import quantsr",
        "",
        'pipe = quantsr.load("this folder")  # of a repository on the hub: quantsr.from_pretrained("user/name")',
        call,
        "```",
        "",
        "`pipe.runtime` says what computes: `openvino` on a CPU, once exported, and `triton` on a GPU multiply "
        "integers; `torch` simulates them, with weights unpacked to float and activations rounded in float.",
        "",
    ]
    return with_front_matter(front_matter(config), "\n".join(lines))


def _measured(metrics: dict[str, Any]) -> list[str]:
    """Table of what was measured on validation images."""
    models = {name: values for name, values in metrics.items() if isinstance(values, dict) and name != "absent"}
    rows = [(name, values) for name, values in models.items() if "psnr_y" in values]
    table = [f"| {name} | {values['psnr_y']:.2f} | {values['ssim']:.4f} |" for name, values in rows]
    if table:
        table = ["| | PSNR-Y (dB) | SSIM |", "|---|---|---|", *table, ""]
    fidelity = (
        [f"Student against teacher: {metrics['fidelity_psnr']:.2f} dB.", ""] if "fidelity_psnr" in metrics else []
    )
    return [*table, *fidelity]
