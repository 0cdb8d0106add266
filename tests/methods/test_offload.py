"""Per-part offload changes where weights are, and nothing that a run computes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.multiprocessing.reductions import StorageWeakRef

import quantsr.methods.base
from quantsr.errors import UserError
from quantsr.homes import DiskFile, HostMemory
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.qdiffusion import QDiffusion
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.teacher import TeacherTraining
from quantsr.offload import Offload, offloaded
from quantsr.quant.calibrate import set_mode
from quantsr.quant.folded import FoldedLayer, fold

CPU = torch.device("cpu")
PARTS = {"encoder", "denoiser", "decoder"}


@pytest.fixture
def alive(monkeypatch) -> Callable[[], list[int]]:
    """A function that gives the sizes in bytes of the fetched parts whose memory is in use."""
    copies: list[tuple[StorageWeakRef, int]] = []
    copy = DiskFile._copy

    def noted(home: DiskFile, device: torch.device) -> torch.Tensor:
        flat = copy(home, device)
        copies.append((StorageWeakRef(flat.untyped_storage()), home.nbytes))
        return flat

    monkeypatch.setattr(DiskFile, "_copy", noted)
    return lambda: [size for storage, size in copies if not storage.expired()]


class Elsewhere(HostMemory):
    """As the memory of a host is to a GPU: what waits there cannot be computed with. It is not a number here."""

    def _keep(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.full_like(super()._keep(tensors), 255)  # All bits set.


# What a run ends in.

State = dict[str, torch.Tensor]
OPTIONS = {
    MinMax: {},
    PassionSR: {"steps": 2},
    QArtSR: {"module_steps": 1, "extended_steps": 1},
    QDiffusion: {},
    QuantVSR: {},
}
SAVED = {PassionSR: "denoiser.bounds", QArtSR: "extended"}
"""A stage of each that a checkpoint is from."""


class SaveInside(Callback):
    """Saves a checkpoint when a stage has begun."""

    def __init__(self, file: Path):
        self.file = file

    def on_train_batch_start(self, trainer, module, *args):
        if module.stage.name == SAVED.get(type(module)) and module.locate(module.step_index)[1] == 0:
            trainer.save_checkpoint(self.file)


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory) -> tuple[dict[type, State], Path]:
    """What runs without offload ended in, once a method, and where their checkpoints are."""
    return {}, tmp_path_factory.mktemp("plain")


@pytest.fixture
def plain(plain_runs, build_method, fit) -> Callable[[type], State]:
    """A function that gives the state that a method's run without offload ends in."""
    ends, folder = plain_runs

    def end(kind: type) -> State:
        if kind not in ends:
            method = build_method(kind, **OPTIONS[kind])
            fit(method, SaveInside(folder / f"{kind.__name__}.ckpt"))
            ends[kind] = method.state_dict()
        return ends[kind]

    return end


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not different, f"{len(different)} tensors differ, the first: {different[:3]}"


