"""EfficientDM: an update that is merged into the codes, whose learning rate follows the weight's steps."""

import pytest
import torch
from torch.optim import AdamW

from quantsr.deploy.artefact import load_student, save_student
from quantsr.methods.efficientdm import EfficientDM
from quantsr.quant.calibrate import quantized_modules, set_mode
from quantsr.quant.folded import FoldedLayer, fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher

FAST = {"update_lr": 0.1, "weight_step_lr": 1e-3, "act_step_lr": 1e-2, "relative_lr": True}
"""Learning rates for a few steps."""


@pytest.fixture
def build(teacher):
    """A function that makes a short EfficientDM; with ``of=`` of another teacher."""

    def build(bits: Bits = Bits(4, 4), of: Teacher | None = None, **options) -> EfficientDM:  # noqa: B008
        return EfficientDM(of or teacher, bits, **{"observation_steps": 2, "steps": 2, "rank": 2} | options)

    return build


@pytest.fixture
def batch(build_data) -> dict[str, torch.Tensor]:
    data = build_data().calibration()
    return {"lq": torch.stack([data[i]["lq"] for i in range(2)])}


def layers(method) -> dict[str, QuantizedLayer]:
    return {name: m for name, m in quantized_modules(method.student) if isinstance(m, QuantizedLayer)}


class TestUpdate:
    def test_changes_codes_and_nothing_of_the_teacher(self, build, fit, teacher):
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        method = build(**FAST)
        fit(method)
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
        changed = [
            not torch.equal(layer.weight_codes(), layer.weight_quantizer.quantize(layer.weight))
            for layer in layers(method).values()
        ]
        assert sum(changed) > len(changed) / 2

    def test_costs_nothing_at_inference(self, build, fit, teacher):
        """A folded layer holds the codes of W + F1 F2, one for each weight, and no branch."""
        method = build(**FAST)
        fit(method)
        merged = {n: layer.update(layer.weight) for n, layer in layers(method).items() if layer.update is not None}
        quantizers = {name: layer.weight_quantizer for name, layer in layers(method).items()}
        student = fold(method.student)
        assert len(merged) == len(quantizers) > 0
        for name, weight in merged.items():
            folded = student.get_submodule(name)
            assert isinstance(folded, FoldedLayer)
            assert not {"L1", "L2", "F1", "F2"} & set(folded.state_dict())
            assert torch.equal(folded.codes, quantizers[name].quantize(weight).byte())
            assert folded.codes.shape == teacher.get_submodule(name).weight.shape

    def test_learning_rate_follows_the_steps_of_its_weight(self, build, fit):
        """Section 3.2, as in the code: the mean step of the layer times one factor for all layers."""
        method = build(update_lr=0.25)
        fit(method)
        stage = method.plan[-1]
        optimizer = stage.build_optimizer()
        assert isinstance(optimizer, AdamW)
        stage.measure_sizes(optimizer)
        stage.set_learning_rate(optimizer, 0)
        rates = {id(entry["params"][0]): entry["lr"] for entry in optimizer.param_groups}
        expected = {name: 0.25 * layer.weight_quantizer.scale.mean().item() for name, layer in layers(method).items()}
        assert max(expected.values()) > 2 * min(expected.values())
        for name, layer in layers(method).items():
            for factor in layer.update.parameters():
                assert rates[id(factor)] == pytest.approx(expected[name])

    def test_the_authors_learning_rates_are_the_default(self, build):
        method = build()
        stage = method.plan[-1]
        assert {group.lr for group in stage.groups if group.reference is not None} == {1 / 2500}
        assert [group.lr for group in stage.groups if group.reference is None] == [1e-6, 5e-4]
        assert not stage.relative


def test_all_steps_and_updates_train_and_nothing_else_does(build, fit):
    method = build()
    assert [stage.name for stage in method.plan] == ["ranges", "distillation"]
    names = {id(parameter): name for name, parameter in method.student.named_parameters()}
    trained = [names[id(parameter)] for parameter in method.plan[-1].parameters]
    quantizers = {n for n, module in method.student.named_modules() if isinstance(module, Quantizer)}
    updates = {f"{name}.update.{factor}" for name in layers(method) for factor in ("F1", "F2")}
    assert len(trained) == len(set(trained)) and set(trained) == {f"{name}.scale" for name in quantizers} | updates
    fit(method)
    assert {name for name, p in method.student.named_parameters() if p.requires_grad} == set(trained)


def test_the_student_starts_at_the_bounds_of_least_error(build, fit):
    method = build(steps=0)
    fit(method)
    for layer in layers(method).values():
        bounds = Quantizer(layer.recipe.weight, layer.weight_quantizer.sizes, 1, layer.weight.shape[0])
        bounds.record(layer.weight)
        bounds.absorb(bounds.pending)
        assert torch.equal(layer.quantized_weight(), bounds(layer.weight))
        assert not layer.update.F1.any()


def test_an_artefact_comes_back_bit_for_bit(build, fit, batch, tmp_path):
    method = build(**FAST)
    fit(method)
    with torch.no_grad():
        folded = fold(method.student).eval()
        save_student(folded, method.swaps, tmp_path / "artefact", 1, {})
        assert torch.equal(load_student(tmp_path / "artefact").restore(batch["lq"]), folded.restore(batch["lq"]))


def test_clips_train_every_sampling_step(build, fit, video_teacher):
    method = build(of=video_teacher, parts=["denoiser"], steps=3)
    seen = []
    noisy = method.noisy
    method.noisy = lambda batch: seen.append(noisy(batch)) or seen[-1]
    fit(method)
    assert {int(point.step[0]) for point in seen} == {0, 1, 2}
    assert any(layer.update.F1.any() for layer in layers(method).values())


@pytest.mark.slow
def test_training_brings_the_student_nearer_to_the_teacher_at_2_bits(build, fit, batch):
    errors = []
    for steps in (0, 20):
        method = build(bits=Bits(2, 2), steps=steps, **FAST)
        fit(method)
        set_mode(method.student, "quantized")
        with torch.no_grad():
            errors.append(method.distillation_loss(batch).item())
    assert errors[1] < 0.9 * errors[0]
