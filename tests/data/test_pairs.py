"""Two folders make pairs by name; what does not fit together is named."""

import pytest
import torch
from torch.nn import functional as F

from quantsr.data.pairs import AlignedPairs, PairsDataModule, match_folders
from quantsr.errors import UserError


@pytest.fixture
def folders(tmp_path, save_image):
    """Six pairs `scene_<i>_LR4` of 32x24 and `scene_<i>_HR` of 128x96 pixels."""
    for i in range(6):
        save_image(tmp_path / "lq" / f"scene_{i}_LR4.png", 32, 24, seed=i)
        save_image(tmp_path / "gt" / f"scene_{i}_HR.png", 128, 96, seed=i)
    return tmp_path / "lq", tmp_path / "gt"


class TestMatchFolders:
    @pytest.mark.parametrize(
        ("a", "b", "name"),
        [
            pytest.param("scene.png", "scene.jpg", "scene", id="equal stems"),
            pytest.param("Canon_001_LR4.png", "Canon_001_HR.png", "Canon_001", id="RealSR"),
            pytest.param("Canon_001_LR4.png", "Canon_001_LR4.png", "Canon_001_LR4", id="equal with suffix"),
            pytest.param("0801x4.png", "0801.png", "0801", id="DIV2K"),
            pytest.param("scene_LQ.png", "scene_GT.png", "scene", id="LQ and GT"),
            pytest.param("scene_lq.png", "scene.png", "scene", id="small letters, one side"),
        ],
    )
    def test_names_that_match(self, tmp_path, save_image, a, b, name):
        path_a, path_b = save_image(tmp_path / "a" / a), save_image(tmp_path / "b" / b)
        assert match_folders(tmp_path / "a", tmp_path / "b") == [(name, path_a, path_b)]

    def test_order_is_natural(self, tmp_path, save_image):
        for folder in ("a", "b"):
            for name in ("2", "10", "1"):
                save_image(tmp_path / folder / f"{name}.png")
        assert [name for name, _, _ in match_folders(tmp_path / "a", tmp_path / "b")] == ["1", "2", "10"]

    def test_images_without_partner_are_named(self, folders, save_image, caplog):
        save_image(folders[0] / "lonely.png")
        save_image(folders[1] / "alone.png")
        assert len(match_folders(*folders)) == 6
        assert "lonely.png" in caplog.text and "alone.png" in caplog.text

    def test_two_images_of_one_name_are_refused(self, folders, save_image):
        save_image(folders[0] / "scene_0_LQ.png")
        with pytest.raises(UserError, match=r"scene_0_LQ\.png and scene_0_LR4\.png .* keep one"):
            match_folders(*folders)

    def test_no_match_is_an_error(self, tmp_path, save_image):
        save_image(tmp_path / "a" / "cat.png")
        save_image(tmp_path / "b" / "dog.png")
        with pytest.raises(UserError, match="has the name of one in"):
            match_folders(tmp_path / "a", tmp_path / "b")

    def test_missing_folder_is_an_error(self, tmp_path):
        with pytest.raises(UserError, match="No image folder at"):
            match_folders(tmp_path / "a", tmp_path / "b")


