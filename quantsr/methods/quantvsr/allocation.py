"""Ranks of the low-rank branches by complexity: more where inputs vary much, less where little (STCA of QuantVSR)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from quantsr.errors import UserError
from quantsr.methods.quantvsr.complexity import Samples


class Quantiles(NamedTuple):
    """The lower and upper quantile of both complexities over all samples of all layers."""

    spatial_lower: float
    spatial_upper: float
    temporal_lower: float
    temporal_upper: float


@dataclass(frozen=True)
class Allocation:
    """The rank of every layer, and what it follows from.

    Attributes:
        ranks: what the rule asks for, by layer.
        spatial, temporal: complexities of each layer, the mean over its samples.
        quantiles: the bounds of the rule.
        limits: rank of each layer's own weight, to which its branch is cut; None if unknown.
    """

    ranks: dict[str, int]
    spatial: dict[str, float]
    temporal: dict[str, float]
    quantiles: Quantiles
    limits: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint or JSON."""
        return {**asdict(self), "quantiles": list(self.quantiles)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The allocation that :meth:`to_dict` wrote."""
        return cls(**{**values, "quantiles": Quantiles(*values["quantiles"])})

    @property
    def real_ranks(self) -> dict[str, int]:
        """The ranks that the branches get: those asked for, cut to the weight's own."""
        if self.limits is None:
            return self.ranks
        return {name: min(rank, self.limits[name]) for name, rank in self.ranks.items()}

    @property
    def average_rank(self) -> float:
        """Mean over layers of the rank that they really get."""
        return sum(self.real_ranks.values()) / len(self.ranks)

    @property
    def moving(self) -> bool:
        """Whether anything changes over time. In images nothing does: there the spatial complexity alone decides."""
        return any(self.temporal.values())


def allocate(
    samples: Samples,
    percentile: float = 0.25,
    smallest: int = 16,
    largest: int = 64,
    multiple: int = 8,
    limits: Mapping[str, int] | None = None,
) -> Allocation:
    """Give each layer its rank: QuantVSR's rule, with its figures as defaults.

    A layer starts at the smallest rank. A sample adds 1 where both complexities reach their upper quantile and takes 1
    where both are at most the lower. The sum is clipped and rounded to a multiple: ``((rank + 4) // 8) * 8``. Where all
    temporal complexities are 0 (images), the spatial one decides alone (our choice).

    Args:
        samples: complexities of each layer's inputs.
        percentile: the lower quantile, in (0, 0.5); the upper is 1 - percentile.
        smallest, largest: the ranks lie between them.
        multiple: ranks are rounded to it, halves up, but stay between ``smallest`` and ``largest`` (our choice where
            these are no multiples themselves).
        limits: the rank of each layer's own weight.

    Raises:
        UserError: options out of their range, or complexities that are not finite.
        ValueError: no samples, or a layer without any.
    """
    check_options(percentile, smallest, largest, multiple)
    noted = {name: np.array(pairs, dtype=np.float64).reshape(-1, 2) for name, pairs in samples.items()}
    if not noted or not all(map(len, noted.values())):
        raise ValueError("ranks are allocated by samples, and every layer needs some")
    broken = [name for name, pairs in noted.items() if not np.isfinite(pairs).all()]
    if broken:
        raise UserError(
            f"the inputs of {len(broken)} layers hold values that are not finite ({broken[0]} is the first): "
            "choose a precision of more range"
        )
    every = np.concatenate(list(noted.values()))
    lower, upper = np.quantile(every, [percentile, 1 - percentile], axis=0)
    columns = [0, 1] if every[:, 1].any() else [0]
    ranks = {}
    for name, pairs in noted.items():
        low = (pairs <= lower)[:, columns].all(1)
        # Where both quantiles agree a sample can be low and high at once: it then counts as low, as for the authors.
        high = (pairs >= upper)[:, columns].all(1) & ~low
        ranks[name] = _fit(smallest + int(high.sum()) - int(low.sum()), smallest, largest, multiple)
    means = {name: pairs.mean(0).tolist() for name, pairs in noted.items()}
    return Allocation(
        ranks,
        spatial={name: mean[0] for name, mean in means.items()},
        temporal={name: mean[1] for name, mean in means.items()},
        quantiles=Quantiles(*(float(bound[i]) for i in (0, 1) for bound in (lower, upper))),
        limits=None if limits is None else {name: limits[name] for name in ranks},
    )


def _fit(rank: int, smallest: int, largest: int, multiple: int) -> int:
    """Clip, then round; the authors' figures are multiples, which rounding leaves between the bounds."""
    clipped = min(max(rank, smallest), largest)
    rounded = (clipped + multiple // 2) // multiple * multiple
    return min(max(rounded, smallest), largest)


def check_options(percentile: float, smallest: int, largest: int, multiple: int) -> None:
    """Compare the options of :func:`allocate` with what they may be, before there are samples.

    Raises:
        UserError: one of them is out of its range.
    """
    if not 0 < percentile < 0.5:
        raise UserError(f"the percentile of the rank allocation lies between 0 and 0.5, and is not {percentile}")
    if not 1 <= smallest <= largest:
        raise UserError(
            f"ranks go from a smallest of 1 or more to a largest not below it, not from {smallest} to {largest}"
        )
    if multiple < 1:
        raise UserError(f"ranks are rounded to a multiple of 1 or more, not of {multiple}")
