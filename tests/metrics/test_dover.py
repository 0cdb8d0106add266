"""DOVER scores clips with the weights of its authors, if they are on disk, and says what is missing otherwise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from quantsr.errors import UserError
from quantsr.metrics import dover
from quantsr.metrics.dover import Dover, fused
from quantsr.metrics.dover_networks import (
    DoverNetwork,
    FragmentAttention,
)
from quantsr.metrics.weights import missing


def authors_name(name: str) -> str:
    """What the authors call a tensor of :class:`quantsr.metrics.DoverNetwork`."""
    parts = name.split(".")
    if parts[1] == "features":
        stage, rest = divmod(int(parts[2]), 2)
        parts[1:3] = ["layers", str(stage), "downsample" if rest else "blocks"]
    renamed = ".".join(parts).replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
    return renamed.replace("head.0", "head.fc_hid").replace("head.2", "head.fc_last")


def random_weights() -> dict[str, Tensor]:
    """A state dict as in DOVER.pth that takes little space in a file: each row of a weight is the last one, shifted."""
    with torch.device("meta"):
        state = DoverNetwork().state_dict()
    generator = torch.Generator().manual_seed(0)
    random = {}
    for name, tensor in state.items():
        if name.endswith("relative_position_index"):
            random[authors_name(name)] = window_index()
        elif tensor.ndim < 2:
            random[authors_name(name)] = 0.1 * torch.randn(tensor.shape, generator=generator) + name.endswith("weight")
        else:
            rows, columns = len(tensor), tensor[0].numel()
            values = torch.randn(rows + columns - 1, generator=generator) / columns**0.5
            random[authors_name(name)] = values.unfold(0, columns, 1).view(tensor.shape)
    return random


def window_index() -> Tensor:
    return FragmentAttention(3, [8, 7, 7], [0, 0, 0], 1).relative_position_index


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Path]:
    """A folder of torch.hub that holds weights of DOVER; nothing can be downloaded."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    torch.save(random_weights(), folder / "checkpoints" / "DOVER.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "_hub_dir", str(folder))
        patch.delattr(torch.hub, "download_url_to_file")
        yield folder


