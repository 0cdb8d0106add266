"""The check of a folder says what a run would find in it and leave out, and why."""

import pytest
from PIL import Image

from quantsr.data.check import Entry, check, main
from quantsr.data.layouts import DATA_SETS, Layout
from quantsr.errors import UserError
from tests.data.folders import IDS, LAYOUTS, NAMES, make

PAIRS, CLIPS = Layout("HR", "LR"), Layout("GT", "LQ")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def run(capsys, *arguments) -> tuple[int, dict[str, str], str]:
    """Exit code, the rows of the tables by their first cell, and standard error."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines() if line.startswith("│")]
    return code, dict(rows), err


def cut_short(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


class TestGoodFolders:
    @pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=IDS)
    def test_every_layout(self, tmp_path, name, layout):
        contents = check(name, make(tmp_path, name, layout, count=3))
        sizes = [None if folder is None else (side, side) for folder, side in ((layout.gt, 64), (layout.lq, 16))]
        count, frames = len(NAMES.get(name, "abc")), 2 if DATA_SETS[name].clips else 1
        assert contents.entries == [Entry(*sizes, frames)] * count and contents.skipped == []
        assert contents.found.layout == layout

    def test_pairs_in_a_table(self, tmp_path, capsys):
        code, rows, err = run(capsys, "realsr", make(tmp_path, "realsr", PAIRS))
        assert code == 0 and err == ""
        assert rows["layout"] == "HR and LR" and rows["usable"] == "2 pairs (complete: 100 pairs)"
        assert (rows["clean"], rows["low quality"]) == (str(tmp_path / "HR"), str(tmp_path / "LR"))
        assert (rows["clean pixels"], rows["low-quality pixels"], rows["scale"]) == ("64x64", "16x16", "4")
        assert rows["cannot be used"] == "0"

    def test_clips_in_a_table(self, tmp_path, capsys):
        make(tmp_path, "udm10", CLIPS, count=1, frames=2)
        (tmp_path / "rest").mkdir()
        root = make(tmp_path / "rest", "udm10", CLIPS, count=2, frames=4)
        for folder in ("GT", "LQ"):
            (root / folder / "clip1").rename(tmp_path / folder / "clip1")
        _, rows, _ = run(capsys, "udm10", tmp_path)
        assert rows["usable"] == "2 clips (complete: 10 clips of 32 frames)" and rows["frames"] == "6, 2 to 4 a clip"

    def test_clips_without_ground_truth(self, tmp_path, capsys):
        code, rows, _ = run(capsys, "videolq", make(tmp_path, "videolq", Layout(lq=".")))
        assert code == 0 and rows["clean"] == "none: measured without a reference"
        assert "clean pixels" not in rows and "scale" not in rows and rows["low-quality pixels"] == "16x16"

    def test_images_of_several_sizes(self, tmp_path, capsys, save_image):
        for number, (width, height) in enumerate([(100, 80), (40, 60), (64, 64)]):
            save_image(tmp_path / f"{number}.png", width, height)
        _, rows, _ = run(capsys, "images", tmp_path)
        assert rows["clean pixels"] == "40x60 to 100x80" and rows["low quality"] == "made of the clean version"
        assert rows["usable"] == "3 images"

    def test_a_portrait_of_a_camera_is_upright(self, tmp_path, save_image):
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.new("RGB", (80, 48)).save(tmp_path / "1.jpg", exif=turned)
        Image.new("RGB", (80, 48)).save(tmp_path / "2.png", exif=turned)
        assert check("images", tmp_path).entries == [Entry((80, 48), None)] * 2

    @pytest.mark.parametrize(("name", "folder", "count"), [("realsr", "realsr", 50), ("clips", "clips", 4)])
    def test_real_data(self, shared_data, name, folder, count):
        contents = check(name, shared_data / folder)
        assert len(contents.entries) == count and not contents.skipped


class TestProblems:
    def test_pairs(self, tmp_path, capsys, save_image):
        root = make(tmp_path, "realsr", PAIRS, count=5)
        lq, gt = root / "LR", root / "HR"
        (lq / "Canon_001_LR4.png").write_text("no image")
        cut_short(gt / "Canon_002_LR4.png")
        save_image(lq / "Canon_003_LR4.png", 64, 64)
        (gt / "Canon_004_LR4.png").unlink()
        code, rows, _ = run(capsys, "realsr", root)
        assert code == 0 and rows["usable"].startswith("1 pair ") and rows["cannot be used"] == "4"
        assert "not readable" in rows["Canon_001_LR4"] and "not readable" in rows["Canon_002_LR4"]
        assert rows["Canon_003_LR4"] == "gt of 64x64 pixels is not 4 times the size of lq, 64x64"
        assert "no partner for" in rows["Canon_004_LR4.png"]

    def test_is_what_a_run_skips(self, tmp_path, save_image):
        """A run decodes, so that the sentences on broken files differ."""
        from quantsr.data.benchmarks import image_benchmark

        root = make(tmp_path, "realsr", PAIRS, count=4)
        cut_short(root / "HR" / "Canon_001_LR4.png")
        save_image(root / "LR" / "Canon_002_LR4.png", 20, 16)
        (root / "LR" / "Canon_003_LR4.png").unlink()
        data = image_benchmark("realsr", root)
        assert len(data.validation()) == 1
        assert sorted(name for name, _ in data.skipped) == sorted(name for name, _ in check("realsr", root).skipped)

    def test_clips(self, tmp_path, capsys, save_image):
        root = make(tmp_path, "udm10", CLIPS, count=6, frames=3)
        (root / "GT" / "clip0" / "00000001.png").unlink()
        save_image(root / "GT" / "clip1" / "00000002.png", 60, 64)
        (root / "LQ" / "clip2" / "00000001.png").write_text("no image")
        cut_short(root / "LQ" / "clip3" / "00000002.png")
        for path in (root / "LQ" / "clip4").iterdir():
            save_image(path, 64, 64)
        code, rows, _ = run(capsys, "udm10", root)
        assert code == 0 and rows["usable"].startswith("1 clip ") and rows["cannot be used"] == "5"
        assert rows["clip0"] == "2 frames of gt and 3 of lq" and "needs frames of one size" in rows["clip1"]
        assert "00000001.png is not readable" in rows["clip2"] and "00000002.png is not readable" in rows["clip3"]
        assert "gt of 64x64 pixels is not 4 times the size of lq, 64x64" in rows["clip4"]

    def test_images_that_are_too_small(self, tmp_path, capsys, save_image):
        save_image(tmp_path / "small.png", 31, 100)
        save_image(tmp_path / "good.png", 32, 100)
        _, rows, _ = run(capsys, "images", tmp_path)
        assert rows["small"] == "31x100 pixels, smaller than 32" and rows["usable"] == "1 image"

    def test_the_first_are_named_and_the_rest_counted(self, tmp_path, capsys, save_image):
        for number in range(13):
            save_image(tmp_path / f"{number}.png", 16, 16)
        save_image(tmp_path / "good.png")
        assert main(["images", str(tmp_path)]) == 0
        assert "and 3 more" in capsys.readouterr().out

    def test_nothing_usable_is_an_error_below_the_table(self, tmp_path, capsys):
        root = make(tmp_path, "realsr", PAIRS)
        for path in (root / "LR").iterdir():
            path.write_text("no image")
        code, rows, err = run(capsys, "realsr", root)
        assert code == 2 and rows["usable"].startswith("0 pairs") and "not readable" in rows["Canon_001_LR4"]
        assert err == f"error: none of the pairs in {root} can be used\n"

    def test_names_that_do_not_match(self, tmp_path, save_image):
        save_image(tmp_path / "LR" / "cat.png")
        save_image(tmp_path / "HR" / "dog.png")
        with pytest.raises(UserError, match="has the name of one in"):
            check("realsr", tmp_path)

    def test_a_folder_that_is_not_the_data_set(self, tmp_path, capsys):
        code, rows, err = run(capsys, "realsr", tmp_path)
        assert code == 2 and rows == {} and err.startswith("error: No RealSR in ") and err.count("\n") == 1

    def test_unknown_name_and_missing_folder(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["reds5", str(tmp_path)])
        assert stop.value.code == 2 and "invalid choice: 'reds5'" in capsys.readouterr().err
        code, _, err = run(capsys, "reds4", tmp_path / "nowhere")
        assert code == 2 and "No folder at" in err
