"""Gaps between groups: how far their rates differ, with ends that are honest for the number of groups compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steps.cells import RATES, fractions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Contest:
    """The groups of one crossing for one class against the rest.

    Attributes:
        tally: Shape (4, groups): see `steps.cells.fractions`.
        resampled: Shape (resamples, 4, groups): the same of every resample.
        judged: Shape (groups,) of bool: which are compared.
    """

    tally: Array
    resampled: Array
    judged: Array


@dataclass(frozen=True)
class Difference:
    """How far the groups of one contest differ in one rate.

    Attributes:
        value: Largest minus smallest rate.
        low: The near end.
        high: The far end.
        higher: Position of the group with the higher rate, of the two that the near end comes from.
        lower: Position of the other.
    """

    value: float
    low: float
    high: float
    higher: int
    lower: int


def differences(contests: Sequence[Contest], confidence: float) -> tuple[dict[str, Difference], ...]:
    """The gap of every rate in every contest, with ends that hold for all contests at once.

    The largest of several differences is large by chance alone: a percentile interval of the bootstrapped gap lies
    too high even where all groups are alike. So every two groups are compared, each difference gets an interval, and
    all of them together hold with `confidence` (single-step max-t: Hothorn, Bretz & Westfall 2008; Romano & Wolf
    2005). The gap is at least the largest lower end and at most the largest upper end.

    A difference and its standard error take one more success and one more failure in each group (Agresti & Caffo
    2000): three of three say little. How many standard errors an interval reaches is the quantile, over resamples, of
    the largest studentised deviation among all pairs of all contests, which keeps how they depend on each other; it
    is never less than a single comparison needs.

    Args:
        contests: At least one.
        confidence: Of all intervals of one rate together.

    Returns:
        Rate to its difference, for each contest; without rates that fewer than two judged groups have.
    """
    found: tuple[dict[str, Difference], ...] = tuple({} for _ in contests)
    for place, rate in enumerate(RATES):
        compared = {at: pairs for at, contest in enumerate(contests) if (pairs := _Pairs.of(contest, place))}
        if compared:
            width = _width([pairs.deviation for pairs in compared.values()], confidence)
            for at, pairs in compared.items():
                found[at][rate] = pairs.difference(width)
    return found


def percentiles(contest: Contest, confidence: float) -> tuple[Array, Array]:
    """Percentile intervals of every group's rates (Efron & Tibshirani 1993, ch. 13); NaN where a rate is undefined.

    They are shown, not judged: that of a group without a single success, or failure, has no width.

    Returns:
        Lower and upper ends, each of shape (4, groups).
    """
    above, below = fractions(contest.resampled)
    rates = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    defined = fractions(contest.tally)[1] > 0
    ends = np.full((2, *defined.shape), np.nan)
    tail = (1 - confidence) / 2
    ends[:, defined] = np.nanquantile(rates[:, defined], [tail, 1 - tail], axis=0)
    return ends[0], ends[1]


@dataclass(frozen=True)
class _Pairs:
    """Every two judged groups of a contest that have a rate; `first` and `second` are positions."""

    rates: Array
    first: Array
    second: Array
    gap: Array
    error: Array
    deviation: Array

    @classmethod
    def of(cls, contest: Contest, rate: int) -> "_Pairs | None":
        above, below = (part[rate] for part in fractions(contest.tally))
        chosen = np.flatnonzero(contest.judged & (below > 0))
        if len(chosen) < 2:
            return None
        drawn_above, drawn_below = (part[:, rate, chosen] for part in fractions(contest.resampled))
        near = (above[chosen] + 1) / (below[chosen] + 2)
        variance = near * (1 - near) / (below[chosen] + 2)
        one, two = np.triu_indices(len(chosen), 1)
        gap, error = near[one] - near[two], np.sqrt(variance[one] + variance[two])
        drawn = (drawn_above + 1) / (drawn_below + 2)
        deviation = np.zeros(len(drawn))
        for a, b, g, e in zip(one, two, gap, error, strict=True):
            np.maximum(deviation, np.abs(drawn[:, a] - drawn[:, b] - g) / e, out=deviation)
        return cls(above[chosen] / below[chosen], chosen[one], chosen[two], gap, error, deviation)

    def difference(self, width: float) -> Difference:
        near = np.abs(self.gap) - width * self.error
        best = int(near.argmax())
        ordered = (int(self.first[best]), int(self.second[best]))
        higher, lower = ordered if self.gap[best] >= 0 else ordered[::-1]
        far = float((np.abs(self.gap) + width * self.error).max())
        value = float(self.rates.max() - self.rates.min())
        return Difference(value, max(0.0, float(near[best])), min(1.0, far), higher, lower)


def _width(deviations: Sequence[Array], confidence: float) -> float:
    """Standard errors on either side."""
    from scipy.stats import norm

    largest = np.max(deviations, axis=0)
    return max(float(np.quantile(largest, confidence, method="higher")), float(norm.ppf((1 + confidence) / 2)))