@pytest.fixture
def empty_hub(hub, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def metric(hub) -> Dover:
    return Dover()


class TestWeights:
    def test_nothing_is_missing(self, hub):
        assert missing("dover") is None

    def test_missing_weights_are_named(self, empty_hub):
        with pytest.raises(UserError) as error:
            Dover()
        assert str(error.value) == f"dover cannot be measured: {missing('dover')}"
        assert str(empty_hub / "checkpoints") in str(error.value) and "DOVER.pth" in str(error.value)

    def test_they_may_lie_in_a_folder_that_is_named(self, hub, empty_hub):
        Dover(hub / "checkpoints")

    @pytest.mark.parametrize("content", [b"", b"no weights"], ids=["empty", "text"])
    def test_unreadable_weights(self, empty_hub, content):
        (empty_hub / "checkpoints" / "DOVER.pth").write_bytes(content)
        with pytest.raises(UserError, match="does not hold the weights of DOVER"):
            Dover()

    def test_weights_of_something_else(self, empty_hub):
        torch.save({"conv.weight": torch.zeros(1)}, empty_hub / "checkpoints" / "DOVER.pth")
        with pytest.raises(UserError, match="does not hold the weights of DOVER"):
            Dover()

    def test_whoever_holds_it_neither_trains_nor_stores_it(self, metric):
        module = nn.Module()
        module.metric = metric
        assert module.state_dict() == {} and not any(p.requires_grad for p in metric._network[0].parameters())


class TestScore:
    @pytest.mark.slow
    def test_is_that_of_the_authors_code(self, metric, monkeypatch):
        monkeypatch.setattr(dover, "TECHNICAL_VIEWS", 1)
        seen = []
        monkeypatch.setattr(dover, "fused", lambda *scores: seen.extend(scores) or fused(*scores))
        score = metric(torch.rand(40, 3, 224, 224, generator=torch.Generator().manual_seed(1)))
        # Of the authors' network with these weights, of the views that their samplers take of this clip.
        assert seen == pytest.approx([0.50565, 0.55493], abs=1e-4)
        assert score == fused(*seen) and 0 < score < 1

    def test_grows_with_both_scores(self):
        assert fused(0.1107, -0.08285) == pytest.approx(0.5)
        assert fused(0.2, -0.08285) > 0.5 and fused(0.1107, 0) > 0.5

    @pytest.mark.parametrize("shape", [(3, 64, 64), (0, 3, 64, 64), (4, 1, 64, 64)], ids=["image", "empty", "gray"])
    def test_no_clip(self, metric, shape):
        with pytest.raises(UserError, match=r"clips \(t, 3, h, w\)"):
            metric(torch.zeros(shape))


class TestFrames:
    def test_technical_views_take_every_second_frame_from_the_middle_of_a_third(self):
        frames = dover.technical_frames(300)
        assert frames.shape == (3, 32) and frames[:, 0].tolist() == [17, 117, 217]
        assert (frames.diff(dim=1) == 2).all()

    def test_short_clips_start_over(self):
        assert dover.technical_frames(5)[0, :5].tolist() == [0, 2, 4, 1, 3]
        assert dover.technical_frames(1).unique().tolist() == [0]

    @pytest.mark.parametrize("count", [1, 5, 32, 100, 301])
    def test_both_stay_in_the_clip(self, count):
        for frames in (dover.technical_frames(count), dover.aesthetic_frames(count)):
            assert frames.min() >= 0 and frames.max() < count

    def test_aesthetic_view_is_spread_over_the_clip(self):
        assert dover.aesthetic_frames(320).tolist() == list(range(3, 320, 10))


class TestViews:
    def test_shapes(self):
        clip = torch.rand(3, 3, 300, 448)
        assert dover.technical_views(clip).shape == (3, 3, 32, 224, 224)
        assert dover.aesthetic_view(clip).shape == (1, 3, 32, 224, 224)

    def test_fragments_are_patches_at_full_resolution(self):
        y, x = torch.meshgrid(torch.arange(300), torch.arange(448), indexing="ij")
        view = dover.technical_views(torch.stack([y % 256, x % 256, x * 0]).unsqueeze(0) / 255)[0, :, 0]
        rows, columns = (view[i] * dover.STD[i] + dover.MEAN[i] for i in (0, 1))
        # Cells of 300 // 7 = 42 and 448 // 7 = 64 pixels; a patch of 32 starts at (42 - 33) // 2 and (64 - 33) // 2.
        assert rows[:32, 0].round().tolist() == list(range(4, 36)) and rows[32, 0].round() == 42 + 4
        assert columns[0, :32].round().tolist() == list(range(15, 47)) and columns[0, 32].round() == 64 + 15

    def test_small_frames_are_enlarged(self):
        assert dover.technical_views(torch.rand(1, 3, 20, 50)).shape == (3, 3, 32, 224, 224)

    def test_values_are_rounded_to_8_bits(self):
        clip = torch.full((1, 3, 224, 224), 100.4 / 255)
        for view in (dover.technical_views(clip), dover.aesthetic_view(clip)):
            assert view[0, 0].unique().item() == pytest.approx((100 - dover.MEAN[0]) / dover.STD[0], abs=1e-5)


class TestFragmentAttention:
    def test_distance_is_zero_where_fragments_fill_the_windows(self):
        attention = FragmentAttention(6, [8, 7, 7], [0, 0, 0], 2)
        assert not attention._fragment_distance(torch.zeros(1, 8, 49, 49, 6)).any()

    def test_shifted_windows_hold_tokens_of_several_fragments(self):
        attention = FragmentAttention(6, [8, 7, 7], [4, 3, 3], 2)
        distance = attention._fragment_distance(torch.zeros(1, 8, 49, 49, 6))
        # The first window has rows and columns 3 to 9, and those below 7 belong to another fragment.
        assert distance.shape == (49, 392, 392) and distance[0].unique().tolist() == [0, 1, 2]

    def test_equal_tables_make_plain_window_attention(self):
        torch.manual_seed(0)
        attention = FragmentAttention(6, [8, 7, 7], [4, 3, 3], 2)
        attention.fragment_position_bias_table.data = attention.relative_position_bias_table.data
        plain = ShiftedWindowAttention3d(6, [8, 7, 7], [4, 3, 3], 2)
        plain.load_state_dict(attention.state_dict(), strict=False)
        x = torch.randn(1, 16, 14, 14, 6)
        torch.testing.assert_close(attention(x), plain(x), rtol=0, atol=1e-5)
