"""Charts: data to pixels, ticks, curves of a run, quality against size."""

import math

import pytest

from quantsr.report.build import build_table
from quantsr.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, Scale
from quantsr.report.jobs import read_jobs
from quantsr.report.plots import POINTS, loss_charts, read_losses, tradeoff_charts
from tests.report.conftest import METRICS, student


def inside(chart: Chart) -> bool:
    pixels = [(chart.x(x), chart.y(y)) for line in chart.lines for x, y in line.points]
    return all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT for x, y in pixels)


class TestScale:
    def test_linear(self):
        scale = Scale(0, 10, 100, 200)
        assert [scale(value) for value in (0, 5, 10)] == [100, 150, 200]
        assert scale.ticks() == [(100, "0"), (150, "5"), (200, "10")]

    def test_logarithmic_and_upside_down(self):
        scale = Scale(0.01, 100, 200, 0, log=True)
        assert [scale(value) for value in (0.01, 1, 100)] == [200, 100, 0]
        assert [text for _, text in scale.ticks()] == ["0.01", "0.1", "1", "10", "100"]

    @pytest.mark.parametrize("log", [False, True])
    @pytest.mark.parametrize(
        "low, high", [(1, 1.02), (0.3, 0.9), (3, 4000), (1e-9, 2e-9), (2.1e-11, 2.2e-11), (23.9, 24.0), (1e-8, 1e8)]
    )
    def test_a_few_ticks_in_any_range(self, low, high, log):
        texts = [text for _, text in Scale(low, high, 0, 100, log).ticks()]
        assert 2 <= len(texts) <= 12 and len(set(texts)) == len(texts)
        assert all(low <= float(text) <= high for text in texts)


class TestChart:
    @pytest.mark.parametrize("points", [[(0, 1)], [(0, 5), (1, 5)], [(0, 1e-9), (1e6, 1e9)], [(0, -1), (3, 0)]])
    def test_points_are_inside(self, points):
        assert inside(Chart("a", "x", "y", [Line("l", points, 0)]))

    @pytest.mark.parametrize("log, left", [(False, 3), (True, 1)])
    def test_what_cannot_be_drawn_is_left_out_with_its_label(self, log, left):
        points = [(0, math.nan), (1, math.inf), (2, 0.0), (3, -1.0), (4, 2.0)]
        (line,) = Chart("a", "x", "y", [Line("l", points, 0, list("abcde"))], log=log).lines
        assert len(line.points) == len(line.dots) == left and line.dots[-1] == "e"

    def test_lines_without_points_are_left_out(self):
        assert Chart("a", "x", "y", [Line("l", [(0, math.nan)], 0)]).lines == []

    def test_labels_do_not_overlap(self):
        dots = [(x / 10, math.sin(x)) for x in range(40)]
        chart = Chart("a", "x", "y", [Line("l", dots, 0, ["w4a4"] * 40)], levels=[("teacher", 0.5)])
        placed = chart.labels()
        assert placed[0].text == "teacher" and 5 < len(placed) < 41
        assert not any(a.overlaps(b) for a in placed for b in placed if a is not b)


class TestLosses:
    def test_curve_and_stages_of_a_run(self, make_run, tmp_path):
        make_run(losses=[(0, "first", 3.0), (5, "first", 2.0), (10, "second", 1.0)])
        (job,) = read_jobs([tmp_path])
        assert read_losses(job) == ([(0, 3.0), (5, 2.0), (10, 1.0)], [("first", 0), ("second", 10)])

    def test_rows_without_a_loss_and_broken_losses(self, make_run, tmp_path):
        run = make_run(losses=[(0, "s", 3.0), (5, "s", math.nan), (10, "s", 1.0)])
        with (run / "metrics.csv").open("a") as file:
            file.write("0,15,,\n0,20,0.1e\n0")
        assert read_losses(read_jobs([tmp_path])[0])[0] == [(0, 3.0), (10, 1.0)]

    @pytest.mark.parametrize("steps", [2 * POINTS - 1, 5000])
    def test_long_curves_are_thinned_out(self, make_run, tmp_path, steps):
        make_run(losses=[(step, "s", 1.0) for step in range(steps)])
        points, _ = read_losses(read_jobs([tmp_path])[0])
        assert POINTS / 2 <= len(points) <= POINTS and points[0][0] == 0

    def test_one_chart_a_method_one_line_for_its_bits(self, make_run, tmp_path):
        for bits in ("w4a4", "w2a2"):
            make_run("qartsr", bits, losses=[(0, "a", 1.0), (1, "a", 0.5), (2, "b", 0.1)])
            make_run("minmax", bits)
        (chart,) = loss_charts(build_table(read_jobs([tmp_path])).sections[0])
        assert (chart.title, [line.label for line in chart.lines], chart.log) == ("qartsr", ["w4a4", "w2a2"], True)
        (_, left, width), (_, second, _) = chart.bands()
        assert left + width == pytest.approx(second)


class TestTradeoff:
    def charts(self, tmp_path):
        table = build_table(read_jobs([tmp_path]))
        return tradeoff_charts(table, table.sections[0])

    def test_quality_against_megabytes(self, make_run, tmp_path):
        for bits, size in (("w4a4", 4e6), ("w2a2", 2e6)):
            make_run(bits=bits, metrics=student(size / 1e5, bytes={"artefact": size, "fp32": 9e6}))
        chart, fidelity = self.charts(tmp_path)
        assert (chart.title, chart.x_label, fidelity.title) == ("PSNR-Y (dB) ↑", "MB", "PSNR to teacher (dB) ↑")
        assert (chart.lines[0].points, chart.lines[0].dots) == ([(2.0, 20.0), (4.0, 40.0)], ["w2a2", "w4a4"])
        assert chart.levels == [("bicubic", 23.34), ("teacher", 23.954)]

    def test_against_parameters_saved_where_there_is_no_file(self, make_run, tmp_path):
        metrics = {key: value for key, value in METRICS.items() if key != "bytes"}
        make_run(metrics=metrics | {"cost": {"denoiser_parameters_saved": 0.8}})
        assert self.charts(tmp_path)[0].lines[0].points == [(80.0, 23.391)]

    def test_without_a_size_there_is_nothing_to_draw(self, make_run, tmp_path):
        make_run(metrics={"student": {"psnr_y": 20.0}})
        assert self.charts(tmp_path) == []
