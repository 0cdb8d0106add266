"""A benchmark is found in every layout that people have it in; where there is none, what to give is said."""

import pytest

from quantsr.data.benchmarks import clip_benchmark, image_benchmark
from quantsr.data.clips import ClipsDataModule
from quantsr.data.images import ImagesDataModule
from quantsr.data.layouts import DATA_SETS, Layout, find
from quantsr.data.pairs import PairsDataModule
from quantsr.errors import UserError
from tests.data.folders import IDS, LAYOUTS, NAMES, make

BENCHMARKS = [case for case in LAYOUTS if case[0] not in ("images", "clips")]


def build(name: str, root, **options):
    return (clip_benchmark if DATA_SETS[name].clips else image_benchmark)(name, root, **options)


class TestFind:
    @pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=IDS)
    def test_every_layout(self, tmp_path, name, layout):
        found = find(name, make(tmp_path, name, layout))
        assert found.layout == layout
        assert [path is None for path in (found.gt, found.lq)] == [path is None for path in (layout.gt, layout.lq)]

    @pytest.mark.parametrize(("name", "layout"), BENCHMARKS, ids=[f"{name}: {layout}" for name, layout in BENCHMARKS])
    def test_is_what_a_run_measures(self, tmp_path, name, layout):
        """All of it, the low-quality version a quarter as large, with ground truth unless there is none."""
        data = build(name, make(tmp_path, name, layout))
        samples = [data.validation()[i] for i in range(len(data.validation()))]
        assert len(samples) == len(NAMES.get(name, "ab")) and not data.skipped
        for sample in samples:
            assert sample["lq"].shape[-2:] == (16, 16)
            assert ("gt" in sample) == (layout.gt is not None)
            assert "gt" not in sample or sample["gt"].shape[-2:] == (64, 64)
            assert "gt" not in sample or (sample["gt"][..., ::4, ::4] - sample["lq"]).abs().mean() < 0.2

    def test_big_and_small_letters_are_the_same(self, tmp_path):
        make(tmp_path, "reds4", Layout("gt", "Lq"))
        found = find("reds4", tmp_path)
        assert (found.gt, found.lq) == (tmp_path / "gt", tmp_path / "Lq")

    def test_the_first_layout_wins(self, tmp_path):
        for folder in ("BIx4", "BDx4"):
            make(tmp_path, "udm10", Layout("GT", folder))
        assert find("udm10", tmp_path).lq == tmp_path / "BDx4"

    def test_a_folder_that_is_empty_is_not_taken(self, tmp_path):
        make(tmp_path, "realsr", Layout("HR", "LR"))
        for folder in ("test_HR", "test_LR"):
            (tmp_path / folder).mkdir()
        assert find("realsr", tmp_path).gt == tmp_path / "HR"


class TestNotFound:
    def test_unknown_name(self, tmp_path):
        with pytest.raises(UserError, match=r"no data set 'reds5': known are realsr, .*videolq"):
            find("reds5", tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"No folder at .*nowhere: give the one that holds realsr"):
            find("realsr", tmp_path / "nowhere")

    @pytest.mark.parametrize("name", DATA_SETS)
    def test_empty_folder(self, tmp_path, name):
        with pytest.raises(UserError) as error:
            find(name, tmp_path)
        assert str(error.value).startswith(f"No {DATA_SETS[name].title} in {tmp_path}: looked for ")
        assert all(str(layout) in str(error.value) for layout in DATA_SETS[name].layouts)
        assert str(error.value).endswith("; it holds nothing.")

    @pytest.mark.parametrize("name", ["realsr", "div2k_val", "reds4", "udm10"])
    def test_one_level_too_high_or_too_low(self, tmp_path, name):
        right = make(tmp_path / "sets" / "right", name, DATA_SETS[name].layouts[0])
        (tmp_path / "sets" / "other").mkdir()
        for wrong in (right.parent, right / DATA_SETS[name].layouts[0].gt):
            with pytest.raises(UserError) as error:
                find(name, wrong)
            assert str(error.value).endswith(f" Give {right}.")

    def test_a_single_clip_is_one_level_too_low(self, tmp_path):
        root = make(tmp_path / "VideoLQ", "videolq", Layout(lq="."))
        with pytest.raises(UserError, match=f"Give {root}"):
            find("videolq", root / "clip0")

    def test_the_content_is_named_if_nothing_is_near(self, tmp_path):
        for folder in "abcdefg":
            (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match=r"it holds a/, b/, c/, d/, e/ and 2 more\.$"):
            find("realsr", tmp_path)


class TestBenchmarks:
    def test_reds4_is_four_clips_of_the_training_set(self, tmp_path, save_image):
        root = make(tmp_path, "reds4", Layout("train_sharp", "train_sharp_bicubic/X4"))
        for folder, side in (("train_sharp", 64), ("train_sharp_bicubic/X4", 16)):
            save_image(root / folder / "001" / "0.png", side, side)
        assert [match[0] for match in build("reds4", root).matches[1]] == ["000", "011", "015", "020"]
        assert [match[0] for match in build("reds4", root, pattern="00*").matches[1]] == ["000", "001"]

    def test_clips_of_inner_folders_have_their_own_names(self, tmp_path):
        data = build("spmcs", make(tmp_path, "spmcs", Layout("*/truth", "*/input4"), count=3))
        assert [match[0] for match in data.matches[1]] == ["clip0", "clip1", "clip2"]
        assert data.validation()[1]["name"] == "clip1"

    def test_clean_images_are_degraded_the_same_for_every_seed(self, tmp_path):
        root = make(tmp_path, "urban100", Layout("HR"))
        one, other = (build("urban100", root, seed=seed).validation()[0]["lq"] for seed in (0, 1))
        assert one.equal(other)

    def test_low_quality_images_beside_clean_ones_are_left_alone(self, tmp_path, save_image):
        root = make(tmp_path, "urban100", Layout("image_SRF_4", pattern="*_HR"))
        save_image(root / "image_SRF_4" / "img_001_SRF_4_LR.png", 16, 16)
        data = build("urban100", root)
        assert [path.stem for path in data.paths()[1]] == ["img_001_SRF_4_HR", "img_002_SRF_4_HR"]

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("realsr", PairsDataModule), ("urban100", ImagesDataModule), ("videolq", ClipsDataModule)],
    )
    def test_a_share_may_calibrate(self, tmp_path, name, kind):
        data = build(name, make(tmp_path, name, DATA_SETS[name].layouts[0]), validation_share=0.5, crop=32)
        assert isinstance(data, kind) and data.seed == 0
        if name == "videolq":
            data.frames = 1
        data.setup("fit")
        assert len(data.validation()) == 1 and data.calibration()[0]["lq"].shape[-2:] == (8, 8)

    def test_real_pairs_are_found(self, shared_data):
        data = build("realsr", shared_data / "realsr")
        data.setup("test")
        assert data.summary() == "PairsDataModule: validation 50 samples of 128x128 -> 512x512"
