"""Whether a distance is more than chance: what samples of the same sizes from the reference itself show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steps.drift import Method, Tally, distance, observed

LEVEL = 0.05
MOST_CELLS = 500
_LEAST, _PER_TEST = 1_000, 100
_AT_ONCE = 4_000_000
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Departure:
    """One measured effect beside what chance shows.

    Attributes:
        effect: The effect, 0 where nothing moved.
        chance: Effect that 19 of 20 samples without drift stay below.
        p_value: Share of samples without drift that show such an effect, 0 (not included) to 1.
    """

    effect: float
    chance: float
    p_value: float


def resamples_for(tests: int) -> int:
    """How many samples are drawn: enough for the smallest level that Holm's procedure asks of so many tests."""
    return max(_LEAST, _PER_TEST * tests)


def departure(method: Method, counts: Tally, resamples: int, rng: np.random.Generator) -> Departure:
    """Measure a distance and what chance shows, by a parametric bootstrap (Efron & Tibshirani 1993, chapter 16).

    Of each resample both sides are drawn from the reference's shares, a reference and a window of the sizes at hand:
    the reference is a sample too, and drawing the window alone would promise more than it can keep. `ks` and
    `wasserstein` are drawn over at most 500 cells.

    Args:
        method: The distance.
        counts: Neither side empty.
        resamples: How many are drawn.
        rng: Source of chance.
    """
    drawn = _coarse(counts)
    m, n = int(drawn.reference.sum()), int(drawn.window.sum())
    shares, size = drawn.reference / m, max(1, _AT_ONCE // len(drawn.reference))
    found = []
    for start in range(0, resamples, size):
        some = min(size, resamples - start)
        old, new = (rng.multinomial(rows, shares, size=some) / rows for rows in (m, n))
        found.append(distance(method, old, new, drawn.at))
    return beside(observed(method, counts), np.concatenate(found))


def beside(effect: float, chance: _Array) -> Departure:
    """An effect beside those of resamples; shape (resamples,)."""
    reached = int(np.sum(chance >= effect - 1e-12))
    return Departure(effect, float(np.quantile(chance, 1 - LEVEL)), (1 + reached) / (1 + len(chance)))


def holm(p_values: Sequence[float], level: float = LEVEL) -> tuple[bool, ...]:
    """Which hypotheses fall while the chance that any true one does stays below `level` (Holm 1979)."""
    falls = [False] * len(p_values)
    for rank, position in enumerate(np.argsort(p_values, kind="stable").tolist()):
        if p_values[position] > level / (len(p_values) - rank):
            break
        falls[position] = True
    return tuple(falls)


def _coarse(counts: Tally) -> Tally:
    """The same samples over at most 500 cells, of about as many rows of the reference each."""
    if counts.at is None or len(counts.at) <= MOST_CELLS:
        return counts
    before = np.cumsum(counts.reference) - counts.reference
    group = before * MOST_CELLS // counts.reference.sum()
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    old, new = (np.add.reduceat(side, starts) for side in (counts.reference, counts.window))
    return Tally(old, new, counts.at[starts])
