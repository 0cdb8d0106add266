"""A run stopped after any step and resumed ends in the same parameters, bit for bit."""

import pytest
import torch

from quantsr.methods.efficientdm import EfficientDM
from quantsr.methods.lsq import LSQ
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.teacher import TeacherTraining
from quantsr.quant.spec import Bits
from tests.conftest import micro_teacher, micro_video_teacher


@pytest.mark.parametrize(
    "stage",
    [
        "smoothing",
        "ranges-end",
        "encoder.bounds",
        "denoiser.transforms-end",
        "decoder.transforms",
        "decoder.bounds-end",
    ],
)
def test_passionsr(resume, build_method, stage):
    """Inside a stage of every kind and on the border after one."""
    resume(lambda: build_method(PassionSR, steps=2), stage)


@pytest.mark.parametrize(
    "stage",
    ["module unet.conv_out", "module unet.up_blocks.0.attentions.0", "module unet.conv_in-end", "extended"],
)
def test_qartsr(resume, build_method, stage):
    """In the middle of a module, on the border between two, and in extended training."""
    resume(lambda: build_method(QArtSR), stage)


@pytest.mark.parametrize("stage", ["ranges"])
def test_minmax(resume, build_method, stage):
    resume(lambda: build_method(MinMax), stage)


@pytest.mark.parametrize(
    "stage", ["complexity", "complexity-end", "refinement", "refinement-end", "alignment", "alignment-end"]
)
def test_quantvsr(resume, build_method, stage):
    """With the complexities that were noted, and with the ranks that followed from them."""
    resumed, _ = resume(lambda: build_method(QuantVSR, of=micro_video_teacher()), stage)
    ranks = {name: layer.low_rank.L1.shape[1] for name, layer in resumed.layers.items()}
    assert len(set(ranks.values())) > 1
    assert {swap.name: swap.recipe.rank for swap in resumed.swaps if swap.recipe is not None} == ranks
    assert ranks.items() >= resumed.allocation.real_ranks.items()


def test_quantvsr_keeps_what_it_needs(run_whole, build_method):
    """The complexities of every clip so far until there are ranks, then the ranks."""
    _, folder = run_whole(build_method(QuantVSR, of=micro_video_teacher()))
    inside, after = (
        torch.load(folder / f"complexity{name}.ckpt", weights_only=True)["quantsr"] for name in ("", "-end")
    )
    assert inside["allocation"] is None and after["complexities"] == {}
    assert {len(samples) for samples in inside["complexities"].values()} == {1}
    assert set(after["allocation"]["ranks"]) == set(inside["complexities"])


@pytest.mark.parametrize("stage", ["teacher"])
def test_teacher(resume, stage):
    resume(lambda: TeacherTraining(micro_teacher(), steps=4, feature=0.1, latent=0.1), stage, random_crops=True)


@pytest.mark.parametrize("stage", ["ranges-end", "steps"])
def test_lsq(resume, teacher, stage):
    resume(lambda: LSQ(teacher, Bits(4, 4), parts=["denoiser"], observation_steps=2, steps=3), stage)


@pytest.mark.parametrize("stage", ["ranges-end", "distillation"])
def test_efficientdm(resume, teacher, stage):
    options = {"observation_steps": 2, "steps": 3, "rank": 2, "update_lr": 0.1, "relative_lr": True}
    resume(lambda: EfficientDM(teacher, Bits(4, 4), parts=["denoiser"], **options), stage)
