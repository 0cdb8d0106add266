"""The table groups by data and bits, takes means over seeds and marks the best two, by figures computed by hand."""

import math

import pytest

from quantsr.report.build import build_table, rank
from quantsr.report.columns import COSTS, QUALITY, Column
from quantsr.report.formats import footnotes
from quantsr.report.jobs import read_jobs
from quantsr.report.table import Cell, Row, Section, Table
from tests.report.conftest import METRICS, student


@pytest.fixture
def table(tmp_path):
    """A function that builds the table of the runs made so far."""
    return lambda: build_table(read_jobs([tmp_path]))


def column(section: Section, key: str) -> dict[str, str]:
    return {row.label: row.cells[key].text for row in section.rows}


def ranks(values: list[float], better: str = "↑", digits: int = 2) -> list[int]:
    rows = [Row("a", {}, {"k": Cell([value] if value is not None else [], digits)}, []) for value in values]
    rank(rows, [Column("k", "K", digits, better)])
    return [row.cells["k"].rank for row in rows]


class TestRanks:
    def test_best_and_second(self):
        assert ranks([20.0, 23.0, 22.0, 21.0]) == [0, 1, 2, 0]

    def test_where_less_is_better(self):
        assert ranks([20.0, 23.0, 22.0, 21.0], "↓") == [1, 0, 0, 2]

    def test_what_prints_alike_ranks_alike(self):
        assert ranks([23.004, 23.001, 22.0, 21.0]) == [1, 1, 2, 0]

    def test_the_only_one_is_not_the_best(self):
        assert ranks([20.0]) == [0]
        assert ranks([20.0, None]) == [0, 0]

    def test_what_is_not_a_number_or_absent_has_no_rank(self):
        assert ranks([math.nan, 20.0, None, 21.0, math.inf]) == [0, 0, 0, 2, 1]

    def test_costs_are_not_ranked(self):
        assert ranks([1.0, 2.0], "") == [0, 0]

    def test_only_within_the_same_bits_and_data(self, make_run, table):
        make_run("a", "w4a4", metrics=student(20.0))
        make_run("b", "w4a4", metrics=student(21.0))
        make_run("a", "w2a2", metrics=student(10.0))
        make_run("b", "w2a2", metrics=student(9.0))
        make_run("a", "w2a2", metrics=student(30.0), data="realsr")
        photos, realsr = table().sections
        assert {bits: [row.cells["psnr_y"].rank for row in rows] for bits, rows in photos.groups.items()} == {
            "w4a4": [2, 1],
            "w2a2": [1, 2],
        }
        assert [row.cells["psnr_y"].rank for row in realsr.rows] == [0]


class TestSeeds:
    def test_mean_and_sample_standard_deviation(self, make_run, table):
        for seed, value in enumerate((23.0, 24.0, 26.0)):
            make_run(seed=seed, metrics=student(value))
        (row,) = table().sections[0].rows
        assert row.seeds == 3
        # mean 73 / 3; deviations -4/3, -1/3, 5/3; their squares sum to 42/9, over 2
        assert row.cells["psnr_y"].mean == pytest.approx(73 / 3)
        assert row.cells["psnr_y"].spread == pytest.approx(math.sqrt(42 / 9 / 2))
        assert row.cells["psnr_y"].text == "24.33 ± 1.53"

    def test_one_seed_has_no_spread(self, make_run, table):
        make_run(metrics=student(23.914))
        (row,) = table().sections[0].rows
        assert (row.seeds, row.cells["psnr_y"].text) == (1, "23.91")

    def test_costs_are_means_without_a_spread(self, make_run, table):
        for seed, seconds in enumerate((10, 20)):
            make_run(seed=seed, metrics=METRICS | {"seconds": seconds})
        (row,) = table().sections[0].rows
        assert (row.cells["seconds"].text, row.cells["megabytes"].text) == ("15", "3.01")

    def test_the_same_job_again_takes_the_place_of_the_first(self, make_run, table):
        make_run(metrics=student(20.0))
        make_run(metrics=student(21.0))
        result = table()
        assert column(result.sections[0], "psnr_y") == {"minmax": "21.00"}
        (note,) = result.notes
        assert "0_minmax (minmax" in note and "1_minmax is the same run again" in note

    def test_of_folders_that_are_given_the_last_one_counts_and_is_named(self, make_run):
        older, newer = make_run(metrics=student(20.0)), make_run(metrics=student(21.0))
        result = build_table(read_jobs([newer, older]))
        assert column(result.sections[0], "psnr_y") == {"minmax": "20.00"}
        assert result.notes == [f"{newer} (minmax w4a4 seed=0): left out, {older} is the same run again"]


