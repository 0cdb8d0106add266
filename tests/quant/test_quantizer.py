"""Ranges: where bounds come from, which elements share them, and how they learn."""

import pytest
import torch

from quantsr.quant.affine import dequantize, fake_quantize, qparams
from quantsr.quant.calibrate import settle
from quantsr.quant.parts import groups, halves
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.spec import AffineSpec

RANGES = pytest.mark.parametrize("range_kind", ["minmax", "learned", "step", "dynamic"])
STATIC = pytest.mark.parametrize("range_kind", ["minmax", "learned", "step"])


def fitted(spec: AffineSpec, x, sizes=(1,), axis=1, rows=1, **options) -> Quantizer:
    """A quantizer that has seen one batch."""
    quantizer = Quantizer(spec, sizes, axis, rows, **options)
    quantizer.record(x)
    settle(quantizer)
    return quantizer


@STATIC
def test_the_range_is_unknown_before_calibration(range_kind):
    quantizer = Quantizer(AffineSpec(4, range=range_kind))
    assert not quantizer.calibrated
    quantizer.record(torch.randn(2, 3))
    assert not quantizer.calibrated
    settle(quantizer)
    assert quantizer.calibrated
    assert quantizer.pending is None


def test_a_dynamic_range_needs_no_calibration():
    assert Quantizer(AffineSpec(4, range="dynamic")).calibrated


@pytest.mark.parametrize("range_kind", ["minmax", "learned"])
def test_the_first_batch_sets_the_bounds_to_its_extremes(range_kind):
    x = torch.randn(4, 6)
    quantizer = fitted(AffineSpec(4, range=range_kind), x)
    assert (quantizer.lower.item(), quantizer.upper.item()) == (x.min().item(), x.max().item())


@pytest.mark.parametrize("momentum", [0.95, 0.5])
def test_later_batches_move_a_running_average(momentum):
    quantizer = Quantizer(AffineSpec(4, momentum=momentum))
    expected = None
    for lower, upper in ((-1.0, 1.0), (-3.0, 0.5), (-0.1, 7.0)):
        quantizer.record(torch.tensor([[lower, 0.0, upper]]))
        settle(quantizer)
        new = torch.tensor([lower, upper])
        expected = new if expected is None else momentum * expected + (1 - momentum) * new
        torch.testing.assert_close(torch.cat([quantizer.lower, quantizer.upper]), expected)


def test_the_published_momentum_is_the_default():
    assert AffineSpec(4).momentum == 0.95


def test_without_momentum_a_range_holds_the_extremes_of_all_batches():
    quantizer = Quantizer(AffineSpec(4, momentum=None))
    for low, high in ((-1.0, 2.0), (-3.0, 1.0), (0.0, 1.5)):
        quantizer.record(torch.tensor([low, high]))
        settle(quantizer)
    assert (quantizer.lower.item(), quantizer.upper.item()) == (-3.0, 2.0)


def test_bounds_can_be_set_and_forget_what_was_there():
    quantizer = fitted(AffineSpec(4), torch.randn(8, 8) * 100)
    quantizer.set_bounds(torch.tensor([-1.0]), torch.tensor([2.0]))
    assert (quantizer.lower.item(), quantizer.upper.item()) == (-1, 2)


@RANGES
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_have_as_many_levels_as_the_bits_allow(bits, range_kind):
    x = torch.linspace(-1, 2, 5000)[None]
    # The mean magnitude, where a step starts, would put most levels outside of values so evenly spread.
    y = fitted(AffineSpec(bits, range=range_kind, clipping=range_kind == "step"), x)(x)
    assert 2**bits - 1 <= len(y.unique()) <= 2**bits


@RANGES
@pytest.mark.parametrize("symmetric", [False, True], ids=["unsigned", "symmetric"])
def test_values_are_what_the_codes_stand_for(range_kind, symmetric):
    x = torch.randn(3, 50)
    quantizer = fitted(AffineSpec(4, symmetric, range=range_kind), x)
    codes = quantizer.quantize(x)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= quantizer.spec.qmin
    assert codes.max() <= quantizer.spec.qmax
    assert torch.equal(quantizer(x), dequantize(codes, *quantizer.qparams(x)))


