"""Two models on the same rows: the paired bootstrap of the difference in a figure, and McNemar's test."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from bentos.release import Answers
from models.config import ModelConfig
from models.errors import DataError
from models.judgement import OwnMetric
from steps.bootstrap import CHUNK, PLAIN_ROWS, Figures, each_row
from steps.counted import BY_LABEL, Score, score_labels, score_rows
from steps.measure import drawn, is_whole, prepared
from steps.metrics import greater_is_better
from steps.own import own_metric, resample_own

Array = np.ndarray[Any, Any]

CONFIDENCE = 0.975
_BAGS = 20
_BAG_POWER = 0.7


class Paired(BaseModel):
    """How much better the challenger is than the champion, row by row on the same rows.

    Attributes:
        metric: The figure.
        estimate: By how much the challenger is better, in the figure's units; negative where it is worse.
        low: One-sided lower bound of that, at 97.5 %.
        high: One-sided upper bound, at 97.5 %; the two are a 95 % interval.
        mcnemar_p: Two-sided p of McNemar's test on who is right; None for a regression.
        rows: How many rows.
        resamples: How many bootstrap resamples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    estimate: float
    low: float
    high: float
    mcnemar_p: float | None = None
    rows: int
    resamples: int


class Difference(BaseModel):
    """By how much a challenger is better than a champion in one figure, on the same rows.

    Attributes:
        estimate: In the figure's units; negative where it is worse.
        low: Lower end of the 95 % interval; as a one-sided bound it holds at 97.5 %.
        high: Upper end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One of two models, on rows that both answered.

    Attributes:
        answers: What it said to the n rows.
        figures: Its figures on them.
        drawn: These in each resample, where that is known: see `steps.measure.drawn`.
    """

    answers: Answers
    figures: Mapping[str, float]
    drawn: Mapping[str, Array] = field(default_factory=dict, repr=False)


def paired_difference(
    config: ModelConfig, labels: Sequence[str], truth: Array, champion: Answers, challenger: Answers
) -> Paired:
    """Bootstrap the difference in the model's metric over rows that are drawn for both models at once.

    The bounds are expanded percentiles (Hesterberg 2015, "What teachers should know about the bootstrap"), which are
    not too near on few rows. Rows that count the same are one cell with a multinomial count. More than 50,000 cells
    are resampled in bags of n^0.7 rows, each to n rows (Kleiner et al. 2014, "A scalable bootstrap for massive data").

    Args:
        config: The challenger's configuration: its metric, seed and `evaluation.resamples`.
        labels: Classes of both, in the order of the probabilities' columns; empty for regression.
        truth: Shape (n,): labels, or numbers for regression.
        champion: Its answers to the n rows.
        challenger: Its answers to the same.

    Raises:
        DataError: There are fewer than two rows, or too many resamples of these
            rows do not allow it.
    """
    rows, name, times = len(truth), config.metric, config.evaluation.resamples
    if rows < 2:
        raise DataError(f"{rows} row is too few for an interval")
    cells = _cells(config, labels, truth, champion, challenger)
    sign = 1 if greater_is_better(name, config.evaluation.metrics) else -1
    whole = _whole(cells)
    centre = sign * whole[name]
    moved = sign * _resampled(cells, rows, times, np.random.default_rng(config.seed), whole)[name]
    moved = moved[np.isfinite(moved)]
    if not math.isfinite(centre) or len(moved) < CONFIDENCE * times:
        raise DataError(f"{name} is defined on {len(moved)} of {times} resamples of the {rows} rows: give more data")
    low, high = _bounds(moved, rows)
    return Paired(
        metric=name,
        estimate=centre,
        low=low,
        high=high,
        mcnemar_p=mcnemar(challenger.values == truth, champion.values == truth) if labels else None,
        rows=rows,
        resamples=len(moved),
    )


