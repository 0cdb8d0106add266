"""The authors' files load as they are, whatever else is in them; other files are refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from quantsr.errors import UserError
from quantsr.teachers.mgldvsr import MGLDVSRTeacher, checkpoints
from quantsr.teachers.mgldvsr.checkpoints import FULL_SIZE, load_released
from quantsr.teachers.micro import MICRO_VIDEO
from tests.conftest import ROOT, micro_video_teacher

PATHS = ("unet_file", "vae_file", "prompt_file")


class Callback:
    """What a training leaves in a checkpoint: an object, under its class."""

    def __setstate__(self, state):
        pytest.fail("code from a checkpoint has run")


def contents(teacher: MGLDVSRTeacher) -> dict[str, dict]:
    """What the authors' three files would hold for a teacher."""
    callback = Callback()
    callback.best = 0.5
    training = {
        "epoch": 3,
        "callbacks": {Callback: callback},
        "best": np.float64(0.5),
        "optimizer_states": [torch.ones(2)],
    }
    unet = {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in teacher.unet.state_dict().items()},
        **{f"structcond_stage_model.{name}": tensor for name, tensor in teacher.structure.state_dict().items()},
        **{f"first_stage_model.{name}": -tensor for name, tensor in teacher.vae.state_dict().items()},
        "cond_stage_model.model.token_embedding.weight": torch.zeros(2, 16),
        "betas": torch.zeros(1000),
        "flownet.mean": torch.zeros(1, 3, 1, 1),
    }
    vae = {**teacher.vae.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.bias": torch.zeros(2)}
    return {
        "unet_file": {"state_dict": unet, **training},
        "vae_file": {"state_dict": vae, **training},
        "prompt_file": teacher.prompt_embedding,
    }


def write(folder: Path, files: dict[str, dict | Tensor]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.ckpt" for name in files}
    for name, content in files.items():
        torch.save(content, paths[name])
    return paths


@pytest.fixture(scope="module")
def original() -> MGLDVSRTeacher:
    return micro_video_teacher().freeze()


@pytest.fixture
def files(original) -> dict[str, dict]:
    return contents(original)


@pytest.fixture(scope="module")
def paths(original, tmp_path_factory) -> dict[str, Path]:
    """Files as released, which tests leave as they are."""
    return write(tmp_path_factory.mktemp("released"), contents(original))


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def assert_same(loaded: MGLDVSRTeacher, original: MGLDVSRTeacher, lq: Tensor) -> None:
    theirs = original.state_dict()
    assert loaded.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded(lq), original(lq))


def test_a_teacher_comes_back_from_the_released_layout(paths, original, lq):
    loaded = load_released(**paths, **MICRO_VIDEO)
    assert_same(loaded, original, lq)
    assert loaded.config == original.config


def test_nothing_is_left_on_the_meta_device_and_all_is_frozen_in_float32(tmp_path, files):
    files["vae_file"]["state_dict"] = {name: tensor.half() for name, tensor in files["vae_file"]["state_dict"].items()}
    loaded = load_released(**write(tmp_path, files), **MICRO_VIDEO)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


def test_weights_of_the_flow_are_missed_before_anything_is_loaded(tmp_path, monkeypatch, paths):
    monkeypatch.setattr(checkpoints, "read_tensors", lambda path: pytest.fail(f"{path} was read"))
    config = {**MICRO_VIDEO, "flow": "raft_large", "flow_weights": tmp_path / "raft.pth"}
    with pytest.raises(UserError, match=r"there are no weights of raft_large at .*raft\.pth"):
        load_released(**paths, **config)


def test_without_guidance_no_weights_of_the_flow_are_needed(tmp_path, paths):
    config = {**MICRO_VIDEO, "flow": "raft_large", "flow_weights": tmp_path / "raft.pth", "guidance": 0.0}
    assert load_released(**paths, **config).guidance == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits(paths, original, lq, dtype):
    loaded = load_released(**paths, **MICRO_VIDEO, dtype=str(dtype).removeprefix("torch."))
    assert all(tensor.dtype == dtype for tensor in loaded.state_dict().values())
    assert loaded.schedule.signal.dtype == torch.float32
    assert loaded(lq).dtype == torch.float32
    assert (loaded(lq) - original(lq)).abs().mean() < 0.02


def test_safetensors_files_load_as_well(tmp_path, original, files, lq):
    paths = {name: tmp_path / f"{name}.safetensors" for name in files}
    for name in ("unet_file", "vae_file"):
        save_file({key: tensor.contiguous() for key, tensor in files[name]["state_dict"].items()}, paths[name])
    save_file({"embedding": files["prompt_file"]}, paths["prompt_file"])
    assert_same(load_released(**paths, **MICRO_VIDEO), original, lq)


def test_paths_can_be_in_the_home_folder(monkeypatch, paths, original, lq):
    monkeypatch.setenv("HOME", str(paths["vae_file"].parent))
    assert_same(load_released(**{name: f"~/{path.name}" for name, path in paths.items()}, **MICRO_VIDEO), original, lq)


def test_arguments_go_to_the_teacher(paths):
    loaded = load_released(**paths, **MICRO_VIDEO | {"steps": 7, "start": 999, "color_fix": "adain"})
    assert (loaded.steps, loaded.color_fix) == (7, "adain")
    assert loaded.schedule.timesteps.tolist()[0] == 999 and len(loaded.schedule.signal) == 7


def test_full_size_is_the_released_one():
    with torch.device("meta"):
        teacher = MGLDVSRTeacher(**FULL_SIZE)
    millions = {name: sum(p.numel() for p in getattr(teacher, name).parameters()) / 1e6 for name in FULL_SIZE}
    assert (round(millions["unet"], 1), round(millions["structure"], 1)) == (935.3, 52.5)
    assert teacher.prompt_embedding.shape == (1, 77, 1024)
    assert teacher.vae.factor == 8 and json.dumps(teacher.config)


def test_configuration_takes_the_three_paths_and_is_the_authors_setting():
    node = OmegaConf.load(ROOT / "conf" / "teacher" / "mgldvsr.yaml")
    assert node.pop("_target_") == f"{load_released.__module__}.{load_released.__name__}"
    assert all(OmegaConf.is_missing(node, name) for name in PATHS)
    with torch.device("meta"):
        default = MGLDVSRTeacher(**FULL_SIZE)
    assert {name: node[name] for name in node if name not in PATHS}.items() <= default.config.items()


# Files that are refused


@pytest.mark.parametrize("name", PATHS)
def test_a_missing_file_is_named(tmp_path, paths, name):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.ckpt"):
        load_released(**paths | {name: tmp_path / "nowhere.ckpt"}, **MICRO_VIDEO)


@pytest.mark.parametrize("content", [b"", b"not a tensor in sight", b"\x80\x02" * 64], ids=["empty", "text", "bytes"])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_garbage_is_refused(tmp_path, paths, content, suffix):
    path = tmp_path / f"other.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"other\.{suffix} is not a readable file of weights"):
        load_released(**paths | {"unet_file": path}, **MICRO_VIDEO)


def test_a_file_cut_short_is_refused(tmp_path, paths):
    path, whole = tmp_path / "short.ckpt", paths["vae_file"].read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"short\.ckpt is not a readable file of weights"):
        load_released(**paths | {"vae_file": path}, **MICRO_VIDEO)


