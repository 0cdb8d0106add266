"""Measuring: on 8-bit images, against ground truth and teacher, the same for the same images."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.evaluation import as_saved, bicubic, measure, measure_outputs, print_table
from quantsr.metrics.fidelity import psnr, psnr_y, ssim_y


class Samples(list):
    """Five samples of an image and its quarter."""

    def __init__(self, count: int = 5):
        generator = torch.Generator().manual_seed(0)
        gts = [torch.rand(3, 32, 48, generator=generator) for _ in range(count)]
        super().__init__({"lq": gt[:, ::4, ::4].clone(), "gt": gt, "name": f"s{i}"} for i, gt in enumerate(gts))


def nearest(lq: torch.Tensor) -> torch.Tensor:
    return lq.repeat_interleave(4, -1).repeat_interleave(4, -2)


def dark(lq: torch.Tensor) -> torch.Tensor:
    return nearest(lq) * 0.5


@pytest.mark.parametrize("size", [(4, 4), (5, 7)], ids=str)
def test_bicubic_is_in_range(size):
    sr = bicubic(torch.rand(1, 3, *size).round(), 4)
    assert sr.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert sr.min() == 0 and sr.max() == 1


def test_as_saved_is_what_a_file_holds(tmp_path):
    image = torch.rand(3, 8, 8) * 1.4 - 0.2
    saved = as_saved(image)
    pixels = (saved * 255).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, pixels.round())
    assert (saved - image.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


def test_rows_and_means():
    data = Samples()
    report = measure({"teacher": nearest, "student": dark}, data, 4)
    assert [row["name"] for row in report.rows] == [f"s{i}" for i in range(5)]
    gt, lq = data[2]["gt"][None], data[2]["lq"][None]
    row = report.rows[2]
    assert row["teacher.psnr_y"] == psnr_y(as_saved(nearest(lq)), gt).item()
    assert row["bicubic.ssim"] == ssim_y(as_saved(bicubic(lq, 4)), gt).item()
    assert row["fidelity_psnr"] == psnr(as_saved(dark(lq)), as_saved(nearest(lq))).item()
    summary = report.summary()
    assert list(summary) == ["bicubic", "teacher", "student", "fidelity_psnr", "images"]
    assert summary["student"]["ssim"] == pytest.approx(sum(r["student.ssim"] for r in report.rows) / 5)
    assert summary["images"] == 5


def test_without_a_student_there_is_no_fidelity():
    assert "fidelity_psnr" not in measure({"teacher": nearest}, Samples(1), 4).summary()


def test_a_perfect_student_is_written_as_json_can(tmp_path):
    """Equal outputs have an infinite PSNR, which is no JSON number."""
    import json

    summary = measure({"teacher": nearest, "student": nearest}, Samples(1), 4).summary()
    json.loads(json.dumps(summary), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_table_and_sheet_and_csv(tmp_path, capsys):
    report = measure({"teacher": nearest, "student": dark}, Samples(), 4)
    print_table(report.summary(), "a title")
    shown = capsys.readouterr().out
    for text in ("a title (5 images)", "bicubic", "teacher", "student"):
        assert text in shown
    assert report.sheet().size > (0, 0)
    assert len(report.pictures) == 4
    assert report.write_csv(tmp_path) == tmp_path / "images.csv"
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert len(rows) == 5
    assert float(rows[1]["student.psnr_y"]) == report.rows[1]["student.psnr_y"]


def test_images_are_saved_as_measured(tmp_path):
    data = Samples(2)
    report = measure({"teacher": nearest, "student": dark}, data, 4, tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["s0.png", "s1.png"]
    for sample in data:
        Image.fromarray((sample["gt"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(
            tmp_path / f"{sample['name']}.png"
        )
    again = measure_outputs([(f"s{i}", tmp_path / "images" / f"s{i}.png", tmp_path / f"s{i}.png") for i in range(2)])
    for row, other in zip(report.rows, again.rows, strict=True):
        assert other["outputs.psnr_y"] == pytest.approx(row["student.psnr_y"], abs=0.01)
    assert list(again.summary()) == ["outputs", "images"]


def test_models_run_without_gradients():
    seen = []
    measure({"teacher": lambda lq: seen.append(torch.is_grad_enabled()) or nearest(lq)}, Samples(1), 4)
    assert seen == [False]
