"""Measuring images: on 8 bits, against ground truth and teacher, the same for the same images."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.enlarging import bicubic
from quantsr.errors import UserError
from quantsr.evaluation import as_saved, measure, measure_outputs, print_table
from quantsr.flow import flow_estimator
from quantsr.metrics.choice import NO_REFERENCE, Metrics
from quantsr.metrics.fidelity import psnr, psnr_y, ssim_y
from tests.evaluation.samples import Clips, Samples, dark, nearest, without_gt


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
    report = measure({"teacher": nearest, "student": dark}, data, 4, images_dir=tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["s0.png", "s1.png"]
    for sample in data:
        Image.fromarray((sample["gt"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(
            tmp_path / f"{sample['name']}.png"
        )
    again = measure_outputs([(f"s{i}", tmp_path / "images" / f"s{i}.png", tmp_path / f"s{i}.png") for i in range(2)])
    for row, other in zip(report.rows, again.rows, strict=True):
        assert other["outputs.psnr_y"] == pytest.approx(row["student.psnr_y"], abs=0.01)
    assert list(again.summary()) == ["outputs", "images"]


class TestOutputsThatCannotBeMeasured:
    @pytest.fixture
    def matches(self, tmp_path):
        """A good output, and one that is no image, too small or of another size than its ground truth."""
        for name, side in {"good": 24, "gt": 24, "small": 10, "other": 16}.items():
            Image.new("RGB", (24, side)).save(tmp_path / f"{name}.png")
        (tmp_path / "broken.png").write_bytes(b"no image")
        return [(name, tmp_path / f"{name}.png", tmp_path / "gt.png") for name in ("broken", "good", "small", "other")]

    def test_they_are_named_and_left_out(self, matches, caplog):
        report = measure_outputs(matches)
        assert [row["name"] for row in report.rows] == ["good"] and report.summary()["images"] == 1
        broken, small, other = (record.getMessage() for record in caplog.records)
        assert "broken: not readable" in broken and "small: 24x10 pixels, smaller than 11" in small
        assert "other: images to compare must have one size" in other

    def test_it_is_said_if_nothing_is_left(self, matches):
        with pytest.raises(UserError, match="none of the 1 outputs can be measured: broken: not readable"):
            measure_outputs(matches[:1])


class Brightness:
    """Stands in for a metric of images."""

    def __init__(self, needs_reference: bool):
        self.needs_reference, self.smallest = needs_reference, 32 if needs_reference else 1

    def __call__(self, image: torch.Tensor, gt: torch.Tensor) -> float:
        return (image.mean() - gt.mean()).item() if self.needs_reference else image.mean().item()


class Count:
    """Stands in for a metric of sets."""

    def __init__(self):
        self.images: dict[str, list[torch.Tensor]] = {}

    def add(self, model: str, image: torch.Tensor) -> None:
        self.images.setdefault(model, []).append(image)

    def compute(self) -> dict[str, float]:
        return {model: float(len(images)) for model, images in self.images.items() if model != "gt"}


class TestMetricsByName:
    METRICS = Metrics(images={"lpips": Brightness(True), "niqe": Brightness(False)}, absent={"musiq": "no file"})

    def test_those_without_a_reference_score_the_ground_truth_too(self):
        data = Samples(2)
        report = measure({"teacher": nearest}, data, 4, self.METRICS)
        assert report.rows[1]["gt.niqe"] == data[1]["gt"].mean().item() and "gt.lpips" not in report.rows[1]
        sr = as_saved(nearest(data[1]["lq"]))
        assert report.rows[1]["teacher.lpips"] == (sr.mean() - data[1]["gt"].mean()).item()
        assert report.rows[1]["teacher.niqe"] == sr.mean().item()
        assert list(report.summary()) == ["bicubic", "teacher", "gt", "images", "absent"]
        assert report.summary()["absent"] == {"musiq": "no file"}

    @pytest.mark.parametrize("small", [1, 2])
    def test_what_needs_larger_images_is_the_mean_over_those(self, small):
        data = Samples(2)
        for sample in data[2 - small :]:
            sample |= {"lq": sample["lq"][:, :4], "gt": sample["gt"][:, :16]}
        report = measure({"teacher": nearest}, data, 4, self.METRICS)
        larger = [row["teacher.lpips"] for row in report.rows[: 2 - small]]
        assert [report.summary()["teacher"].get("lpips")] == (larger or [None]) and "teacher.psnr_y" in report.rows[1]
        reason = f"it needs images of 32 pixels a side or more, and {small} of 2 images have less"
        assert report.absent["lpips"] == reason

    def test_of_a_clip_it_is_the_mean_of_its_frames(self):
        metrics = Metrics(images={"niqe": Brightness(False)}, flow=flow_estimator("dis"))
        report = measure({"teacher": nearest}, Clips(), 4, metrics)
        assert report.frames[1]["gt.niqe"] == pytest.approx(Clips()[0]["gt"][1].mean().item())
        assert report.rows[0]["gt.niqe"] == pytest.approx(Clips()[0]["gt"].mean().item())

    @pytest.mark.parametrize(("data", "images"), [(Samples, 5), (lambda: Clips(), 8)], ids=["images", "frames"])
    def test_a_metric_of_sets_sees_all_of_them(self, data, images):
        report = measure({"teacher": nearest}, data(), 4, Metrics(fid=Count(), flow=flow_estimator("dis")))
        assert report.summary()["teacher"]["fid"] == images and "teacher.fid" not in report.rows[0]

    def test_the_table_has_arrows_and_says_what_is_absent(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        summary = measure({"teacher": nearest}, Samples(2), 4, self.METRICS).summary()
        print_table(summary, "a title")
        shown = capsys.readouterr().out
        for text in ("LPIPS", "NIQE", "MUSIQ", "absent   musiq: no file", f"{summary['gt']['niqe']:.4f}"):
            assert text in shown
        assert (shown.count("↓"), shown.count("↑")) == (2, 4)  # Of PSNR-Y, SSIM, MUSIQ and the fidelity.
        (row,) = (line for line in shown.splitlines() if line.startswith("│ teacher"))
        assert [cell.strip() for cell in row.split("│")][-3:-1] == ["absent", ""]


class TestWithoutGroundTruth:
    METRICS = Metrics(images={"niqe": Brightness(False)})

    def test_what_needs_none_is_the_same(self):
        models = {"teacher": nearest, "student": dark}
        report = measure(models, without_gt(Samples()), 4, self.METRICS)
        whole = measure(models, Samples(), 4, self.METRICS)
        assert set(report.rows[0]) == {"name", "fidelity_psnr", *(f"{m}.niqe" for m in ("bicubic", *models))}
        for row, full in zip(report.rows, whole.rows, strict=True):
            assert row == {key: full[key] for key in row}

    def test_the_rest_is_absent_with_the_reason(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        summary = measure({"teacher": nearest, "student": dark}, without_gt(Samples()), 4).summary()
        assert summary["absent"] == {"psnr_y": NO_REFERENCE, "ssim": NO_REFERENCE}
        assert list(summary) == ["bicubic", "teacher", "student", "fidelity_psnr", "images", "absent"]
        assert summary["student"] == {}
        print_table(summary, "a title")
        shown = capsys.readouterr().out
        assert f"absent   psnr_y: {NO_REFERENCE}" in shown
        (row,) = (line for line in shown.splitlines() if line.startswith("│ student"))
        cells = [cell.strip() for cell in row.split("│")[1:-1]]
        assert cells == ["student", "absent", "absent", f"{summary['fidelity_psnr']:.2f}"]

    def test_pictures_show_what_is_there(self, tmp_path):
        data = without_gt(Samples(2))
        report = measure({"teacher": nearest}, data, 4, images_dir=tmp_path / "images", samples_dir=tmp_path)
        _, versions, notes = report.pictures[0]
        assert list(versions) == ["lq", "bicubic", "teacher"] and notes == {}
        assert report.sheet().size > (0, 0)
        assert sorted(path.name for path in (tmp_path / "s1").iterdir()) == ["bicubic.png", "lq.png", "teacher.png"]
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["s0.png", "s1.png"]


def test_samples_of_the_sheet_are_saved_as_files(tmp_path):
    report = measure({"teacher": nearest}, Samples(9), 4, samples_dir=tmp_path)
    names = [name for name, _, _ in report.pictures]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) and len(names) == 4
    for version in ("lq", "bicubic", "teacher", "gt"):
        with Image.open(tmp_path / names[1] / f"{version}.png") as saved:
            pixels = torch.from_numpy(np.asarray(saved).copy()).permute(2, 0, 1)
        assert torch.equal(pixels, (report.pictures[1][1][version] * 255).round().byte()), version


def test_models_run_without_gradients():
    seen = []
    measure({"teacher": lambda lq: seen.append(torch.is_grad_enabled()) or nearest(lq)}, Samples(1), 4)
    assert seen == [False]