@STATIC
def test_the_state_is_all_there_is_to_a_static_range(range_kind):
    x = torch.randn(5, 8)
    trained = fitted(AffineSpec(4, granularity="channel", range=range_kind), x, (4, 4), rows=5)
    fresh = Quantizer(trained.spec, (4, 4), rows=5)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))


@STATIC
def test_only_learned_ranges_have_parameters(range_kind):
    names = {name for name, _ in Quantizer(AffineSpec(4, range=range_kind)).named_parameters()}
    assert names == {"minmax": set(), "learned": {"lower", "upper"}, "step": {"scale"}}[range_kind]


# Granularity.

CUTS = {"whole": lambda c: (c,), "halves": halves, "groups_of_4": lambda c: groups(c, 4)}
TENSORS = {"tokens": ((2, 5, 7), -1), "image": ((2, 7, 4, 3), 1), "even": ((2, 8, 4, 3), 1)}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize(("shape", "axis"), TENSORS.values(), ids=TENSORS.keys())
@pytest.mark.parametrize(
    ("granularity", "range_kind"),
    [("tensor", "minmax"), ("tensor", "learned"), ("tensor", "step"), ("tensor", "dynamic"), ("token", "dynamic")],
)
def test_parts_of_an_activation_are_quantized_each_by_itself(granularity, range_kind, shape, axis, cut):
    x = torch.randn(shape) * torch.linspace(0.1, 5, shape[axis]).reshape(
        [-1 if d == axis % len(shape) else 1 for d in range(len(shape))]
    )
    sizes, spec = cut(shape[axis]), AffineSpec(4, granularity=granularity, range=range_kind)
    alone = [fitted(spec, piece, (piece.shape[axis],), axis)(piece) for piece in x.split(sizes, axis)]
    assert torch.equal(fitted(spec, x, sizes, axis)(x), torch.cat(alone, axis))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3, 3), (1, 8, 1)], ids=str)
@STATIC
def test_rows_and_parts_of_a_weight_are_quantized_each_by_itself(range_kind, shape, cut):
    w = torch.randn(shape)
    sizes, spec = cut(shape[1]), AffineSpec(3, granularity="channel", range=range_kind)
    together = fitted(spec, w, sizes, rows=shape[0])(w)
    for row, quantized in zip(w, together, strict=True):
        pieces = row[None].split(sizes, 1)
        alone = [fitted(spec, piece, (piece.shape[1],), rows=1)(piece) for piece in pieces]
        assert torch.equal(quantized[None], torch.cat(alone, 1))


def test_tokens_do_not_see_each_other():
    x = torch.randn(2, 5, 16)
    louder = x.clone()
    louder[1, 2] *= 1000
    quantizer = Quantizer(AffineSpec(4, granularity="token", range="dynamic"), (16,), axis=-1)
    same = torch.ones(2, 5, dtype=torch.bool)
    same[1, 2] = False
    assert torch.equal(quantizer(x)[same], quantizer(louder)[same])


def test_a_dynamic_range_follows_the_tensor():
    x, quantizer = torch.randn(4, 9), Quantizer(AffineSpec(4, range="dynamic"))
    torch.testing.assert_close(quantizer(1000 * x), 1000 * quantizer(x))


@RANGES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_type_of_the_input_is_kept(dtype, range_kind):
    x = torch.randn(4, 9).to(dtype)
    assert fitted(AffineSpec(4, range=range_kind), x)(x).dtype == dtype


@RANGES
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-3])
def test_a_constant_tensor_stays_itself(range_kind, value):
    x = torch.full((3, 4), value, requires_grad=True)
    y = fitted(AffineSpec(4, range=range_kind, clipping=range_kind == "step"), x)(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-7)
    y.sum().backward()
    assert x.grad.isfinite().all()


# Learning.


