"""Stable Diffusion loads the same from a diffusers folder, a file in the original naming and the hub's cache."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantsr.enlarging import bicubic
from quantsr.errors import UserError
from quantsr.teachers.osediff import load_osediff
from tests.teachers.osediff.conftest import MICRO

NETWORKS = ("unet", "vae")
FILE = "diffusion_pytorch_model.safetensors"


def assert_same(loaded, original, lq) -> None:
    theirs = original.state_dict()
    assert loaded.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded(lq), original(lq))


def rewritten(folder: Path, target: Path, write) -> Path:
    """A copy of a diffusers folder whose weights ``write(tensors, folder of a network)`` puts there."""
    for name in NETWORKS:
        (target / name).mkdir(parents=True)
        write(load_file(folder / name / FILE), target / name)
    return target


def test_a_diffusers_folder(folder, prompt_file, original, lq):
    loaded = load_osediff(folder, prompt_file=prompt_file, **MICRO)
    assert_same(loaded, original, lq)
    assert loaded.config == original.config
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(("predicts", "is_taken"), [("epsilon", True), ("v_prediction", False)])
def test_a_model_that_predicts_something_else_is_refused(tmp_path, folder, prompt_file, predicts, is_taken):
    """Stable Diffusion 2.1 for 768 pixels has the names and shapes of the base model."""
    copy = rewritten(folder, tmp_path, lambda tensors, target: save_file(tensors, target / FILE))
    (copy / "scheduler").mkdir()
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": predicts}))
    with nullcontext() if is_taken else pytest.raises(UserError, match=r"predicts v_prediction.*2-1-base"):
        load_osediff(copy, prompt_file=prompt_file, **MICRO)


def test_the_input_is_enlarged_as_the_authors_do(folder, prompt_file, lq):
    assert torch.equal(load_osediff(folder, prompt_file=prompt_file, **MICRO).upscale(lq), bicubic(lq, 4, "pillow"))


def test_a_folder_of_pickles(tmp_path, folder, prompt_file, original, lq):
    def write(tensors, target):
        torch.save(tensors, target / "diffusion_pytorch_model.bin")

    assert_same(load_osediff(rewritten(folder, tmp_path, write), prompt_file=prompt_file, **MICRO), original, lq)


def test_a_folder_of_16_bits(tmp_path, folder, prompt_file, original, lq):
    def write(tensors, target):
        half = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(half, target / "diffusion_pytorch_model.fp16.safetensors")

    assert_same(load_osediff(rewritten(folder, tmp_path, write), prompt_file=prompt_file, **MICRO), original, lq)


def test_older_names_of_the_autoencoders_attention(tmp_path, folder, prompt_file, original, lq):
    """As in the files that Stability AI published."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def write(tensors, target):
        if target.name == "vae":
            for new, old in older.items():
                tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
            assert any("proj_attn" in name for name in tensors)
        save_file(tensors, target / "diffusion_pytorch_model.safetensors")

    assert_same(load_osediff(rewritten(folder, tmp_path, write), prompt_file=prompt_file, **MICRO), original, lq)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_single_file_in_the_original_naming(tmp_path, original_naming, prompt_file, original, lq, suffix):
    path = tmp_path / f"v2-1_512-ema-pruned.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": original_naming, "global_step": 3}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in original_naming.items()}, path)
    assert_same(load_osediff(path, prompt_file=prompt_file, **MICRO), original, lq)


def test_the_file_may_be_of_torch_before_1_6(tmp_path, original_naming, prompt_file, original, lq):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": original_naming}, path, _use_new_zipfile_serialization=False)
    assert_same(load_osediff(path, prompt_file=prompt_file, **MICRO), original, lq)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits(folder, prompt_file, original, lq, dtype):
    loaded = load_osediff(folder, prompt_file=prompt_file, dtype=str(dtype).removeprefix("torch."), **MICRO)
    assert all(tensor.dtype == dtype for tensor in loaded.state_dict().values())
    assert all(torch.equal(t, original.state_dict()[name].to(dtype)) for name, t in loaded.state_dict().items())
    sr = loaded(lq)
    assert sr.dtype == torch.float32 and (sr - original(lq)).abs().mean() < 0.02


