"""The embedding of the empty prompt: from a file, or by the text encoder beside the networks."""

import shutil
import sys

import pytest
import torch
from transformers import CLIPTextModel

from quantsr.errors import UserError
from quantsr.teachers.osediff import load_osediff
from tests.teachers.osediff.conftest import CHANNELS, MICRO, TOKENS


@pytest.fixture
def whole_folder(tmp_path, folder, text_encoder):
    """Networks and text encoder in one folder."""
    for source in (folder, text_encoder):
        shutil.copytree(source, tmp_path / "sd", dirs_exist_ok=True)
    return tmp_path / "sd"


def test_from_a_file(folder, prompt_file, original):
    assert torch.equal(
        load_osediff(folder, prompt_file=prompt_file, **MICRO).prompt_embedding, original.prompt_embedding
    )


@torch.no_grad()
def test_by_the_text_encoder(whole_folder):
    """Beginning, end, and padding with "!", which is Stable Diffusion 2's padding."""
    encoder = CLIPTextModel.from_pretrained(whole_folder / "text_encoder")
    expected = encoder(torch.tensor([[53, 54, 0, 0]])).last_hidden_state
    assert expected.shape == (1, TOKENS, CHANNELS)
    for dtype in ("float32", "bfloat16"):
        loaded = load_osediff(whole_folder, dtype=dtype, **MICRO)
        assert torch.equal(loaded.prompt_embedding, expected.to(loaded.dtype))
        assert not loaded.prompt_embedding.requires_grad


def test_the_file_of_passionsr_fits_the_full_size(shared):
    """(1, 77, 1024), where the whole model is on the meta device."""
    from quantsr.teachers.osediff import architecture
    from quantsr.teachers.weight_files import read_embedding

    with torch.device("meta"):
        like = architecture().prompt_embedding
    embedding = read_embedding(shared / "weights" / "empty_context_embedding.pt", like)
    assert embedding.shape == (1, 77, 1024) and 0.5 < embedding.std() < 2


# What is refused


def test_a_missing_file(folder, tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.pt: give the file of a prompt embedding"):
        load_osediff(folder, prompt_file=tmp_path / "nowhere.pt", **MICRO)


def test_another_length(folder, tmp_path):
    torch.save(torch.zeros(1, 77, CHANNELS), tmp_path / "long.pt")
    with pytest.raises(
        UserError, match=r"long\.pt has to hold one tensor, a prompt embedding \(1, 4, 8\), but holds \(1, 77"
    ):
        load_osediff(folder, prompt_file=tmp_path / "long.pt", **MICRO)


def test_a_folder_without_a_text_encoder(folder):
    with pytest.raises(UserError, match=r"has no tokenizer/ and text_encoder/ .*: give the embedding as a file"):
        load_osediff(folder, **MICRO)


def test_a_single_file(tmp_path, original_naming):
    torch.save(original_naming, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match=r"sd\.ckpt has no tokenizer .*: give the embedding as a file"):
        load_osediff(tmp_path / "sd.ckpt", **MICRO)


def test_without_transformers(monkeypatch, whole_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers \(pip install transformers\), or give"):
        load_osediff(whole_folder, **MICRO)


def test_a_damaged_text_encoder(whole_folder):
    (whole_folder / "text_encoder" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"the text encoder of .* cannot be read .*: give the embedding as a file"):
        load_osediff(whole_folder, **MICRO)


def test_a_text_encoder_of_another_size(whole_folder):
    config = {**MICRO, "unet": {**MICRO["unet"], "cross_attention_dim": 16}}
    with pytest.raises(UserError, match=r"gives an embedding \(1, 4, 8\) where the UNet takes \(1, 4, 16\)"):
        load_osediff(whole_folder, **config)