def test_both_learned_bounds_get_the_gradient_of_the_formulas():
    x, cotangent = torch.randn(4, 6), torch.randn(4, 6)
    quantizer = fitted(AffineSpec(3, granularity="channel", range="learned"), x, (3, 3), rows=4)
    with torch.no_grad():
        quantizer.lower.mul_(0.7)
    (quantizer(x) * cotangent).sum().backward()
    for half in (0, 1):
        lower, upper = (b.detach()[:, half, None].clone().requires_grad_() for b in (quantizer.lower, quantizer.upper))
        columns = slice(3 * half, 3 * half + 3)
        y = fake_quantize(x[:, columns], *qparams(lower, upper, 0, 7), 0, 7)
        (y * cotangent[:, columns]).sum().backward()
        torch.testing.assert_close(quantizer.lower.grad[:, half, None], lower.grad)
        torch.testing.assert_close(quantizer.upper.grad[:, half, None], upper.grad)


STEPS = {  # granularity, sizes, rows: elements that share a step
    "activation": ("tensor", (1,), 1, 5),
    "weight": ("tensor", (1,), 24, 24 * 5 * 7),
    "row": ("channel", (1,), 24, 5 * 7),
    "row_and_half": ("channel", (2, 3), 24, 2.5 * 7),  # on average
}