def paired_differences(
    config: ModelConfig, labels: Sequence[str], truth: Array, champion: Side, challenger: Side
) -> dict[str, Difference]:
    """The difference in each figure but the model's metric, bootstrapped as `paired_difference` bootstraps that.

    Up to 50,000 rows the resamples are those of the figures' own intervals; more rows are resampled in bags, and the
    user's own figures as `steps.own.resample_own` does.

    Args:
        config: The challenger's configuration.
        labels: Classes of both, in the order of the probabilities' columns; empty for regression.
        truth: Shape (n,), at least two rows: labels, or numbers for regression.
        champion: The champion on these rows.
        challenger: The challenger on the same.

    Returns:
        Figure to difference; without those that one of the two does not have, or most resamples do not allow.
    """
    truth = truth if labels else np.asarray(truth, dtype=np.float64)
    names = [name for name in challenger.figures if name in champion.figures and name != config.metric]
    sides = [replace(side, figures={name: side.figures[name] for name in names}) for side in (champion, challenger)]
    whole = {name: sides[1].figures[name] - sides[0].figures[name] for name in names}
    if len(truth) <= PLAIN_ROWS:
        old, new = (side.drawn or drawn(config, labels, truth, side.answers, side.figures) for side in sides)
        values = _less(new, old)
    else:
        values = _in_bags(config, labels, truth, sides, whole)
    found = {}
    for name in (name for name in names if name in values):
        sign = 1 if greater_is_better(name, config.evaluation.metrics) else -1
        moved = sign * values[name][np.isfinite(values[name])]
        if 2 * len(moved) >= config.evaluation.resamples:
            low, high = _bounds(moved, len(truth))
            found[name] = Difference(estimate=sign * whole[name], low=low, high=high)
    return found


def mcnemar(one: Array, other: Array) -> float:
    """Two-sided mid-p of McNemar's exact test (Fagerland, Lydersen, Laake 2013).

    Args:
        one: Shape (n,) of bool: rows that one model has right.
        other: Shape (n,) of bool: rows that the other one has right.
    """
    from scipy.stats import binom

    only_one, only_other = int(np.sum(one & ~other)), int(np.sum(~one & other))
    fewer, both = min(only_one, only_other), only_one + only_other
    return float(min(1.0, 2 * binom.cdf(fewer, both, 0.5) - binom.pmf(fewer, both, 0.5)))


@dataclass(frozen=True)
class _Cells:
    """Rows that count the same.

    Attributes:
        sizes: Shape (cells,): rows of each.
        score: From positions of cells, what scores the champion and the challenger on them.
    """

    sizes: Array
    score: Callable[[Array], tuple[Figures, Figures]]

    @property
    def differ(self) -> Figures:
        """The challenger's figures less the champion's."""
        champion, challenger = self.score(np.arange(len(self.sizes)))
        return lambda counts: _less(challenger(counts), champion(counts))

    def some(self, chosen: Array) -> "_Cells":
        """A few of the cells, by position."""
        return _Cells(self.sizes[chosen], lambda inner: self.score(chosen[inner]))


def _cells(config: ModelConfig, labels: Sequence[str], truth: Array, champion: Answers, challenger: Answers) -> _Cells:
    name, known = config.metric, pd.Index(labels)
    if (own := config.evaluation.metrics.get(name)) is not None:
        truth = truth if labels else np.asarray(truth, dtype=np.float64)

        def by_function(at: Array) -> tuple[Figures, Figures]:
            one, other = (
                _named(name, _recomputed(name, own, truth[at], _taken(a, at))) for a in (champion, challenger)
            )
            return one, other

        return _Cells(np.ones(len(truth), dtype=np.int64), by_function)
    codes = known.get_indexer(pd.Index(truth)) if labels else np.asarray(truth, dtype=np.float64)
    if name in BY_LABEL:
        told = [known.get_indexer(pd.Index(answers.values)) for answers in (champion, challenger)]
        table, sizes = np.unique(np.stack([codes, *told], axis=1), axis=0, return_counts=True)
        true, old, new = table.T

        def by_labels(at: Array) -> tuple[Figures, Figures]:
            one, other = (_named(name, score_labels(name, true[at], said[at], len(labels))) for said in (old, new))
            return one, other

        return _Cells(sizes, by_labels)
    said = [
        answers.values if answers.probabilities is None else answers.probabilities for answers in (champion, challenger)
    ]

    def by_rows(at: Array) -> tuple[Figures, Figures]:
        one, other = (_named(name, score_rows(name, codes[at], answered[at])) for answered in said)
        return one, other

    return _Cells(np.ones(len(truth), dtype=np.int64), by_rows)