def test_a_model_outlives_its_files(tmp_path, folder, prompt_file, original, lq):
    def write(tensors, target):
        save_file(tensors, target / "diffusion_pytorch_model.safetensors")

    copied = rewritten(folder, tmp_path, write)
    loaded = load_osediff(copied, prompt_file=prompt_file, **MICRO)
    for name in NETWORKS:
        path = copied / name / "diffusion_pytorch_model.safetensors"
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))
    assert_same(loaded, original, lq)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """Of the Hugging Face hub, which cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(hub_cache: Path, folder: Path) -> None:
    """A folder as the hub's cache has the repository ``someone/stable-diffusion``."""
    repository = hub_cache / "models--someone--stable-diffusion"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder)


def test_a_hub_id_is_looked_for_in_the_cache(hub_cache, folder, prompt_file, original, lq):
    put(hub_cache, folder)
    assert_same(load_osediff("someone/stable-diffusion", prompt_file=prompt_file, **MICRO), original, lq)


def test_a_hub_id_of_a_model_that_predicts_something_else_is_refused(hub_cache, tmp_path_factory, prompt_file):
    model = tmp_path_factory.mktemp("model")
    (model / "scheduler").mkdir()
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    put(hub_cache, model)
    with pytest.raises(UserError, match=r"the model in someone/stable-diffusion predicts v_prediction.*2-1-base"):
        load_osediff("someone/stable-diffusion", prompt_file=prompt_file, **MICRO)


def test_a_hub_id_without_a_network_says_how_to_do_without(hub_cache, prompt_file):
    with pytest.raises(UserError, match=r"someone/stable-diffusion is neither a file nor a folder here") as error:
        load_osediff("someone/stable-diffusion", prompt_file=prompt_file, **MICRO)
    assert "give a local folder in diffusers' layout (with unet/ and vae/)" in str(error.value)
    assert "\n" not in str(error.value)


# What is refused


def test_a_source_that_is_not_there(tmp_path, prompt_file):
    with pytest.raises(UserError, match=r"there is no Stable Diffusion at .*nowhere: give a local folder"):
        load_osediff(tmp_path / "nowhere", prompt_file=prompt_file, **MICRO)


def test_a_folder_without_weights(tmp_path, prompt_file):
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match=r"unet has no diffusion_pytorch_model\.safetensors"):
        load_osediff(tmp_path, prompt_file=prompt_file, **MICRO)


@pytest.mark.parametrize("content", [b"", b"not a tensor in sight", b"\x80\x02" * 64], ids=["empty", "text", "bytes"])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_garbage(tmp_path, prompt_file, content, suffix):
    path = tmp_path / f"other.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"other\.{suffix} is not a readable file of weights"):
        load_osediff(path, prompt_file=prompt_file, **MICRO)


def test_a_file_cut_short(tmp_path, original_naming, prompt_file):
    path = tmp_path / "short.ckpt"
    torch.save({"state_dict": original_naming}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"short\.ckpt is not a readable file of weights"):
        load_osediff(path, prompt_file=prompt_file, **MICRO)


def test_missing_unexpected_and_misshapen_weights_are_in_one_table(tmp_path, original_naming, prompt_file):
    changed = {name: x for name, x in original_naming.items() if ".middle_block.0.in_layers." not in name}
    changed["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3)
    changed["model.diffusion_model.input_blocks.1.0.in_layers.9.weight"] = torch.zeros(1)
    torch.save(changed, tmp_path / "other.ckpt")
    with pytest.raises(UserError) as error:
        load_osediff(tmp_path / "other.ckpt", prompt_file=prompt_file, **MICRO)
    title, *rows = str(error.value).splitlines()
    assert title == f"{tmp_path / 'other.ckpt'} does not fit the UNet of Stable Diffusion 2.1:"
    assert [row.split()[0] for row in rows] == ["missing", "unexpected", "wrong", "not"]
    assert rows[0].endswith("and 1 more") and "  4   mid_block.resnets.0.norm1.weight, " in rows[0]
    assert "  1   down_blocks.0.resnets.0.in_layers.9.weight" in rows[1]
    assert "  1   conv_in.weight (8, 9, 3, 3) instead of (8, 4, 3, 3)" in rows[2]
    assert max(len(row) for row in rows) < 250


def test_a_file_of_something_else(tmp_path, prompt_file):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"does not fit the UNet .*\n  missing +\d+ .*\n  unexpected +1 +weight"):
        load_osediff(tmp_path / "other.safetensors", prompt_file=prompt_file, **MICRO)


def test_another_dtype(folder, prompt_file):
    with pytest.raises(UserError, match=r"teacher\.dtype takes one of .*bfloat16.*, not 'int8'"):
        load_osediff(folder, prompt_file=prompt_file, dtype="int8", **MICRO)
