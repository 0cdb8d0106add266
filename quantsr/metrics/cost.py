"""What a student costs: bits that are stored, and multiply-accumulate operations (MACs) at their bit widths.

The papers (QuantVSR, arXiv 2508.04485, and PassionSR, arXiv 2411.17106) count

    parameters   n bits / 32       n low-bit weights; 16 bits for branches, 32 for what is kept in full precision
    operations   MACs bits / 32    with unlike factors the bits of the wider one (our choice: theirs are alike)

of layers alone. Scales, zero points, bounds and transforms are left out, and so are the products of attention: of the
full-size UNet of MGLD-VSR these take 14 % of all MACs in full precision, and with them no rank gives QuantVSR's
figures. :class:`Cost` has both as kinds of their own. What it takes to transform and quantize inputs at run time, the
rotation above all, is in no figure. BOPs, bit operations, are MACs w_bits a_bits.
"""

from collections import Counter
from dataclasses import dataclass

from quantsr.metrics.operations import macs_by_module
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.prepare import is_layer
from quantsr.teachers.base import Teacher

FULL, BRANCH = 32, 16
LOW_BIT, LOW_RANK, QPARAMS, KEPT, ATTENTION = "low_bit", "branch", "qparams", "kept", "attention"
OTHER = "other"


@dataclass(frozen=True)
class Cost:
    """Cost of a student, and of its teacher, for one input.

    Attributes:
        stored: bits by (part, kind). Parts are ``encoder``, ``denoiser``, ``decoder`` and ``other``; kinds ``low_bit``
            (quantized weights), ``branch`` (16-bit low-rank factors), ``qparams`` (scales, zero points, bounds,
            smoothing, rotations; in float32) and ``kept`` (all else, biases and norms too; in float32).
        computed: MACs by (part, kind, weight bits, activation bits); kinds ``low_bit``, ``branch`` and ``kept`` as
            above and ``attention`` for the products of attention, quantized or not.
        parameters: number of the teacher's parameters by part.
        macs: MACs of the teacher by part.
    """

    stored: dict[tuple[str, str], int]
    computed: dict[tuple[str, str, int, int], int]
    parameters: dict[str, int]
    macs: dict[str, int]

    def bits(self, part: str | None = None, kind: str | None = None) -> int:
        """Stored bits of a part (None for all), of a kind (None for all)."""
        return sum(n for (p, k), n in self.stored.items() if part in (None, p) and kind in (None, k))

    def student_macs(self, part: str | None = None, kind: str | None = None) -> int:
        """MACs of a part, of a kind."""
        return sum(n for (p, k, *_), n in self.computed.items() if part in (None, p) and kind in (None, k))

    def operations(self, part: str | None = None, kind: str | None = None) -> float:
        """MACs bits / 32 of a part, of a kind, with the wider factor's bits."""
        items = ((p, k, n * max(w, a)) for (p, k, w, a), n in self.computed.items())
        return sum(n for p, k, n in items if part in (None, p) and kind in (None, k)) / FULL

    def bops(self, part: str | None = None) -> int:
        """MACs times the bits of both factors."""
        return sum(n * w * a for (p, _, w, a), n in self.computed.items() if part in (None, p))

    def parameters_saved(self, part: str | None = None) -> float:
        """Share of the teacher's parameters that the student does without, as the papers count."""
        counted = self.bits(part) - self.bits(part, QPARAMS)
        return 1 - counted / (FULL * _total(self.parameters, part))

    def bits_saved(self, part: str | None = None) -> float:
        """The same of everything that is stored."""
        return 1 - self.bits(part) / (FULL * _total(self.parameters, part))

    def operations_saved(self, part: str | None = None) -> float:
        """Share of the teacher's operations that the student does without, as the papers count."""
        counted = self.operations(part) - self.operations(part, ATTENTION)
        return 1 - counted / (_total(self.macs, part) - self.student_macs(part, ATTENTION))

    def bops_saved(self, part: str | None = None) -> float:
        """Share of the teacher's bit operations that the student does without, products of attention too."""
        return 1 - self.bops(part) / (FULL**2 * _total(self.macs, part))

    def to_dict(self) -> dict[str, float]:
        """The figures of a report; shares from 0 to 1, sizes in megabytes (10^6), MACs and BOPs in units of 10^9."""
        teacher_macs = sum(self.macs.values())
        return {
            "parameters_saved": self.parameters_saved(),
            "operations_saved": self.operations_saved(),
            "bits_saved": self.bits_saved(),
            "bops_saved": self.bops_saved(),
            "denoiser_parameters_saved": self.parameters_saved("denoiser"),
            "denoiser_operations_saved": self.operations_saved("denoiser"),
            "megabytes": self.bits() / 8e6,
            "teacher_megabytes": FULL * sum(self.parameters.values()) / 8e6,
            "gmacs": self.student_macs() / 1e9,
            "teacher_gmacs": teacher_macs / 1e9,
            "gbops": self.bops() / 1e9,
            "teacher_gbops": FULL**2 * teacher_macs / 1e9,
        }


