"""Measuring clips: means over frames, and what is of whole clips."""

import csv

import pytest
import torch

from quantsr.data.video import iter_frames
from quantsr.enlarging import bicubic
from quantsr.evaluation import as_saved, measure, print_table, save_output
from quantsr.flow import flow_estimator
from quantsr.metrics.choice import Metrics
from quantsr.metrics.fidelity import psnr, psnr_y, ssim_y
from quantsr.metrics.temporal import estimate_flows, occluded_pixels, warping_error
from tests.evaluation.samples import Clips, dark, nearest, without_gt

FLOW = Metrics(flow=flow_estimator("dis"))


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

    def test_without_ground_truth_the_outputs_own_flicker_is_measured(self, report, tmp_path):
        alone = measure({"teacher": nearest, "student": dark}, without_gt(Clips()), 4, FLOW)
        models = ("bicubic", "teacher", "student")
        assert set(alone.rows[0]) == {"name", "fidelity_psnr", *(f"{model}.warping" for model in models)}
        for row, full in zip(alone.rows, report.rows, strict=True):
            assert row == {key: full[key] for key in row}
        assert "gt" not in alone.summary() and list(alone.summary()["absent"]) == ["psnr_y", "ssim"]
        assert len(alone.frames) == 8 and alone.write_csv(tmp_path).name == "clips.csv"

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