class TestReferences:
    def test_bicubic_teacher_and_truth(self, make_run, table):
        make_run(metrics=METRICS | {"gt": {"warping": 0.237}})
        references = table().sections[0].references
        assert [row.label for row in references] == ["bicubic", "teacher", "ground truth"]
        assert [row.cells["psnr_y"].text for row in references] == ["23.34", "23.95", ""]
        assert references[1].cells["megabytes"].text == "18.45"

    def test_one_figure_a_seed_however_many_methods(self, make_run, table):
        for method in ("a", "b"):
            for seed in (0, 1):
                make_run(method, seed=seed, metrics=METRICS | {"bicubic": {"psnr_y": 20.0 + seed}})
        bicubic, teacher = table().sections[0].references
        assert bicubic.cells["psnr_y"].text == "20.50 ± 0.71" and bicubic.seeds == 2
        assert teacher.cells["psnr_y"].text == "23.95"  # The same for all seeds: no mean.

    def test_several_teachers_are_told_apart(self, make_run, table):
        make_run(teacher="one")
        make_run(teacher="two", metrics=METRICS | {"teacher": {"psnr_y": 25.0}})
        section = table().sections[0]
        assert [row.label for row in section.references] == ["bicubic", "teacher teacher=one", "teacher teacher=two"]
        assert [row.label for row in section.rows] == ["minmax teacher=one", "minmax teacher=two"]

    def test_a_trained_teacher_is_no_reference_of_itself(self, make_run, table):
        make_run("teacher", None, metrics={"bicubic": {"psnr_y": 1.0}, "teacher": {"psnr_y": 2.0}})
        section = table().sections[0]
        assert [row.label for row in section.references] == ["bicubic"]
        assert column(section, "psnr_y") == {"teacher": "2.00"}

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_teacher_that_was_chosen_by_bits_is_not_quantized(self, make_run, table, count):
        trained = {"before": {"psnr_y": 23.0}, "teacher": {"psnr_y": 24.0}}
        for bits in ("w4a4", "w2a2")[:count]:
            make_run("trq", bits, metrics=trained)
            make_run("qartsr", bits)
        section, notes = table().sections[0], table().notes
        assert [row.label for row in section.groups[""]] == ["trq bits=w4a4", "trq bits=w2a2"][:count] and not notes
        assert [row.label for row in section.groups["w4a4"]] == ["qartsr"]

    def test_other_pictures_are_told(self, make_run, table):
        make_run("a")
        make_run("b", metrics=METRICS | {"bicubic": {"psnr_y": 20.0}})
        (note,) = table().notes
        assert "not all jobs were measured on the same pictures" in note and "20.00 dB in 1_b" in note


class TestColumns:
    def test_what_is_known_in_the_papers_order_then_costs(self, make_run, table):
        cost = {"denoiser_parameters_saved": 0.8439, "denoiser_operations_saved": 0.8256}
        metrics = student(23.0, seconds=61.4, cost=cost)
        metrics["student"] |= {"niqe": 5.17, "lpips": 0.3}
        make_run(metrics=metrics)
        result = table()
        assert [c.title for c in result.columns] == [
            "PSNR-Y (dB) ↑",
            "SSIM ↑",
            "LPIPS ↓",
            "NIQE ↓",
            "PSNR to teacher (dB) ↑",
            "denoiser parameters saved (%)",
            "denoiser operations saved (%)",
            "MB",
            "calibration (s)",
        ]
        texts = [cell.text for cell in result.sections[0].rows[0].cells.values()]
        assert texts == ["23.00", "0.5000", "0.3000", "5.1700", "31.70", "84.39", "82.56", "3.01", "61"]

    @pytest.mark.parametrize("metric", ["warping", "lpips", "dists", "niqe", "fid"])
    def test_where_less_is_better(self, metric):
        assert QUALITY[metric].better == "↓"

    def test_directions_are_pyiqas(self):
        from quantsr.metrics.choice import lower_is_better

        own = {"psnr_y", "ssim", "warping"}
        assert all((QUALITY[name].better == "↓") == lower_is_better(name) for name in QUALITY.keys() - own)

    def test_a_metric_that_nobody_knows_is_shown_and_not_ranked(self, make_run, table):
        for method in ("a", "b"):
            metrics = student(23.0)
            metrics["student"]["beauty"] = 0.5
            make_run(method, metrics=metrics)
        result = table()
        assert "BEAUTY" in [c.title for c in result.columns]
        assert [row.cells["beauty"].rank for row in result.sections[0].rows] == [0, 0]

    def test_a_data_set_shows_its_own_columns(self, make_run, table):
        make_run()
        clips = METRICS | {"student": METRICS["student"] | {"warping": 0.25}}
        make_run(metrics=clips, data="motion")
        result = table()
        shown = [[c.key for c in result.columns_of(section)] for section in result.sections]
        assert ["warping" in keys for keys in shown] == [False, True]

    def test_costs_have_no_direction(self):
        assert not any(column.better for column in COSTS)


class TestAbsent:
    def test_by_nobody(self, make_run, table):
        make_run(metrics=METRICS | {"absent": {"lpips": "no weights"}})
        result = table()
        assert result.absent == {"lpips": "no weights"} and "lpips" not in [c.key for c in result.columns]

    def test_by_one_of_two(self, make_run, table):
        metrics = student(23.0)
        metrics["student"]["lpips"] = 0.3
        make_run("a", metrics=metrics)
        make_run("b", metrics=METRICS | {"absent": {"lpips": "no weights"}})
        result = table()
        assert column(result.sections[0], "lpips") == {"a": "0.3000", "b": "absent"}
        assert result.sections[0].rows[1].cells["lpips"].absent == "no weights"
        assert "lpips is absent in some rows: no weights." in footnotes(result)


def test_bits_in_descending_order(make_run, table):
    for bits in ("w2a2", "w4a8", None, "w8a8", "w4a4"):
        make_run(bits=bits)
    assert list(table().sections[0].groups) == ["", "w8a8", "w4a8", "w4a4", "w2a2"]


def test_jobs_without_figures_are_named(make_run, table):
    make_run()
    make_run("lsq", metrics=None)
    result: Table = table()
    assert [row.method for row in result.sections[0].rows] == ["minmax"]
    assert result.notes == ["1_lsq (lsq w4a4 seed=0): not finished"]