def cost(student: Teacher, teacher: Teacher, shape: tuple[int, ...]) -> Cost:
    """Count what a student stores and computes; nothing is run, both may be on the ``meta`` device.

    Layers of the student may be in the form that trains or folded: the figures are those of the folded form.

    Args:
        student: with quantized layers.
        teacher: the model that it was made from.
        shape: of the low-quality input that operations are counted for, ``(b, 3, h, w)`` or ``(b, t, 3, h, w)``.
    """
    macs = macs_by_module(teacher, shape)
    modules = dict(student.named_modules())
    layers = {name: _folded(m) for name, m in modules.items() if isinstance(m, QuantizedLayer | FoldedLayer)}
    products = {name: m for name, m in modules.items() if isinstance(m, QuantizedAttention)}
    return Cost(
        stored=_stored(student, layers, products),
        computed=_computed(student, layers, products, macs),
        parameters=_by_part(teacher, {name: p.numel() for name, p in teacher.named_parameters()}),
        macs=_by_part(teacher, macs),
    )


def _folded(layer: QuantizedLayer | FoldedLayer) -> FoldedLayer:
    """The inference form of a layer, or one of the same shapes: values do not matter here."""
    if isinstance(layer, FoldedLayer):
        return layer
    return FoldedLayer(layer.operation, layer.weight.shape, layer.recipe, layer.bias is not None)


def _stored(
    student: Teacher, layers: dict[str, FoldedLayer], products: dict[str, QuantizedAttention]
) -> dict[tuple[str, str], int]:
    stored: Counter[tuple[str, str]] = Counter()
    for name, layer in layers.items():
        part = part_of(student, name)
        for entry, tensor in layer.state_dict().items():
            kind = {"codes": LOW_BIT, "L1": LOW_RANK, "L2": LOW_RANK, "bias": KEPT}.get(entry, QPARAMS)
            bits = {LOW_BIT: layer.recipe.weight.bits, LOW_RANK: BRANCH}.get(kind, FULL)
            stored[part, kind] += tensor.numel() * bits
    for name, product in products.items():
        stored[part_of(student, name), QPARAMS] += FULL * sum(t.numel() for t in product.state_dict().values())
    quantized = {*layers, *products}
    for name, parameter in student.named_parameters():
        if not any(owner in quantized for owner in _owners(name)):
            stored[part_of(student, name), KEPT] += FULL * parameter.numel()
    return dict(stored)


def _computed(
    student: Teacher,
    layers: dict[str, FoldedLayer],
    products: dict[str, QuantizedAttention],
    macs: dict[str, int],
) -> dict[tuple[str, str, int, int], int]:
    computed: Counter[tuple[str, str, int, int]] = Counter()
    modules = dict(student.named_modules())
    for name, n in macs.items():
        part, layer, product = part_of(student, name), layers.get(name), products.get(f"{name}.processor")
        if layer is not None:
            recipe, weights = layer.recipe, layer.codes.numel()
            computed[part, LOW_BIT, recipe.weight.bits, recipe.act.bits] += n
            if recipe.rank:
                computed[part, LOW_RANK, BRANCH, BRANCH] += n // weights * (layer.L1.numel() + layer.L2.numel())
        elif product is not None:
            computed[part, ATTENTION, product.recipe.act.bits, product.recipe.act.bits] += n
        else:
            computed[part, KEPT if is_layer(modules[name]) else ATTENTION, FULL, FULL] += n
    return dict(computed)


def part_of(teacher: Teacher, name: str) -> str:
    """The part that a module or parameter belongs to; ``other`` for none."""
    owners = {name, *_owners(name)}
    return next((part for part, prefixes in teacher.parts().items() if owners & {*prefixes}), OTHER)


def _owners(name: str) -> list[str]:
    """Names of all modules around a module or parameter."""
    names = name.split(".")
    return [".".join(names[:end]) for end in range(1, len(names))]


def _by_part(teacher: Teacher, amounts: dict[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, n in amounts.items():
        found[part_of(teacher, name)] += n
    return dict(found)


def _total(amounts: dict[str, int], part: str | None) -> int:
    return sum(amounts.values()) if part is None else amounts[part]
