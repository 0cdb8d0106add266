"""QuaRot: a rotation that full precision does not notice and outliers do not survive, GPTQ block by block."""

import pytest
import torch

from quantsr.deploy.artefact import load_student, save_student
from quantsr.methods.quarot import QuaRot
from quantsr.quant.calibrate import mode, quantized_modules, settle, uncalibrated
from quantsr.quant.folded import fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.rounding import StoredRounding
from quantsr.quant.spec import AffineSpec, Bits

TEACHERS = pytest.mark.parametrize("of", ["teacher", "video_teacher"])
W4A4 = Bits(4, 4)


def build(teacher, bits: Bits = W4A4, **options) -> QuaRot:
    return QuaRot(teacher, bits, **{"observation_steps": 2, "parts": ["denoiser"]} | options)


def layers(method) -> dict[str, QuantizedLayer]:
    return {name: m for name, m in quantized_modules(method.student) if isinstance(m, QuantizedLayer)}


class TestLayer:
    @pytest.fixture
    def layer(self, teacher) -> QuantizedLayer:
        """A linear layer of the method's recipe, its weight calibrated."""
        recipe = build(teacher).layer_recipe(W4A4, "denoiser")
        layer = QuantizedLayer(torch.nn.Linear(64, 32).requires_grad_(False), recipe)
        with mode(layer, "observe_ranges"), torch.no_grad():
            layer(torch.randn(2, 64))
        settle(layer)
        return layer

    def test_the_rotation_leaves_the_product_as_it_was(self, layer):
        layer, x = layer.double(), torch.randn(50, 64, dtype=torch.float64)
        y = layer.operation(layer.transformed_input(x), layer.transformed_weight(), layer.bias)
        torch.testing.assert_close(y, layer.operation(x, layer.weight, layer.bias), atol=1e-10, rtol=1e-10)

    def test_the_rotation_flattens_an_outlier_channel(self, layer):
        x = torch.randn(50, 64)
        x[:, 5] *= 100

        def peak(t: torch.Tensor) -> float:
            return (t.abs().amax(1) / t.square().mean(1).sqrt()).mean().item()

        assert peak(x) > 6 and peak(layer.transformed_input(x)) < 2

    def test_every_token_is_clipped_at_a_share_of_its_own_extreme(self, layer):
        x = torch.randn(20, 64) * torch.logspace(-3, 3, 20)[:, None]
        with torch.no_grad():
            rotated, quantized = layer.transformed_input(x), layer.quantized_input(x)
        largest = quantized.abs().amax(1) / rotated.abs().amax(1)
        # Symmetric: the lowest code, one below the negative of the highest, is 8 / 7 of the bound.
        assert (largest < 0.9 * 8 / 7 + 1e-4).all()
        torch.testing.assert_close(layer.input_quantizer.qparams(rotated)[0][:, 0], 0.9 * rotated.abs().amax(1) / 7)

    @pytest.mark.parametrize("ratio", [0.0, 1.1, -0.5])
    def test_an_impossible_ratio_is_refused(self, ratio):
        with pytest.raises(ValueError, match="ratio is a share"):
            AffineSpec(4, granularity="token", range="dynamic", ratio=ratio)

    def test_a_ratio_of_a_static_range_is_refused(self):
        with pytest.raises(ValueError, match="ratio is a share of a dynamic range"):
            AffineSpec(4, ratio=0.9)


class TestRun:
    @TEACHERS
    def test_every_layer_has_codes_of_gptq_and_the_artefact_comes_back_bit_for_bit(self, request, fit, tmp_path, of):
        finished = build(request.getfixturevalue(of), attention=True)
        fit(finished)
        assert uncalibrated(quantized_modules(finished.student)) == []
        found = layers(finished).values()
        assert all(isinstance(layer.rounding, StoredRounding) and layer.rounding.known for layer in found)
        moved = [not torch.equal(m.weight_codes(), m.weight_quantizer.quantize(m.transformed_weight())) for m in found]
        assert sum(moved) > len(moved) / 2
        assert finished.sums == {}
        student = fold(finished.student)
        save_student(student, finished.swaps, tmp_path / "artefact", 1, {})
        lq = torch.rand(1, *([3] if student.frames == 3 else []), 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(load_student(tmp_path / "artefact")(lq), student(lq))

    def test_blocks_take_turns_in_execution_order(self, teacher):
        method = build(teacher)
        assert [stage.name for stage in method.plan[1:]] == [f"gptq {name}" for name in teacher.blocks()["denoiser"]]
        assert build(teacher, gptq=False).steps == 1

    def test_gptq_is_nearer_to_the_teacher_than_rounding_to_the_nearest(self, teacher, fit, lq):
        def error(gptq: bool) -> float:
            method = build(teacher, Bits(3, 8), gptq=gptq)
            fit(method)
            with torch.no_grad():
                return (method.student.restore(lq) - teacher.restore(lq)).square().mean().item()

        assert error(gptq=True) < error(gptq=False)

    @pytest.mark.parametrize("stage", ["ranges", "gptq unet.conv_in", "gptq unet.up_blocks.0.attentions.0-end"])
    def test_resuming_inside_a_stage_ends_in_the_same_student(self, teacher, resume, stage):
        resume(lambda: build(teacher), stage)
