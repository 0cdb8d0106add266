from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models.optical_flow import raft_large, raft_small
from torchvision.transforms.functional import to_tensor

from quantsr.errors import UserError
from quantsr.flow import flow_estimator
from quantsr.flow.estimate import torchvision_names

DATA = Path(__file__).parents[3] / "shared" / "data"
RAFT_SMALL = DATA / "weights" / "raft-small.pth"
needs_photo = pytest.mark.skipif(not (DATA / "clips").is_dir(), reason="no clips at ../shared/data/clips")
needs_raft = pytest.mark.skipif(not RAFT_SMALL.is_file(), reason="no RAFT weights at ../shared/data/weights")

AUTHORS_NAMES = {  # of some of torchvision's parameters
    "feature_encoder.convnormrelu.0.weight": "fnet.conv1.weight",
    "context_encoder.convnormrelu.1.running_mean": "cnet.norm1.running_mean",
    "context_encoder.layer2.0.convnormrelu2.0.bias": "cnet.layer2.0.conv2.bias",
    "context_encoder.layer2.1.convnormrelu1.1.weight": "cnet.layer2.1.norm1.weight",
    "context_encoder.layer3.0.downsample.1.bias": "cnet.layer3.0.downsample.1.bias",
    "feature_encoder.conv.weight": "fnet.conv2.weight",
    "update_block.motion_encoder.convcorr2.0.weight": "update_block.encoder.convc2.weight",
    "update_block.motion_encoder.convflow1.0.weight": "update_block.encoder.convf1.weight",
    "update_block.motion_encoder.conv.0.bias": "update_block.encoder.conv.bias",
    "update_block.recurrent_block.convgru1.convz.weight": "update_block.gru.convz1.weight",
    "update_block.recurrent_block.convgru2.convq.bias": "update_block.gru.convq2.bias",
    "update_block.flow_head.conv1.weight": "update_block.flow_head.conv1.weight",
    "mask_predictor.convrelu.0.weight": "update_block.mask.0.weight",
    "mask_predictor.conv.bias": "update_block.mask.2.bias",
}


def estimator(name: str):
    return flow_estimator(name, None if name == "dis" else RAFT_SMALL)


def moved_photo(x: int, y: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of a photo: what is at p in the first is at p + (x, y) in the second."""
    photo = to_tensor(Image.open(DATA / "clips" / "vid4_city" / "frame00000.png").convert("RGB")).unsqueeze(0)
    views = [(40, 60), (40 - y, 60 - x)]
    return tuple(photo[..., top : top + height, left : left + width] for top, left in views)


@needs_photo
@pytest.mark.parametrize("name", ["dis", pytest.param("raft_small", marks=needs_raft)])
@pytest.mark.parametrize(
    ("x", "y", "height", "width"), [(3, -2, 132, 148), (6, 4, 150, 129), (-2, 1, 40, 53), (1, -1, 20, 16)]
)
def test_known_motion_of_a_photo(name, x, y, height, width):
    flow = estimator(name)(*moved_photo(x, y, height, width))
    assert flow.shape == (1, 2, height, width) and flow.dtype == torch.float32
    inner = flow[0, :, height // 4 : -height // 4, width // 4 : -width // 4]
    error = (inner - torch.tensor([float(x), float(y)]).view(2, 1, 1)).norm(dim=0)
    assert error.mean() < 0.3


@needs_photo
@pytest.mark.parametrize("name", ["dis", pytest.param("raft_small", marks=needs_raft)])
def test_each_pair_of_a_batch_has_its_own_flow(name):
    right, down = moved_photo(3, 0, 128, 128), moved_photo(0, 3, 128, 128)
    flow = estimator(name)(*(torch.cat(pair) for pair in zip(right, down, strict=True)))
    alone = torch.cat([estimator(name)(*pair) for pair in (right, down)])
    torch.testing.assert_close(flow, alone, atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", ["dis", pytest.param("raft_small", marks=needs_raft)])
def test_no_gradient_is_recorded(name):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert not estimator(name)(image, image).requires_grad


def test_values_outside_the_range_do_not_wrap_around():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    dis = flow_estimator("dis")
    torch.testing.assert_close(dis(image * 2 - 0.5, image), dis((image * 2 - 0.5).clamp(0, 1), image), atol=0.1, rtol=0)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="two batches"):
        flow_estimator("dis")(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 40))


def test_unknown_estimators_are_named():
    with pytest.raises(UserError, match=r"'spynet'.*dis.*raft_small.*raft_large"):
        flow_estimator("spynet")


def test_dis_has_no_weights():
    with pytest.raises(UserError, match="dis has no weights"):
        flow_estimator("dis", "raft.pth")


@pytest.mark.parametrize("name", ["raft_small", "raft_large"])
def test_missing_weights_of_torchvision_are_not_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(UserError, match=rf"{tmp_path}/hub/checkpoints/{name}_.*: put https://download.*\.pth there"):
        flow_estimator(name)


def test_weights_in_the_folder_of_torch_hub_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    file = tmp_path / "hub" / "checkpoints" / "raft_small_C_T_V2-01064c6d.pth"
    file.parent.mkdir(parents=True)
    torch.save(raft_small(weights=None).state_dict(), file)
    image = torch.rand(1, 3, 16, 16)
    assert flow_estimator("raft_small")(image, image).shape == (1, 2, 16, 16)


def test_missing_and_wrong_files_of_weights(tmp_path):
    with pytest.raises(UserError, match=r"no weights of raft_small at .*absent\.pth"):
        flow_estimator("raft_small", tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth does not hold the weights of raft_small"):
        flow_estimator("raft_small", tmp_path / "text.pth")
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"small\.pth does not hold the weights of raft_large"):
        flow_estimator("raft_large", tmp_path / "small.pth")


@needs_raft
def test_names_of_raft_small_are_those_of_torchvision():
    state = torch.load(RAFT_SMALL, map_location="cpu", weights_only=True)
    assert all(name.startswith("module.") for name in state)
    assert torchvision_names(state).keys() == raft_small(weights=None).state_dict().keys()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_raft_large_are_those_of_torchvision(prefix):
    assert AUTHORS_NAMES.keys() <= raft_large(weights=None).state_dict().keys()
    state = {prefix + theirs: ours for ours, theirs in AUTHORS_NAMES.items()}
    assert torchvision_names(state) == {ours: ours for ours in AUTHORS_NAMES}
    # The shortcut's normalization is stored a second time.
    assert not torchvision_names({prefix + "cnet.layer2.0.norm3.weight": torch.ones(96)})


def test_names_of_torchvision_stay():
    state = raft_large(weights=None).state_dict()
    assert torchvision_names(state).keys() == state.keys()
