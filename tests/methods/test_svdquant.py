"""SVDQuant: scale and branch of every layer are those with the least error of its own output."""

import pytest
import torch

from quantsr.deploy.artefact import load_student, save_student
from quantsr.errors import UserError
from quantsr.methods.svdquant import SVDQuant
from quantsr.quant.calibrate import mode, quantized_modules, uncalibrated
from quantsr.quant.folded import fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.smoothing_search import output_errors, smoothing_candidates
from quantsr.quant.spec import Bits
from tests.methods.resuming import state

SHORT = {"observation_steps": 2, "parts": ["denoiser"], "rank": 2, "search_steps": 2, "grid": 3, "iterations": 3}


def build(teacher, bits: Bits = Bits(4, 4), **options) -> SVDQuant:  # noqa: B008
    return SVDQuant(teacher, bits, **SHORT | options)


def layers(method) -> dict[str, QuantizedLayer]:
    return {name: m for name, m in quantized_modules(method.student) if isinstance(m, QuantizedLayer)}


@pytest.mark.parametrize(
    ("of", "options"),
    [("teacher", {"group_size": 8, "gptq": True}), ("video_teacher", {})],
    ids=["groups_and_gptq", "clips"],
)
def test_a_run_calibrates_every_layer_and_its_artefact_comes_back_bit_for_bit(request, fit, tmp_path, of, options):
    method = build(request.getfixturevalue(of), attention=True, **options)
    fit(method)
    assert uncalibrated(quantized_modules(method.student)) == [] and method.sums == {}
    if options:
        assert all(layer.rounding.known for layer in layers(method).values())
        assert any(len(layer.input_quantizer.sizes) > 1 for layer in layers(method).values())
    student = fold(method.student)
    save_student(student, method.swaps, tmp_path / "artefact", 1, {})
    lq = torch.rand(1, *([3] if of == "video_teacher" else []), 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path / "artefact")(lq), student(lq))


def test_what_is_left_for_low_bits_lacks_the_largest_singular_values(teacher, fit):
    """Of the plain SVD the residual's largest is the (r + 1)-th of the smoothed weight."""
    method = build(teacher, iterations=1)
    fit(method)
    for name, layer in layers(method).items():
        smoothed = torch.linalg.svdvals(layer.smoothing.weight(layer.weight).flatten(1))
        left = torch.linalg.svdvals(layer.transformed_weight().flatten(1))
        expected = smoothed[2] if len(smoothed) > 2 else torch.tensor(0.0)
        torch.testing.assert_close(left[0], expected, atol=1e-3, rtol=1e-3, msg=name)


def test_every_layer_has_the_candidate_with_the_least_error_over_all_batches(teacher, fit):
    """Against errors found apart, with all inputs at hand; and it is never worse than no smoothing."""
    method, inputs, batches = build(teacher, iterations=1), {}, []
    search = next(stage for stage in method.plan if stage.name == "smoothing search")
    loss, start = search.loss, {}

    def noted(batch):
        if not batches:
            start.update(state(method))
        batches.append(batch["lq"].clone())
        return loss(batch)

    search.loss = noted
    fit(method)
    end = state(method)
    method.student.load_state_dict(start)
    found = layers(method)
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].clone()))
        for name, layer in found.items()
    ]
    with torch.no_grad(), mode(method.student, "full_precision"):
        for lq in batches:
            method.student.predict(lq)
    for handle in handles:
        handle.remove()
    assert len(batches) == 2
    for name, layer in found.items():
        candidates = smoothing_candidates(layer, 3)
        errors = sum(output_errors(layer, candidates, x) for x in inputs[name])
        assert torch.equal(end[f"{name}.smoothing.scale"], candidates[int(errors.argmin())].scale), name
        assert errors.min() <= errors[0]


@pytest.mark.slow
def test_the_search_and_the_branch_bring_the_student_nearer_to_the_teacher(teacher, fit, lq):
    def error(**options) -> float:
        method = build(teacher, **options)
        fit(method)
        with torch.no_grad():
            return (method.student.restore(lq) - teacher.restore(lq)).square().mean().item()

    plain, searched, wide = error(grid=1, iterations=1), error(grid=10), error(grid=10, rank=8)
    assert wide < searched < plain


@pytest.mark.parametrize(
    "stage", ["smoothing", "smoothing search", "smoothing search-end", "branch search", "gptq unet.conv_in"]
)
def test_resuming_inside_a_stage_ends_in_the_same_student(teacher, resume, stage):
    resume(lambda: build(teacher, gptq=True), stage)


@pytest.mark.parametrize("name", ["rank", "search_steps", "grid", "iterations"])
def test_impossible_options_are_refused(teacher, name):
    with pytest.raises(UserError, match=rf"method\.{name} is at least 1, not 0"):
        build(teacher, **{name: 0})