class TestStep:
    """LSQ, section 2."""

    @pytest.mark.parametrize(("granularity", "sizes", "rows", "n"), STEPS.values(), ids=STEPS.keys())
    @pytest.mark.parametrize("bits", [2, 4])
    def test_the_gradient_is_that_of_equation_3_scaled_as_the_paper_says(self, bits, granularity, sizes, rows, n):
        spec = AffineSpec(bits, symmetric=True, granularity=granularity, range="step")
        x, cotangent = torch.randn(24, 5, 7), torch.randn(24, 5, 7)
        quantizer = fitted(spec, x, sizes, rows=rows)
        with torch.no_grad():
            quantizer.scale.mul_(0.6)
        slopes = []
        for element, amount in zip(
            x.flatten(), quantizer._spread(quantizer.scale, x).expand_as(x).flatten(), strict=True
        ):
            v = (element / amount).item()
            slopes.append(spec.qmin if v <= spec.qmin else spec.qmax if v >= spec.qmax else round(v) - v)
        gradient = cotangent * torch.tensor(slopes).view_as(x) / (n * spec.qmax) ** 0.5
        (quantizer(x) * cotangent).sum().backward()
        pieces = gradient.split(sizes if len(sizes) > 1 else 5, 1)
        if granularity == "channel":
            expected = torch.stack([piece.sum((1, 2)) for piece in pieces], 1)
        else:
            expected = gradient.sum()[None]
        torch.testing.assert_close(quantizer.scale.grad, expected, rtol=1e-4, atol=1e-5)

    def test_no_gradient_passes_beyond_the_last_codes(self):
        """Equation 5: x / s = 7.3 rounds to the last code 7, but is clipped."""
        quantizer = fitted(AffineSpec(4, symmetric=True, range="step"), torch.randn(2, 3))
        with torch.no_grad():
            quantizer.scale.fill_(0.5)
        x = (0.5 * torch.tensor([[-9.0, -8.2, -7.8, 0.2, 6.9, 7.3, 9.0]])).requires_grad_()
        quantizer(x).sum().backward()
        assert x.grad.tolist() == [[0, 0, 1, 1, 1, 0, 0]]

    def test_clipping_first_does_not_change_the_value(self):
        for dtype in (torch.float32, torch.bfloat16):
            x = (3 * torch.randn(64, 64)).to(dtype)
            quantizer = fitted(AffineSpec(8, range="step"), x)
            trained = quantizer(x)
            assert trained.requires_grad
            with torch.no_grad():
                quantizer.scale.requires_grad_(False)
                assert torch.equal(quantizer(x), trained)

    def test_scaling_the_gradient_does_not_change_the_value(self):
        x = torch.randn(8, 8)
        quantizer = fitted(AffineSpec(4, range="step"), x)
        assert torch.equal(quantizer.part_qparams(x)[0], quantizer.scale)

    @pytest.mark.parametrize("axis", [1, -1])
    def test_the_gradient_is_the_same_for_a_tensor_in_pieces(self, axis):
        """Attention products are computed in pieces; neither do more or larger images count more for one another."""
        x = torch.randn(2, 4, 6, 4)
        whole, pieces = (fitted(AffineSpec(4, range="step"), x, axis=axis) for _ in range(2))
        whole(x).square().sum().backward()
        for piece in x.split(2, 2):
            pieces(piece).square().sum().backward()
        torch.testing.assert_close(pieces.scale.grad, whole.scale.grad)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_it_starts_at_twice_the_mean_magnitude(self, bits):
        """Section 2.1, with Q_P = 2^(b-1) - 1 for signed codes and 2^b - 1 for values without sign."""
        w = torch.randn(3, 8, 3, 3)
        signed = fitted(AffineSpec(bits, symmetric=True, granularity="channel", range="step"), w, rows=3)
        expected = 2 * w.abs().mean((1, 2, 3)) / (2 ** (bits - 1) - 1) ** 0.5
        torch.testing.assert_close(signed.scale[:, 0], expected)
        x = torch.rand(4, 8)
        unsigned = fitted(AffineSpec(bits, range="step"), x)
        torch.testing.assert_close(unsigned.scale[0], 2 * x.mean() / (2**bits - 1) ** 0.5)

    def test_it_starts_at_the_bounds_of_least_error_where_these_are_asked_for(self):
        x = torch.randn(4, 512)
        step, bounds = (fitted(AffineSpec(4, range=kind, clipping=True), x) for kind in ("step", "minmax"))
        assert torch.equal(step(x), bounds(x))

    @pytest.mark.parametrize("momentum", [None, 0.5])
    def test_the_zero_point_is_that_of_all_batches(self, momentum):
        """The last batch alone, without negative values, would give 0."""
        quantizer = Quantizer(AffineSpec(4, range="step", momentum=momentum))
        for batch in ([-5.0, 10.0], [1.0, 10.0]):
            quantizer.record(torch.tensor([batch]))
            settle(quantizer)
        lower = torch.tensor(-5.0 if momentum is None else -2.0)
        expected = qparams(lower, torch.tensor(10.0), 0, 15)[1]
        assert expected > 0 and quantizer.part_qparams(torch.zeros(1, 2))[1].item() == expected

    @pytest.mark.parametrize("sign", [1, -1])
    def test_zero_has_a_code_even_where_no_value_is_near_it(self, sign):
        x = sign * torch.linspace(5, 6, 20)[None]
        quantizer = fitted(AffineSpec(4, range="step"), x)
        assert quantizer.part_qparams(x)[1].item() == (0 if sign > 0 else 15)
        assert quantizer(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_dynamic_bounds_have_no_gradient():
    x = torch.randn(4, 9, requires_grad=True)
    Quantizer(AffineSpec(4, range="dynamic"))(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # All values lie inside their own bounds.


@pytest.mark.parametrize("as_released", [False, True], ids=["as_published", "as_released"])
def test_extreme_codes_pass_gradient_but_not_in_the_released_code(as_released):
    x = torch.linspace(-1, 2, 31)[None].requires_grad_()
    quantizer = fitted(AffineSpec(2, range="learned", as_released=as_released), x)
    codes = quantizer.quantize(x)
    quantizer(x).sum().backward()
    extreme = (codes == 0) | (codes == 3)
    assert extreme.any()
    assert torch.equal(x.grad == 0, extreme & torch.tensor(as_released))


def test_the_released_range_works_without_a_call_before():
    x = torch.randn(3, 4)
    spec = AffineSpec(4, range="learned", as_released=True)
    loaded = Quantizer(spec)
    loaded.load_state_dict(fitted(spec, x).state_dict())
    assert loaded(x).isfinite().all()
