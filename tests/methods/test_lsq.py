"""LSQ: every quantizer has a learned step, the steps alone train, and the student comes back from its artefact."""

import pytest
import torch

from quantsr.deploy.artefact import load_student, save_student
from quantsr.errors import UserError
from quantsr.methods.lsq import LSQ
from quantsr.quant.calibrate import quantized_modules, set_mode
from quantsr.quant.folded import fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher


@pytest.fixture
def build(teacher):
    """A function that makes a short LSQ; with ``of=`` of another teacher."""

    def build(bits: Bits = Bits(4, 4), of: Teacher | None = None, **options) -> LSQ:  # noqa: B008
        return LSQ(of or teacher, bits, **{"observation_steps": 2, "steps": 2} | options)

    return build


@pytest.fixture
def batch(build_data) -> dict[str, torch.Tensor]:
    data = build_data().calibration()
    return {"lq": torch.stack([data[i]["lq"] for i in range(2)])}


def quantizers(method) -> dict[str, Quantizer]:
    return {name: module for name, module in method.student.named_modules() if isinstance(module, Quantizer)}


def test_every_quantizer_has_a_learned_step(build):
    """Weights with signed codes and a step per output channel; activations and attention products with one step."""
    method = build()
    assert any(name.endswith("probability") for name in quantizers(method))
    for name, quantizer in quantizers(method).items():
        assert [n for n, _ in quantizer.named_parameters()] == ["scale"]
        of_weight = name.endswith("weight_quantizer")
        assert quantizer.spec.symmetric == of_weight
        assert quantizer.scale.numel() == (quantizer.rows if of_weight else 1)


def test_steps_of_layers_start_at_twice_the_mean_magnitude(build, fit):
    """Section 2.1 of the paper."""
    method = build(steps=0)
    fit(method)
    for _, layer in quantized_modules(method.student):
        if isinstance(layer, QuantizedLayer):
            expected = 2 * layer.weight.abs().flatten(1).mean(1) / layer.recipe.weight.qmax**0.5
            torch.testing.assert_close(layer.weight_quantizer.scale[:, 0], expected)


def test_the_steps_of_all_parts_train_together_and_nothing_else_does(build, fit):
    method = build()
    assert [stage.name for stage in method.plan] == ["ranges", "steps"]
    names = {id(parameter): name for name, parameter in method.student.named_parameters()}
    trained = {names[id(parameter)] for parameter in method.plan[-1].parameters}
    assert trained == {f"{name}.scale" for name in quantizers(method)}
    assert {name.partition(".")[0] for name in trained} == {"vae", "unet"}
    fit(method)
    assert {name for name, p in method.student.named_parameters() if p.requires_grad} == trained


def test_the_weights_stay_the_teachers(build, fit, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    method = build()
    fit(method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    own = dict(teacher.named_parameters())
    layers = [(n, m) for n, m in quantized_modules(method.student) if isinstance(m, QuantizedLayer)]
    assert layers and all(layer.weight is own[f"{name}.weight"] for name, layer in layers)


def test_attention_products_can_be_left_in_full_precision(build):
    assert not any("probability" in name for name in quantizers(build(attention=False)))


def test_an_unknown_part_is_refused(build):
    with pytest.raises(UserError, match=r"method\.parts takes one or more"):
        build(parts=["unet"])


def test_an_artefact_comes_back_bit_for_bit(build, fit, batch, tmp_path):
    method = build()
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
    assert all(quantizer.calibrated for quantizer in quantizers(method).values())


@pytest.mark.slow
def test_training_brings_the_student_nearer_to_the_teacher_at_2_bits(build, fit, batch):
    errors = []
    for steps in (0, 40):
        method = build(bits=Bits(2, 2), steps=steps, lr=1e-2)
        fit(method)
        set_mode(method.student, "quantized")
        with torch.no_grad():
            errors.append(method.distillation_loss(batch).item())
    assert errors[1] < 0.9 * errors[0]
