"""OSEDiff's adapters, as peft writes them, are merged to what peft computes; other files are refused in a table."""

import pytest
import torch
from torch import Tensor

from quantsr.errors import UserError
from quantsr.teachers.osediff import load_osediff
from tests.conftest import ROOT
from tests.teachers.osediff.conftest import MICRO, RANK


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def test_the_unet_computes_what_it_computes_under_peft(folder, checkpoint, prompt_file, with_peft, original, latents):
    loaded = load_osediff(folder, checkpoint, prompt_file, **MICRO)
    prompt = loaded.prompt_embedding.expand(2, -1, -1)
    ours, theirs, without = (
        unet(latents, 999, encoder_hidden_states=prompt).sample for unet in (loaded.unet, with_peft[0], original.unet)
    )
    assert torch.allclose(ours, theirs, atol=1e-5 * theirs.abs().max().item())
    assert (theirs - without).abs().mean() > 0.1 * theirs.abs().mean()


@torch.no_grad()
def test_the_autoencoder_encodes_as_under_peft_and_decodes_as_before(
    folder, checkpoint, prompt_file, with_peft, original, images, latents
):
    loaded = load_osediff(folder, checkpoint, prompt_file, **MICRO)
    ours, theirs, without = (vae.encode(images).latent_dist.mode() for vae in (loaded.vae, with_peft[1], original.vae))
    assert torch.allclose(ours, theirs, atol=1e-5 * theirs.abs().max().item())
    assert (theirs - without).abs().mean() > 0.1 * theirs.abs().mean()
    assert torch.equal(loaded.vae.decode(latents).sample, original.vae.decode(latents).sample)


def test_every_adapted_weight_is_peft_s_own_merged_one(folder, checkpoint, prompt_file, with_peft):
    loaded = load_osediff(folder, checkpoint, prompt_file, **MICRO)
    for network, adapted in ((loaded.unet, with_peft[0]), (loaded.vae, with_peft[1])):
        weights = network.state_dict()
        layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "get_delta_weight")}
        kinds = {weights[f"{name}.weight"].shape[2:] for name in layers}
        assert kinds == {(), (3, 3), (1, 1)}
        for name, layer in layers.items():
            merged = layer.base_layer.weight + sum(
                layer.get_delta_weight(a) for a in layer.active_adapters if a in layer.lora_A
            )
            assert torch.allclose(weights[f"{name}.weight"], merged, atol=1e-5), name


def test_merging_is_rounded_once(folder, checkpoint, prompt_file):
    whole, half = (load_osediff(folder, checkpoint, prompt_file, dtype=d, **MICRO) for d in ("float32", "bfloat16"))
    rounded = {name: tensor.bfloat16() for name, tensor in whole.state_dict().items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in half.state_dict().items())


def test_adapters_fit_a_single_file_as_well(tmp_path, original_naming, folder, checkpoint, prompt_file, lq):
    torch.save(original_naming, tmp_path / "sd.ckpt")
    ours, theirs = (
        load_osediff(source, checkpoint, prompt_file, **MICRO)(lq) for source in (tmp_path / "sd.ckpt", folder)
    )
    assert torch.equal(ours, theirs)


def test_peft_is_not_imported_to_load():
    for path in (ROOT / "quantsr").rglob("*.py"):
        assert "import peft" not in path.read_text() and "from peft" not in path.read_text()


# What is refused


def refusal(folder, prompt_file, tmp_path, content) -> str:
    """What loading says of a checkpoint with this content."""
    torch.save(content, tmp_path / "other.pkl")
    with pytest.raises(UserError) as error:
        load_osediff(folder, tmp_path / "other.pkl", prompt_file, **MICRO)
    assert str(error.value).startswith(f"{tmp_path / 'other.pkl'} does not fit ")
    return str(error.value)


def test_a_missing_checkpoint(folder, prompt_file, tmp_path):
    with pytest.raises(
        UserError, match=r"there is no file .*nowhere\.pkl: download preset/models/osediff\.pkl from https"
    ):
        load_osediff(folder, tmp_path / "nowhere.pkl", prompt_file, **MICRO)


def test_a_checkpoint_cut_short(folder, prompt_file, tmp_path, checkpoint):
    whole = checkpoint.read_bytes()
    (tmp_path / "short.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"short\.pkl is not a readable file of weights"):
        load_osediff(folder, tmp_path / "short.pkl", prompt_file, **MICRO)


@pytest.mark.parametrize("other", [{"weight": torch.zeros(2)}, torch.zeros(2), [1]], ids=["dict", "tensor", "list"])
def test_another_file(folder, prompt_file, tmp_path, other):
    said = refusal(folder, prompt_file, tmp_path, other)
    assert "the format of OSEDiff's checkpoint:\n  missing           8   rank_unet, state_dict_unet, " in said


def test_missing_factors(folder, prompt_file, tmp_path, content):
    lost = [key for key in content["state_dict_unet"] if "mid_block" in key and "lora_B" in key]
    content["state_dict_unet"] = {k: v for k, v in content["state_dict_unet"].items() if k not in lost}
    said = refusal(folder, prompt_file, tmp_path, content)
    assert f"OSEDiff's adapters of the UNet:\n  missing       {len(lost):5}   mid_block." in said
    assert ".lora_B.default_others.weight" in said


def test_a_missing_first_convolution(folder, prompt_file, tmp_path, content):
    del content["state_dict_unet"]["conv_in.base_layer.weight"]
    assert "1   conv_in.base_layer.weight" in refusal(folder, prompt_file, tmp_path, content)


def test_a_module_that_is_not_there(folder, prompt_file, tmp_path, content):
    content["vae_lora_encoder_modules"].append("encoder.conv_middle")
    said = refusal(folder, prompt_file, tmp_path, content)
    assert "of the VAE:\n  unexpected        1   encoder.conv_middle in vae_lora_encoder_modules" in said


def test_factors_that_no_list_names(folder, prompt_file, tmp_path, content):
    content["state_dict_vae"]["decoder.conv_in.lora_A.default_encoder.weight"] = torch.zeros(RANK, 4, 3, 3)
    said = refusal(folder, prompt_file, tmp_path, content)
    assert "unexpected        1   decoder.conv_in.lora_A.default_encoder.weight" in said


def test_another_rank(folder, prompt_file, tmp_path, content):
    content["rank_unet"] = RANK + 1
    said = refusal(folder, prompt_file, tmp_path, content)
    assert "wrong shape" in said and "(3, 4, 3, 3) instead of (4, 4, 3, 3)" in said


def test_adapters_of_another_size(folder, prompt_file, tmp_path, content):
    key = "conv_in.lora_B.default_encoder.weight"
    content["state_dict_unet"][key] = torch.zeros(16, RANK, 1, 1)
    assert f"wrong shape       1   {key} (16, 3, 1, 1) instead of (8, 3, 1, 1)" in refusal(
        folder, prompt_file, tmp_path, content
    )
