"""The model card of an artefact."""

from typing import Any


def model_card(config: dict[str, Any]) -> str:
    """Markdown with the hub's front matter, from an artefact's configuration."""
    sizes = config["bytes"]
    lines = [
        "---",
        "library_name: quantsr",
        "pipeline_tag: image-to-image",
        "tags: [super-resolution, quantization, diffusion]",
        "---",
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
        'student = quantsr.load("this folder")  # (b, 3, h, w) RGB in [0, 1] -> (b, 3, 4h, 4w)',
        "```",
        "",
        "Inference is simulated quantization: weights are unpacked to float, activations are rounded in float.",
        "",
    ]
    return "\n".join(lines)


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
