"""The table as CSV, Markdown, LaTeX and on the terminal, in small examples in full."""

import csv
import shutil
import subprocess

import pytest

from quantsr.report.build import build_table
from quantsr.report.formats import as_csv, as_latex, as_markdown, print_tables
from quantsr.report.jobs import read_jobs
from tests.report.conftest import METRICS, student


@pytest.fixture
def table(make_run, tmp_path):
    """Two methods, one of them with two seeds, and a job that failed."""
    make_run("minmax", seed=0, metrics=student(22.0))
    make_run("minmax", seed=1, metrics=student(23.0))
    make_run("qartsr", metrics=student(24.0, 0.6), overrides=("method.rank=8",))
    make_run("lsq", metrics=None)
    return build_table(read_jobs([tmp_path]))


def test_csv(table):
    assert as_csv(table) == (
        "data,bits,method,method.rank,seeds,psnr_y,psnr_y_spread,ssim,ssim_spread,"
        "fidelity_psnr,fidelity_psnr_spread,megabytes\n"
        "photos,,bicubic,,1,23.34,,0.547,,,,\n"
        "photos,,teacher,,1,23.954,,0.58461,,,,18.45\n"
        "photos,w4a4,minmax,,2,22.5,0.707107,0.5,0,31.702,0,3.01\n"
        "photos,w4a4,qartsr,8,1,24,,0.6,,31.702,,3.01\n"
    )


def test_markdown(table):
    assert as_markdown(table) == (
        "### photos (10 images)\n\n"
        "| bits | method | seeds | PSNR-Y (dB) ↑ | SSIM ↑ | PSNR to teacher (dB) ↑ | MB |\n"
        "| --- | --- | --: | --: | --: | --: | --: |\n"
        "|  | bicubic | 1 | 23.34 | 0.5470 |  |  |\n"
        "|  | teacher | 1 | 23.95 | 0.5846 |  | 18.45 |\n"
        "| w4a4 | minmax | 2 | <u>22.50 ± 0.71</u> | <u>0.5000 ± 0.0000</u> | **31.70 ± 0.00** | 3.01 |\n"
        "| w4a4 | qartsr rank=8 | 1 | **24.00** | **0.6000** | **31.70** | 3.01 |\n"
        "\n"
        "- ↑ more is better, ↓ less is better. Among methods at the same bits the best is bold, "
        "the second underlined.\n"
        "- Over several seeds: mean ± sample standard deviation.\n"
        "- Note: 3\\_lsq (lsq w4a4 seed=0): not finished.\n"
    )


def test_latex(table):
    body = as_latex(table).partition("% photos (10 images)\n")[2]
    assert body == (
        "\\begin{tabular}{llrrrr}\n"
        "\\toprule\n"
        "Bits & Method & PSNR-Y (dB) $\\uparrow$ & SSIM $\\uparrow$ & PSNR to teacher (dB) $\\uparrow$ & MB \\\\\n"
        "\\midrule\n"
        " & bicubic & 23.34 & 0.5470 &  &  \\\\\n"
        " & teacher & 23.95 & 0.5846 &  & 18.45 \\\\\n"
        "\\midrule\n"
        "w4a4 & minmax ($n=2$) & \\underline{22.50 $\\pm$ 0.71} & \\underline{0.5000 $\\pm$ 0.0000} & "
        "\\textbf{31.70 $\\pm$ 0.00} & 3.01 \\\\\n"
        " & qartsr rank=8 & \\textbf{24.00} & \\textbf{0.6000} & \\textbf{31.70} & 3.01 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


class TestEscaping:
    ODD = "a|b_c&d%$#{}~^\\<i>*`[x]"

    @pytest.fixture
    def odd(self, make_run, tmp_path):
        metrics = METRICS | {"student": METRICS["student"] | {"warping": 0.25}, "absent": {"lp_ips": "50 % of\nit_"}}
        make_run(self.ODD, name="0_odd", metrics=metrics, data="my_data & <more>")
        return build_table(read_jobs([tmp_path]))

    def test_latex(self, odd):
        text = as_latex(odd)
        assert r"a\textbar{}b\_c\&d\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
        assert r"$E^*_{\mathrm{warp}}$ (1e-3) $\downarrow$" in text
        assert "% lp_ips is absent: 50 % of it_.\n" in text  # A comment of one line.

    def test_markdown_has_as_many_cells_in_every_line(self, odd):
        lines = [line for line in as_markdown(odd).splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
        assert r"a\|b\_c&d%$#{}~^\\\<i\>\*\`\[x\]" in lines[-1] and r"E\*\_warp" in lines[0]

    def test_csv(self, odd):
        rows = list(csv.DictReader(as_csv(odd).splitlines()))
        assert rows[-1]["method"] == self.ODD and rows[-1]["data"] == "my_data & <more>"

    @pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
    def test_latex_compiles(self, odd, tmp_path):
        text = as_latex(odd)
        page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{text}\\end{{document}}"
        (tmp_path / "page.tex").write_text(page)
        subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, capture_output=True)


class TestTerminal:
    @pytest.mark.parametrize("columns", [80, 120])
    def test_shows_every_figure_and_option_within_the_width(self, table, capsys, monkeypatch, columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_tables(table)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= columns
        for text in ("photos (10 images)", "w4a4", "qartsr rank=8", "minmax (n = 2)", "22.50", "± 0.71", "18.45"):
            assert text in out
        assert "3_lsq (lsq w4a4 seed=0): not finished" in out

    def test_brackets_are_no_markup(self, make_run, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        make_run(overrides=("method.parts=[denoiser]",))
        make_run(overrides=("method.parts=[bold]",))
        print_tables(build_table(read_jobs([tmp_path])))
        out = capsys.readouterr().out
        assert "parts=[denoiser]" in out and "parts=[bold]" in out
