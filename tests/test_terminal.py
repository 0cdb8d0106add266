"""Tables keep their figures where there is little room."""

from rich.table import Table

from quantsr.terminal import print_whole


def test_figures_are_not_cut_in_a_log_file(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("layer", box=None)
    for number in range(12):
        table.add_column(f"figure {number}", no_wrap=True)
    table.add_row("conv", *(f"{number}.25" for number in range(12)))
    print_whole(table)
    printed = capsys.readouterr().out
    assert all(f"figure {number}" in printed and f"{number}.25" in printed for number in range(12))