class TestAlignedPairs:
    @pytest.fixture
    def pair(self) -> tuple[str, torch.Tensor, torch.Tensor]:
        """The clean image is the other with every pixel repeated four times each way."""
        lq = torch.randint(256, (3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return "scene", lq, lq.repeat_interleave(4, -1).repeat_interleave(4, -2)

    def test_crops_show_the_same_place(self, pair):
        data = AlignedPairs([pair], scale=4, crop=32)
        for number in range(20):
            sample = data[number]
            assert sample["lq"].shape == (3, 8, 8)
            assert torch.equal(F.interpolate(sample["lq"][None], scale_factor=4)[0], sample["gt"])

    def test_visits_differ_and_are_reproducible(self, pair):
        one, other = (AlignedPairs([pair], scale=4, crop=32) for _ in range(2))
        assert not torch.equal(one[0]["gt"], one[1]["gt"])
        assert torch.equal(one[1]["gt"], other[1]["gt"])

    def test_without_crop_images_are_whole(self, pair):
        sample = AlignedPairs([pair], scale=4)[0]
        assert sample["lq"].shape == (3, 24, 32) and sample["gt"].shape == (3, 96, 128)
        assert sample["gt"].dtype == torch.float32 and sample["gt"].min() >= 0 and sample["gt"].max() <= 1

    def test_indivisible_crop_is_refused(self, pair):
        with pytest.raises(UserError, match="30 pixels does not divide by the scale 4"):
            AlignedPairs([pair], scale=4, crop=30)


class TestPairsDataModule:
    def test_crops_calibrate_and_whole_images_validate(self, folders):
        module = PairsDataModule(*folders, validation_share=1 / 3, crop=64, batch_size=2)
        module.steps = 3
        for batch in module.train_dataloader():
            assert batch["lq"].shape == (2, 3, 16, 16) and batch["gt"].shape == (2, 3, 64, 64)
        data = module.validation()
        assert len(data) == 2 and data[0]["gt"].shape == (3, 96, 128)

    def test_parts_do_not_overlap(self, folders):
        module = PairsDataModule(*folders, validation_share=0.5, crop=64)
        parts = [{name for name, _, _ in data.pairs} for data in (module.calibration(), module.validation())]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {f"scene_{i}" for i in range(6)}

    def test_what_does_not_fit_is_skipped_and_counted(self, folders, save_image, caplog):
        save_image(folders[0] / "scene_0_LR4.png", 64, 24)
        (folders[1] / "scene_1_HR.png").write_text("no image")
        save_image(folders[0] / "lonely.png")
        module = PairsDataModule(*folders, validation_share=1)
        module.setup("validate")
        assert len(module.validation()) == 4
        assert [name for name, _ in module.skipped] == ["lonely.png", "scene_0", "scene_1"]
        assert "gt of 128x96 pixels is not 4 times the size of lq, 64x24" in caplog.text
        assert module.summary().endswith("3 files skipped")

    def test_no_pair_of_the_right_size_is_an_error(self, folders):
        with pytest.raises(UserError, match="left for validation: 6 were skipped"):
            PairsDataModule(*folders, scale=2, validation_share=1).validation()

    def test_nothing_left_to_calibrate_is_said(self, folders):
        with pytest.raises(UserError, match="left for calibration"):
            PairsDataModule(*folders, validation_share=1).setup("fit")

    def test_without_ground_truth(self, folders, save_image):
        save_image(folders[0] / "small.png", 15, 40)
        module = PairsDataModule(folders[0], None, validation_share=0.5, crop=64, batch_size=2)
        module.setup("fit")
        assert list(module.validation()[0]) == ["lq", "name"] and module.validation()[0]["lq"].shape == (3, 24, 32)
        assert "no ground truth" in module.summary()
        module.steps = 2
        for batch in module.train_dataloader():
            assert batch["lq"].shape == (2, 3, 16, 16) and "gt" not in batch
        whole = PairsDataModule(folders[0], None, validation_share=0, crop=64)
        reason = "15x40 pixels, smaller than 16 (data.crop=32 would fit)"
        assert len(whole.calibration()) == 6 and whole.skipped == [("small", reason)]
        with pytest.raises(UserError, match=r"No image of .*lq is left for calibration"):
            PairsDataModule(folders[0], None, validation_share=1).calibration()
        save_image(folders[0] / "small.bmp")
        with pytest.raises(UserError, match=r"small\.bmp and small\.png in .* have the same name: keep one"):
            PairsDataModule(folders[0], None).setup("fit")

    def test_realsr(self, shared_data):
        module = PairsDataModule(shared_data / "realsr" / "LR", shared_data / "realsr" / "HR", validation_share=1)
        module.setup("test")
        assert module.summary() == "PairsDataModule: validation 50 samples of 128x128 -> 512x512"
        assert module.validation()[0]["name"] == "Canon_001_LR4"

    def test_ready_made_outputs_match_their_clean_images(self, shared_data):
        matches = match_folders(shared_data / "realsr" / "OSEDiff", shared_data / "realsr" / "HR")
        assert len(matches) == 50
        assert all(output.stem == clean.stem == name for name, output, clean in matches)
