"""Measuring: on 8-bit images, against ground truth and teacher, the same for the same images."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.data.video import iter_frames
from quantsr.evaluation import as_saved, bicubic, measure, measure_outputs, print_table, save_output
from quantsr.flow import flow_estimator
from quantsr.metrics.choice import Metrics
from quantsr.metrics.fidelity import psnr, psnr_y, ssim_y
from quantsr.metrics.temporal import estimate_flows, occluded_pixels, warping_error

FLOW = Metrics(flow=flow_estimator("dis"))


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


class Brightness:
    """Stands in for a metric of images."""

    def __init__(self, needs_reference: bool):
        self.needs_reference = needs_reference

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


# Clips.


class Clips(list):
    """Two clips of four frames that move to the right by four pixels a frame; of the first the flow is known."""

    def __init__(self):
        wide = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
        gts = [torch.stack([as_saved(scene[..., 12 - 4 * i : 60 - 4 * i]) for i in range(4)]) for scene in wide]
        super().__init__({"lq": gt[..., ::4, ::4].clone(), "gt": gt, "name": f"c{i}"} for i, gt in enumerate(gts))
        self[0]["flow"] = torch.tensor([4.0, 0]).view(1, 2, 1, 1).expand(3, 2, 32, 48)


def test_bicubic_of_a_clip_is_that_of_its_frames():
    clips = torch.rand(2, 3, 3, 5, 7)
    assert torch.equal(bicubic(clips, 4), torch.stack([bicubic(clip, 4) for clip in clips]))


class TestClips:
    @pytest.fixture
    def report(self):
        return measure({"teacher": nearest, "student": dark}, Clips(), 4, FLOW)

    def test_a_row_is_the_mean_of_its_frames(self, report):
        assert [row["name"] for row in report.rows] == ["c0", "c1"]
        assert [(row["name"], row["frame"]) for row in report.frames] == [
            (c, i) for c in ("c0", "c1") for i in range(4)
        ]
        for row in report.rows:
            frames = [frame for frame in report.frames if frame["name"] == row["name"]]
            for key in frames[0].keys() - {"name", "frame"}:
                assert row[key] == pytest.approx(sum(frame[key] for frame in frames) / 4), key
        gt, lq = Clips()[1]["gt"], Clips()[1]["lq"]
        assert report.frames[6]["teacher.psnr_y"] == psnr_y(as_saved(nearest(lq)), gt)[2].item()
        assert report.frames[6]["bicubic.ssim"] == ssim_y(as_saved(bicubic(lq, 4)), gt)[2].item()

    def test_fidelity_is_the_mean_over_frames(self, report):
        lq = Clips()[0]["lq"]
        expected = psnr(as_saved(dark(lq)), as_saved(nearest(lq))).mean().item()
        assert report.rows[0]["fidelity_psnr"] == pytest.approx(expected)

    def test_warping_is_by_the_true_flow_where_that_is_known(self, report):
        clip = Clips()[0]
        assert report.rows[0]["gt.warping"] == pytest.approx(0, abs=1e-6)
        own = as_saved(nearest(clip["lq"]))
        expected = warping_error(own, clip["flow"], occluded_pixels(clip["flow"]))
        assert report.rows[0]["teacher.warping"] == expected.item()

    def test_and_else_by_the_estimate_on_the_measured_clip(self, report):
        clip = as_saved(dark(Clips()[1]["lq"]))
        forward, backward = estimate_flows(clip, flow_estimator("dis"))
        expected = warping_error(clip, forward, occluded_pixels(forward, backward))
        assert report.rows[1]["student.warping"] == expected.item()
        assert report.rows[1]["gt.warping"] > 0

    def test_summary_has_the_ground_truths_own_flicker(self, report):
        summary = report.summary()
        assert list(summary) == ["bicubic", "teacher", "student", "fidelity_psnr", "gt", "clips"]
        assert set(summary["student"]) == {"psnr_y", "ssim", "warping"} and set(summary["gt"]) == {"warping"}
        assert summary["clips"] == 2
        assert summary["gt"]["warping"] == pytest.approx(sum(row["gt.warping"] for row in report.rows) / 2)

    def test_dover_scores_every_version_where_it_is_there(self):
        report = measure(
            {"teacher": nearest}, Clips(), 4, Metrics(flow=flow_estimator("dis"), dover=lambda clip: clip.mean())
        )
        assert report.rows[0]["gt.dover"] == Clips()[0]["gt"].mean()
        assert {f"{model}.dover" for model in ("bicubic", "teacher", "gt")} <= report.rows[1].keys()
        assert not any("dover" in key for key in report.frames[0])

    def test_table_and_sheet_and_files(self, report, tmp_path, capsys):
        print_table(report.summary(), "a title")
        shown = capsys.readouterr().out
        for text in ("a title (2 clips)", "E*_warp", "bicubic", "teacher", "student", "gt"):
            assert text in shown
        assert "DOVER" not in shown
        assert report.sheet().size > (0, 0)
        assert report.write_csv(tmp_path) == tmp_path / "clips.csv"
        clips, frames = (list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("clips", "frames"))
        assert (len(clips), len(frames)) == (2, 8)
        assert float(clips[0]["gt.warping"]) == report.rows[0]["gt.warping"]
        assert frames[5]["name"] == "c1" and frames[5]["frame"] == "1" and "gt.warping" not in frames[0]

    def test_sheet_shows_three_frames_of_a_clip_with_their_own_figures(self, report):
        assert [name for name, _, _ in report.pictures] == [f"c{c}, frame {i}" for c in range(2) for i in (0, 2, 3)]
        _, versions, notes = report.pictures[4]
        assert list(versions) == ["lq", "bicubic", "teacher", "student", "gt"]
        assert torch.equal(versions["gt"], Clips()[1]["gt"][2]) and torch.equal(versions["lq"], Clips()[1]["lq"][2])
        assert notes["teacher"] == f"{report.frames[6]['teacher.psnr_y']:.2f} dB"

    def test_a_clip_of_one_frame_has_no_warping_error(self, tmp_path):
        data = Clips()
        data[1] = {"name": "c1", **{key: data[1][key][:1] for key in ("lq", "gt")}}
        report = measure({"teacher": nearest}, data, 4, FLOW)
        assert "teacher.warping" in report.rows[0] and "teacher.warping" not in report.rows[1]
        assert report.summary()["teacher"]["warping"] == report.rows[0]["teacher.warping"]
        assert report.summary()["absent"] == {"warping": "E*_warp needs two frames, and 1 of 2 clips have one"}
        report.write_csv(tmp_path)
        assert list(csv.DictReader((tmp_path / "clips.csv").open()))[1]["teacher.warping"] == ""

    def test_samples_of_the_sheet_are_saved_frame_by_frame(self, tmp_path):
        measure({"teacher": nearest}, Clips(), 4, FLOW, samples_dir=tmp_path)
        assert sorted(path.name for path in (tmp_path / "c1").iterdir()) == ["bicubic", "gt", "lq", "teacher"]
        saved = torch.stack(list(iter_frames(tmp_path / "c1" / "gt")))
        torch.testing.assert_close(saved, as_saved(Clips()[1]["gt"]))

    def test_outputs_are_saved_as_measured(self, tmp_path):
        measure({"teacher": nearest, "student": dark}, Clips(), 4, FLOW, images_dir=tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c0.mp4", "c1", "c1.mp4"]
        saved = torch.stack(list(iter_frames(tmp_path / "c1")))
        torch.testing.assert_close(saved, as_saved(dark(Clips()[1]["lq"])))

    def test_a_clip_is_saved_as_frames_and_as_a_video(self, tmp_path):
        clip = as_saved(bicubic(torch.rand(1, 12, 3, 4, 6, generator=torch.Generator().manual_seed(0)), 8)[0])
        save_output(clip, tmp_path, "clip")
        assert [path.name for path in sorted((tmp_path / "clip").iterdir())] == [f"{i:05d}.png" for i in range(12)]
        assert torch.equal((torch.stack(list(iter_frames(tmp_path / "clip"))) * 255).round(), (clip * 255).round())
        video = torch.stack(list(iter_frames(tmp_path / "clip.mp4")))
        assert video.shape == clip.shape
        assert (video - clip).abs().mean() < 0.1  # Compressed.