@pytest.mark.parametrize(
    ("kind", "home"),
    [
        (PassionSR, DiskFile),
        (MinMax, Elsewhere),
        (PassionSR, Elsewhere),
        (QArtSR, Elsewhere),
        (QuantVSR, Elsewhere),
        pytest.param(QDiffusion, Elsewhere, marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_in_the_same_student_and_teacher(kind, home, plain, build_method, fit, monkeypatch):
    expected = plain(kind)
    monkeypatch.setattr(quantsr.methods.base, "Offload", partial(Offload, home=home))
    method = build_method(kind, **OPTIONS[kind])
    method.offload_parts()
    fit(method)
    assert_same(method.state_dict(), expected)  # The student's, with the teacher's weights.


@pytest.mark.parametrize("kind", [PassionSR, QArtSR])
def test_a_checkpoint_of_a_plain_run_resumes_with_offload(
    kind,
    plain,
    plain_runs,
    build_method,
    fit,
    tmp_path,
):
    """And it is the checkpoint that a run with offload writes."""
    expected, file = plain(kind), plain_runs[1] / f"{kind.__name__}.ckpt"
    method = build_method(kind, **OPTIONS[kind])
    method.offload_parts()
    fit(method, SaveInside(tmp_path / "own.ckpt"), ckpt_path=file)
    assert_same(method.state_dict(), expected)
    own, other = (torch.load(path, weights_only=True)["state_dict"] for path in (tmp_path / "own.ckpt", file))
    assert_same(own, other)


def test_it_goes_with_the_other_options_of_memory(build_method, fit):
    def trained(offload: bool) -> State:
        method = build_method(parts=["decoder"], observation_steps=1, steps=1)
        method.checkpoint_gradients()
        method.split_batches(1)
        if offload:
            method.offload_parts()
        fit(method)
        return method.state_dict()

    assert_same(trained(True), trained(False))


def test_a_folded_student_and_its_teacher_give_the_same_images(build_method, fit, lq, alive):
    method = build_method(steps=1)
    fit(method)
    method.requires_grad_(False)
    models = list({"teacher": method.teacher, "student": fold(method.student)}.values())
    with torch.inference_mode():
        expected = [model(lq) for model in models]
        with offloaded(models, CPU):
            for _ in range(2):
                assert all(torch.equal(model(lq), image) for model, image in zip(models, expected, strict=True))
                assert len(alive()) == 1  # The decoder ran last.
                kept = [name for name, m in models[1].named_modules() if getattr(m, "dequantized", None) is not None]
                assert kept and all(name.startswith(("vae.decoder", "vae.post_quant_conv")) for name in kept)
        assert alive() == []
        assert all(torch.equal(model(lq), image) for model, image in zip(models, expected, strict=True))
    assert any(isinstance(module, FoldedLayer) for module in models[1].modules())


# Where weights are meanwhile.


def test_parts_come_and_go_one_at_a_time(teacher, lq, alive):
    offload = Offload([teacher], teacher.parameters(), CPU)
    sizes = offload.nbytes
    assert sizes.keys() == PARTS and alive() == [] and offload.present == set()
    with torch.no_grad():
        latent = teacher.encode(lq)
        assert offload.present == {"encoder"} and alive() == [sizes["encoder"]]
        epsilon = teacher.denoise(latent)
        assert offload.present == {"denoiser"} and alive() == [sizes["denoiser"]]
        teacher.denoise(latent)  # The last one is still there.
        teacher.decode(teacher.clean(latent, epsilon), lq)
        assert offload.present == {"decoder"} and alive() == [sizes["decoder"]]
    waiting = {t.untyped_storage().data_ptr() for t in offload._homes["denoiser"].waiting}
    large = [p for p in teacher.unet.parameters() if p.nbytes >= 1024]
    assert large and {p.untyped_storage().data_ptr() for p in large} == waiting
    offload.close()
    assert alive() == [] and waiting.isdisjoint(p.untyped_storage().data_ptr() for p in large)


def test_a_part_stays_until_the_backward_pass_is_over(teacher, lq, alive):
    """The image's gradient to the latent goes through the decoder and the denoiser, not through the encoder."""
    offload = Offload([teacher], teacher.parameters(), CPU)
    sizes = offload.nbytes
    latent = teacher.encode(lq).requires_grad_()
    image = teacher.decode(teacher.clean(latent, teacher.denoise(latent)), lq)
    assert offload.held == {"denoiser", "decoder"} and sorted(alive()) == sorted([sizes["denoiser"], sizes["decoder"]])
    with torch.no_grad():
        teacher.encode(lq)
    assert offload.present == PARTS
    image.sum().backward()
    offload.backward_is_over()
    offload.close()
    found, expected = latent.grad, latent.detach().requires_grad_()
    teacher.decode(teacher.clean(expected, teacher.denoise(expected)), lq).sum().backward()
    assert torch.equal(found, expected.grad)


def test_a_run_has_as_few_parts_in_memory_as_its_gradients_allow(build_method, fit, alive):
    """PassionSR trains every part against its own output."""
    found: dict[str, set[int]] = {}

    class Look(Callback):
        def on_train_start(self, trainer, module):
            for layer in (module.student.vae.encoder, module.student.unet, module.student.vae.decoder):
                layer.register_forward_hook(lambda *_: found.setdefault(module.stage.name, set()).add(len(alive())))

    method = build_method(observation_steps=1, steps=1)
    method.offload_parts()
    fit(method, Look())
    assert found == {stage.name: {1} for stage in method.plan}
    assert alive() == []  # Everything is back where it was.


def test_the_quantized_weights_of_a_part_go_with_it(build_method, fit, lq):
    method = build_method(steps=1)
    fit(method)
    method.requires_grad_(False)
    student, offload = method.student, Offload([method.teacher, method.student], method.teacher.parameters(), CPU)
    set_mode(student, "quantized")

    def kept() -> set[str]:
        return {name.partition(".")[0] for name, m in student.named_modules() if getattr(m, "_cache", None)}

    with torch.no_grad():
        latent = student.encode(lq)
        assert kept() == {"vae"}
        student.denoise(latent)
        assert kept() == {"unet"}
    offload.close()


def test_a_stage_may_conclude_something_from_any_weight(teacher):
    offload = Offload([teacher], teacher.parameters(), CPU, Elsewhere)
    assert teacher.unet.conv_in.weight.isnan().all() and teacher.vae.decoder.conv_in.weight.isnan().all()
    with offload.everything():
        assert offload.present == PARTS
        assert not any(weight.isnan().any() for weight in teacher.parameters())
    with torch.no_grad():
        teacher.denoise(torch.zeros(1, 4, 16, 16))
        teacher.encode(torch.zeros(1, 3, 8, 8))
    assert offload.present == {"encoder"}


def test_training_the_weights_refuses(teacher):
    with pytest.raises(UserError, match=r"trains the weights.*leave offload out"):
        TeacherTraining(teacher).offload_parts()
