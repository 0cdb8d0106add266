"""A run stopped after any step and resumed ends in the same parameters, bit for bit."""

import pytest
import torch
from lightning.pytorch import Callback

from quantsr.methods.efficientdm import EfficientDM
from quantsr.methods.lsq import LSQ
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.teacher import TeacherTraining
from quantsr.quant.spec import Bits
from tests.conftest import micro_teacher, micro_video_teacher

STAGES = [
    "smoothing",
    "ranges",
    "encoder.transforms",
    "encoder.bounds",
    "denoiser.transforms",
    "denoiser.bounds",
    "decoder.transforms",
    "decoder.bounds",
]


class SaveInside(Callback):
    """Saves a checkpoint in every stage: after its first step, so in its middle; and on its border, in its end."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage = module.stage

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = module.locate(module.step_index - 1)[1]
        if step == 0:
            trainer.save_checkpoint(self.folder / f"{self.stage.name}.ckpt")
        if step == self.stage.steps - 1:
            trainer.save_checkpoint(self.folder / f"{self.stage.name}-end.ckpt")


def state(method) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.model.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different, f"{len(different)} tensors differ, the first: {different[:3]}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of a whole run and what it ended in, once per method."""
    return {}, tmp_path_factory.mktemp("checkpoints")


def run_whole(whole, name, method, fit):
    ends, root = whole
    folder = root / name
    if name not in ends:
        fit(method, SaveInside(folder))
        ends[name] = state(method)
    return ends[name], folder


@pytest.mark.parametrize("stage", [*STAGES, "ranges-end", "encoder.transforms-end", "decoder.bounds-end"])
def test_passionsr(whole, build_method, fit, stage):
    options = {"steps": 2}
    end, folder = run_whole(whole, "passionsr", build_method(PassionSR, **options), fit)
    resumed = build_method(PassionSR, **options)
    torch.manual_seed(123)  # Chance has no say.
    fit(resumed, ckpt_path=folder / f"{stage}.ckpt")
    assert_same(state(resumed), end)


@pytest.mark.parametrize(
    "stage",
    ["ranges", "module unet.conv_out", "module unet.up_blocks.0.attentions.0", "module unet.conv_in-end", "extended"],
)
def test_qartsr(whole, build_method, fit, stage):
    """In the middle of a module, on the border between two, and in extended training."""
    end, folder = run_whole(whole, "qartsr", build_method(QArtSR), fit)
    resumed = build_method(QArtSR)
    torch.manual_seed(123)
    fit(resumed, ckpt_path=folder / f"{stage}.ckpt")
    assert_same(state(resumed), end)


def test_minmax(whole, build_method, fit):
    end, folder = run_whole(whole, "minmax", build_method(MinMax), fit)
    resumed = build_method(MinMax)
    fit(resumed, ckpt_path=folder / "ranges.ckpt")
    assert_same(state(resumed), end)


@pytest.mark.parametrize(
    "stage", ["complexity", "complexity-end", "refinement", "refinement-end", "alignment", "alignment-end"]
)
def test_quantvsr(whole, build_method, fit, stage):
    """With the complexities that were noted, and with the ranks that followed from them."""

    def build():
        return build_method(QuantVSR, of=micro_video_teacher())

    end, folder = run_whole(whole, "quantvsr", build(), fit)
    resumed = build()
    torch.manual_seed(123)
    fit(resumed, ckpt_path=folder / f"{stage}.ckpt")
    assert_same(state(resumed), end)
    ranks = {name: layer.low_rank.L1.shape[1] for name, layer in resumed.layers.items()}
    assert len(set(ranks.values())) > 1
    assert {swap.name: swap.recipe.rank for swap in resumed.swaps if swap.recipe is not None} == ranks
    assert ranks.items() >= resumed.allocation.real_ranks.items()


def test_quantvsr_keeps_what_it_needs(whole, build_method, fit):
    """The complexities of every clip so far until there are ranks, then the ranks."""
    method = build_method(QuantVSR, of=micro_video_teacher())
    _, folder = run_whole(whole, "quantvsr", method, fit)
    inside, after = (
        torch.load(folder / f"complexity{name}.ckpt", weights_only=True)["quantsr"] for name in ("", "-end")
    )
    assert inside["allocation"] is None and after["complexities"] == {}
    assert {len(samples) for samples in inside["complexities"].values()} == {1}
    assert set(after["allocation"]["ranks"]) == set(inside["complexities"])


def test_teacher(whole, fit):
    def build():
        return TeacherTraining(micro_teacher(), steps=4, feature=0.1, latent=0.1)

    end, folder = run_whole(whole, "teacher", build(), lambda *a, **o: fit(*a, random_crops=True, **o))
    resumed = build()
    fit(resumed, ckpt_path=folder / "teacher.ckpt", random_crops=True)
    assert_same(state(resumed), end)


@pytest.mark.parametrize("stage", ["ranges", "ranges-end", "training"])
@pytest.mark.parametrize(
    ("kind", "name", "extra"),
    [(LSQ, "steps", {}), (EfficientDM, "distillation", {"rank": 2, "update_lr": 0.1, "relative_lr": True})],
    ids=["lsq", "efficientdm"],
)
def test_learned_steps(whole, teacher, fit, kind, name, extra, stage):
    options = {"parts": ["denoiser"], "observation_steps": 2, "steps": 3} | extra
    end, folder = run_whole(whole, kind.__name__, kind(teacher, Bits(4, 4), **options), fit)
    resumed = kind(teacher, Bits(4, 4), **options)
    fit(resumed, ckpt_path=folder / f"{name if stage == 'training' else stage}.ckpt")
    assert_same(state(resumed), end)
