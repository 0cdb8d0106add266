"""Roundings other than to the nearest."""

import pytest
import torch
from torch import nn

from quantsr.quant.folded import FoldedLayer
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.rounding import AdaptiveRounding, StoredRounding, annealed_beta, rounding_of
from quantsr.quant.spec import AffineSpec

SPEC = AffineSpec(3, granularity="channel", momentum=None)


@pytest.fixture
def weight():
    return torch.randn(6, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def quantizer(weight):
    q = Quantizer(SPEC, (10,), 1, 6)
    q.record(weight)
    q.absorb(q.pending)
    return q


@pytest.fixture
def adaptive(weight, quantizer):
    rounding = AdaptiveRounding(weight.shape)
    rounding.reset(weight, quantizer)
    return rounding


class TestAdaptive:
    def test_starts_at_the_weight_itself(self, adaptive, weight, quantizer):
        scale, zero_point = quantizer.qparams(weight)
        codes = weight / scale + zero_point
        inside = (codes >= SPEC.qmin) & (codes <= SPEC.qmax)
        error = (adaptive(weight, quantizer) - weight) / scale
        assert inside.float().mean() > 0.8 and error[inside].abs().max() < 1e-3

    def test_hardened_at_the_start_it_rounds_to_the_nearest(self, adaptive, weight, quantizer):
        adaptive.harden()
        assert torch.equal(adaptive.codes(weight, quantizer), quantizer.quantize(weight))

    def test_codes_are_whole_before_it_is_hardened_too(self, adaptive, weight, quantizer):
        """Of a checkpoint from within training: its values lie between codes, its codes are those it leans to."""
        nn.init.normal_(adaptive.logits)
        soft, codes = adaptive(weight, quantizer), adaptive.codes(weight, quantizer)
        adaptive.harden()
        assert torch.equal(codes, adaptive.codes(weight, quantizer))
        assert not torch.equal(soft, adaptive(weight, quantizer))

    def test_codes_stay_within_one_step_of_the_nearest(self, adaptive, weight, quantizer):
        nn.init.normal_(adaptive.logits, std=20)
        adaptive.harden()
        codes = adaptive.codes(weight, quantizer)
        assert torch.equal(codes, codes.round())
        distance = (codes - quantizer.quantize(weight)).abs()
        assert distance.max() == 1

    def test_is_calibrated_once_it_was_reset(self, adaptive, weight):
        assert adaptive.calibrated and not AdaptiveRounding(weight.shape).calibrated

    def test_indecision_is_the_number_of_weights_at_a_half_and_none_when_hard(self, adaptive):
        nn.init.zeros_(adaptive.logits)
        assert adaptive.indecision(2.0).item() == pytest.approx(60)
        adaptive.harden()
        assert adaptive.indecision(2.0).item() == 0

    def test_a_lower_beta_pushes_the_undecided_more(self, adaptive):
        nn.init.constant_(adaptive.logits, 0.5)
        slopes = []
        for beta in (20.0, 2.0):
            adaptive.logits.grad = None
            adaptive.indecision(beta).backward()
            slopes.append(adaptive.logits.grad.abs().sum())
        assert slopes[1] > 100 * slopes[0]

    def test_the_share_that_has_decided(self, adaptive):
        nn.init.zeros_(adaptive.logits)
        assert adaptive.decided() == 0
        adaptive.logits.data[:3] = torch.tensor([-9.0, 9.0]).repeat(5)
        assert adaptive.decided() == 0.5
        adaptive.harden()
        assert adaptive.decided() == 1


class TestAnnealing:
    def test_beta_falls_on_a_straight_line_after_the_warm_up(self):
        assert [annealed_beta(progress) for progress in (0.0, 0.19)] == [None, None]
        assert [annealed_beta(progress) for progress in (0.2, 0.6, 1.0)] == pytest.approx([20, 11, 2])


class TestStored:
    def test_rounds_to_the_nearest_until_codes_are_stored(self, weight, quantizer):
        assert torch.equal(StoredRounding(weight.shape)(weight, quantizer), quantizer(weight))

    def test_then_gives_these_whatever_the_weight_is(self, weight, quantizer):
        rounding, codes = StoredRounding(weight.shape), torch.randint(0, 8, weight.shape).float()
        rounding.store(codes)
        scale, zero_point = quantizer.qparams(weight)
        assert torch.equal(rounding(weight * 0, quantizer), (codes - zero_point) * scale)


def test_to_the_nearest_needs_no_module():
    assert rounding_of("nearest", torch.Size((2, 2))) is None


class TestLayer:
    @pytest.fixture(params=["Linear", "Conv2d"])
    def layer(self, request):
        torch.manual_seed(0)
        module = nn.Linear(10, 6) if request.param == "Linear" else nn.Conv2d(10, 6, 3, padding=1)
        layer = QuantizedLayer(module, LayerRecipe(SPEC, AffineSpec(8, range="dynamic"), rounding="adaptive"))
        layer.weight_quantizer.record(layer.weight)
        layer.weight_quantizer.absorb(layer.weight_quantizer.pending)
        layer.rounding.reset(layer.weight, layer.weight_quantizer)
        return layer

    @pytest.fixture
    def x(self, layer):
        shape = (4, 10) if layer.operation.kind == "Linear" else (2, 10, 5, 5)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def test_only_the_rounding_takes_the_gradient_that_autograd_gives_it(self, layer, x):
        layer.requires_grad_(False)
        layer.rounding.logits.requires_grad_(True)
        layer(x).square().sum().backward()
        found, layer.rounding.logits.grad = layer.rounding.logits.grad, None
        weight = layer.rounding(layer.weight, layer.weight_quantizer)
        layer.operation(layer.quantized_input(x), weight, layer.bias).square().sum().backward()
        torch.testing.assert_close(found, layer.rounding.logits.grad)
        assert layer.weight.grad is None and found.abs().sum() > 0

    def test_folds_to_the_codes_it_ran_with(self, layer, x):
        nn.init.normal_(layer.rounding.logits, std=5)
        layer.rounding.harden()
        layer.requires_grad_(False)
        folded = FoldedLayer.of(layer)
        assert torch.equal(folded.codes.float(), layer.weight_codes())
        torch.testing.assert_close(folded(x), layer(x))

    def test_a_change_of_the_rounding_reaches_the_kept_weight(self, layer, x):
        layer.requires_grad_(False)
        before = layer(x)
        layer.rounding.harden()
        assert not torch.equal(layer(x), before)


class TestRecipe:
    def test_a_cut_makes_two_parts(self):
        assert LayerRecipe(SPEC, SPEC_ACT, cut=3).parts(10) == (3, 7)

    @pytest.mark.parametrize("channels", [3, 2])
    def test_a_cut_outside_the_channels_is_refused(self, channels):
        with pytest.raises(ValueError, match="cannot be cut at 3"):
            LayerRecipe(SPEC, SPEC_ACT, cut=3).parts(channels)

    def test_two_ways_to_cut_are_refused(self):
        with pytest.raises(ValueError, match="give one of them"):
            LayerRecipe(SPEC, SPEC_ACT, cut=3, channel_split=True)

    def test_an_unknown_rounding_is_refused(self):
        with pytest.raises(ValueError, match="rounding must be one of"):
            LayerRecipe(SPEC, SPEC_ACT, rounding="up")

    def test_smoothing_takes_the_weight_with_an_exponent_of_its_own(self):
        recipe = LayerRecipe(SPEC, SPEC_ACT, smoothing=0.25, smoothing_weight=0.75)
        layer = QuantizedLayer(nn.Linear(10, 6), recipe)
        x = torch.randn(20, 10)
        layer.mode = "observe_smoothing"
        layer(x)
        layer.smoothing.absorb(layer.smoothing.pending)
        wanted = x.abs().amax(0) ** 0.25 / layer.weight.abs().amax(0) ** 0.75
        torch.testing.assert_close(layer.smoothing.scale.data, wanted)


SPEC_ACT = AffineSpec(8, range="dynamic")