def _in_bags(
    config: ModelConfig, labels: Sequence[str], truth: Array, sides: Sequence[Side], whole: Mapping[str, float]
) -> dict[str, Array]:
    """The differences in each resample of more rows than are drawn one by one; `whole` are those of all rows."""

    def by_figures(at: Array) -> tuple[Figures, Figures]:
        one, other = (prepared(config, labels, truth[at], _taken(side.answers, at), each_row).figures for side in sides)
        return one, other

    cells = _Cells(np.ones(len(truth), dtype=np.int64), by_figures)
    random = np.random.default_rng(config.seed)
    values = _resampled(cells, len(truth), config.evaluation.resamples, random, whole)
    old, new = (
        resample_own(config, truth, side.answers.values, side.answers.probabilities, side.figures) for side in sides
    )
    return {**values, **_less(new, old)}


def _less(new: Mapping[str, Array], old: Mapping[str, Array]) -> dict[str, Array]:
    """Figures of the whole less the same ones of another model."""
    return {name: new[name] - old[name] for name in new if name in old and is_whole(name)}


def _named(name: str, score: Score) -> Figures:
    return lambda counts: {name: score(counts)}


def _recomputed(name: str, own: OwnMetric, truth: Array, answers: Answers) -> Score:
    """A figure of the user's own, which counts do not give: computed anew from the rows of each draw."""

    def score(counts: Array) -> Array:
        return np.array([once(np.repeat(np.arange(len(truth)), drawn)) for drawn in counts.astype(np.int64)])

    def once(drawn: Array) -> float:
        told = _taken(answers, drawn)
        try:
            value = own_metric(name, own, truth[drawn], told.values, told.probabilities)
        except DataError:
            return math.nan
        return math.nan if value is None else value

    return score


def _taken(answers: Answers, at: Array) -> Answers:
    told = answers.probabilities
    return replace(answers, values=answers.values[at], probabilities=None if told is None else told[at])


def _resampled(
    cells: _Cells, rows: int, times: int, random: np.random.Generator, whole: Mapping[str, float]
) -> Mapping[str, Array]:
    """The differences in each resample; `whole` are those when each row is taken once."""
    if len(cells.sizes) <= PLAIN_ROWS:
        return _drawn(cells, rows, times, random)
    size = int(len(cells.sizes) ** _BAG_POWER)
    order = random.permutation(len(cells.sizes))
    bags = min(_BAGS, len(order) // size)
    moved = []
    for bag, share in enumerate(np.array_split(np.arange(times), bags)):
        some = cells.some(np.sort(order[bag * size : (bag + 1) * size]))
        around = _whole(some)
        found = _drawn(some, rows, len(share), random)
        moved.append({name: values - around[name] for name, values in found.items()})
    known = (name for name in moved[0] if name in whole)
    return {name: whole[name] + np.concatenate([one[name] for one in moved]) for name in known}


def _whole(cells: _Cells) -> dict[str, float]:
    """The differences when each row is taken once."""
    found = cells.differ(cells.sizes[None, :].astype(np.float64))
    return {name: float(values[0]) for name, values in found.items()}


def _drawn(cells: _Cells, rows: int, times: int, random: np.random.Generator) -> dict[str, Array]:
    count, differ = len(cells.sizes), cells.differ
    at_once = max(1, CHUNK // count)
    found = []
    for some in (min(at_once, times - done) for done in range(0, times, at_once)):
        if count == rows:  # several times as fast as a multinomial of as many cells
            picked = random.integers(count, size=(some, rows)) + count * np.arange(some)[:, None]
            counts = np.bincount(picked.ravel(), minlength=some * count).reshape(some, count)
        else:
            counts = random.multinomial(rows, cells.sizes / cells.sizes.sum(), size=some)
        found.append(differ(counts.astype(np.float64)))
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _bounds(moved: Array, rows: int) -> tuple[float, float]:
    """Both one-sided 97.5 % bounds of a difference, of its values in the resamples of so many rows."""
    outer = _expanded(rows)
    low, high = np.quantile(moved, (outer, 1 - outer))
    return float(low), float(high)


def _expanded(rows: int) -> float:
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(rows / (rows - 1)) * t.ppf(1 - CONFIDENCE, rows - 1)))