def test_the_first_missing_weights_are_named(tmp_path, paths, files):
    lost = "structcond_stage_model.fea_tran.1."
    weights = {name: x for name, x in files["unet_file"]["state_dict"].items() if not name.startswith(lost)}
    damaged = write(tmp_path, {"unet_file": {"state_dict": weights}})
    first = r"structcond_stage_model\.fea_tran\.1\.in_layers\.0\.weight, .* and \d+ more"
    with pytest.raises(UserError, match=rf"unet_file\.ckpt does not fit the denoiser .*:\n  missing +\d+ +{first}"):
        load_released(**paths | damaged, **MICRO_VIDEO)


def test_swapped_files_are_refused(paths):
    swapped = {"unet_file": paths["vae_file"], "vae_file": paths["unet_file"]}
    with pytest.raises(
        UserError, match=r"vae_file\.ckpt does not .*\n  missing +\d+ +model\.diffusion_model\.time_embed"
    ):
        load_released(**paths | swapped, **MICRO_VIDEO)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"state_dict": {}}, torch.zeros(3)], ids=["list", "dict", "tensor"]
)
def test_something_else_is_refused(tmp_path, paths, content):
    other = write(tmp_path, {"vae_file": content})
    with pytest.raises(UserError, match=r"vae_file\.ckpt does not .*\n  missing +\d+ +encoder\.conv_in"):
        load_released(**paths | other, **MICRO_VIDEO)


def test_another_size_is_refused(tmp_path, paths, files):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    weights = files["unet_file"]["state_dict"] | {name: torch.zeros(64, 4, 3, 3)}
    larger = write(tmp_path, {"unet_file": {"state_dict": weights}})
    with pytest.raises(UserError, match=rf"\n  wrong shape +1 +{name} \(64, 4, 3, 3\) instead of \(32, 4"):
        load_released(**paths | larger, **MICRO_VIDEO)


def test_weights_without_a_place_are_refused_but_not_what_else_the_file_holds(tmp_path, paths, files):
    extra = {"model.diffusion_model.input_blocks.9.0.op.bias": torch.zeros(3), "model_ema.decay": torch.zeros(())}
    larger = write(tmp_path, {"unet_file": {"state_dict": files["unet_file"]["state_dict"] | extra}})
    with pytest.raises(UserError, match=r"\n  unexpected +1 +model\.diffusion_model\.input_blocks\.9\.0\.op\.bias\n"):
        load_released(**paths | larger, **MICRO_VIDEO)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(1, 77, 16), torch.zeros(4, 16), {}, {"a": torch.zeros(1), "b": torch.zeros(1)}],
    ids=["length", "dimensions", "none", "two"],
)
def test_another_prompt_embedding_is_refused(tmp_path, paths, content):
    other = write(tmp_path, {"prompt_file": content})
    with pytest.raises(UserError, match=r"prompt_file\.ckpt has to hold one tensor, a prompt embedding \(1, 4, 16\)"):
        load_released(**paths | other, **MICRO_VIDEO)
