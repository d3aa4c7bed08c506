"""Slices: parts of the test rows, by value of a column or two, where a model may do worse than on the whole."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from bentos.features import derive, expressions
from bentos.release import Answers
from models.config import ModelConfig
from models.errors import DataError
from steps.bootstrap import PLAIN_ROWS, Interval, cells, interval, resample
from steps.figures import AREAS, Estimated
from steps.measure import estimates, exact_areas, prepared
from steps.metrics import class_codes, greater_is_better, row_losses
from steps.own import own_metric, resample_own

if TYPE_CHECKING:
    from steps.bootstrap import Grouping

Array = np.ndarray[Any, Any]

VALUES = 50  # of one column, those with the most rows
CROSSED = 30  # columns, those with the worst slices
TRIED = 3  # times as many as are to be found
CELLS = 1_024
NEAR = 1.96  # standard errors: what is surely worse than the whole
APART = 3.0  # likewise, worse than both its parts: of so many pairs some look worse by chance
MISSING = "missing"
UNBOUNDED = ("mae", "rmse", "log_loss")


class Slice(BaseModel):
    """A part of the test rows beside the whole.

    Attributes:
        where: Which rows, in words.
        columns: By which columns.
        rows: How many.
        value: The model's metric on them; of r2, their squared error against the spread of all rows.
        interval: Its interval.
        gap: How far `value` lies behind the whole, positive where it is worse: in the metric's units, of mae, rmse,
            log_loss and own metrics (which have no upper bound) as share of the whole's value.
        sure_gap: The same for the interval's end that is nearer to the whole.
        found: Whether it was found; else the YAML asks for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    columns: tuple[str, ...]
    rows: int
    value: float
    interval: Interval
    gap: float
    sure_gap: float
    found: bool


class Unjudged(BaseModel):
    """A part of the test rows that is too small to be judged, or does not allow the metric; fields as of `Slice`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    columns: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class Part:
    """A column cut into parts.

    Attributes:
        column: Its name.
        names: What each part is called.
        codes: Shape (n,): the part of each row, -1 for none.
    """

    column: str
    names: tuple[str, ...]
    codes: Array


@dataclass(frozen=True)
class Judged:
    """What slices are cut from: truth and answers of all rows, and the model's metric on them."""

    config: ModelConfig
    labels: tuple[str, ...]
    truth: Array
    answers: Answers
    whole: float

    def slice(self, columns: Sequence[str], where: str, rows: Array, *, found: bool) -> Slice | None:
        """Measure some rows, given by number; None where they do not allow the metric."""
        values = self._metric(rows)
        if values is None:
            return None
        value, resampled = values
        ends = interval(resampled, self.config.evaluation.confidence)
        if ends is None or not np.isfinite(value):
            return None
        greater = greater_is_better(self.config.metric, self.config.evaluation.metrics)
        near = ends.high if greater else ends.low
        return Slice(
            where=where,
            columns=tuple(columns),
            rows=len(rows),
            value=value,
            interval=ends,
            gap=self._gap(value, greater),
            sure_gap=self._gap(near, greater),
            found=found,
        )

    def _gap(self, value: float, greater: bool) -> float:
        gap = self.whole - value if greater else value - self.whole
        shared = self.config.metric in UNBOUNDED or self.config.metric in self.config.evaluation.metrics
        return gap / abs(self.whole) if shared and self.whole else gap

    def _metric(self, rows: Array) -> tuple[float, Array] | None:
        """The model's metric on some rows, and in each resample of them."""
        config, metric = self.config, self.config.metric
        probabilities = None if self.answers.probabilities is None else self.answers.probabilities[rows]
        truth, answers = self.truth[rows], Answers(self.answers.values[rows], probabilities)
        if own := config.evaluation.metrics.get(metric):
            try:
                value = own_metric(metric, own, truth, answers.values, probabilities)
            except DataError:
                return None
            if value is None:
                return None
            return value, resample_own(config, truth, answers.values, probabilities, {metric: value})[metric]
        # Where the whole is counted in cells, so are its slices, in fewer.
        group: Grouping = partial(cells, most=CELLS, plain=4 * CELLS) if len(self.truth) > PLAIN_ROWS else cells
        grouped = prepared(config, self.labels, truth, answers, group)
        figures, wanted = grouped.figures, "rmse" if metric == "r2" else metric
        if not isinstance(grouped, Estimated):
            figures = grouped.area_figures if metric in AREAS else grouped.sum_figures
        value = rough = estimates(figures, grouped.cells)[wanted]
        if metric in AREAS:
            value = exact_areas(config, self.labels, truth, answers, grouped).get(wanted, rough)
        values = resample(figures, grouped.cells.sizes, config.evaluation.resamples, config.seed)[wanted]
        values += value - rough
        if metric == "r2":
            spread = float(np.var(self.truth))
            return 1 - value**2 / spread, 1 - values**2 / spread
        return value, values


def slices(
    config: ModelConfig, labels: Sequence[str], test: pd.DataFrame, answers: Answers, whole: float
) -> tuple[Slice, ...]:
    """The slices that the YAML asks for, in its order, then the worst ones that are found, the worst first.

    Looked for among the parts of one column or two, by each row's loss: those whose mean loss is most surely (the
    lower end of its 95 % interval) above the whole's are measured. Two columns are looked at together where they are
    surely worse than each alone. A slice that lies for more than half in worse ones is left out. Columns that are
    personal, or text, are never looked at.

    Args:
        config: The model.
        labels: Classes in the order of the probabilities' columns; empty for regression.
        test: Typed test rows with the target.
        answers: What the model said to them.
        whole: Its metric on all of them.
    """
    asked = config.evaluation.slices
    truth = test[config.target.column].to_numpy()
    judged = Judged(config, tuple(labels), truth if labels else truth.astype(np.float64), answers, whole)
    parts = {part.column: part for part in _parts(config, test)}
    known = []
    for column in asked.columns:
        for name, rows in _members(parts.get(column), asked.min_rows):
            known.append(judged.slice((column,), name, rows, found=False))
    found = []
    for columns, name, rows in _worst(judged, list(parts.values())):
        found.append(judged.slice(columns, name, rows, found=True))
    worse = sorted((one for one in found if one and one.gap > 0), key=lambda one: -one.sure_gap)
    return (*(one for one in known if one), *worse[: asked.find])


def unjudged(config: ModelConfig, test: pd.DataFrame, judged: Sequence[Slice]) -> tuple[Unjudged, ...]:
    """The slices that the YAML asks for and that are not among the `judged` ones."""
    known = {one.where for one in judged}
    parts = {part.column: part for part in _parts(config, test, config.evaluation.slices.columns)}
    return tuple(
        Unjudged(where=name, columns=(column,), rows=len(rows))
        for column in config.evaluation.slices.columns
        for name, rows in _members(parts.get(column), 1)
        if name not in known
    )


def slice_names(column: str, value: str) -> tuple[str, ...]:
    """What the slice of one value of a column may be called; `missing` is also the slice without a value."""
    of_value = f"{column} = {_text(value)}"
    return (of_value, f"{column} {MISSING}") if value == MISSING else (of_value,)


def slice_gap(slices: Sequence[Slice]) -> float | None:
    """How far the worst slice surely lies behind the whole, at least 0; None without slices. See `Slice.gap`."""
    return max((0.0, *(one.sure_gap for one in slices))) if slices else None


def _parts(config: ModelConfig, test: pd.DataFrame, only: Sequence[str] | None = None) -> Iterator[Part]:
    kinds = {name: column.type for name, column in config.columns.items() if not column.personal}
    derived = {name: e for name, e in expressions(config).items() if set(config.derived[name].inputs) <= set(test)}
    made = derive(test, derived)
    for name in (*kinds, *derived):
        if only is not None and name not in only:
            continue
        if name in made:
            yield _part(name, made[name])
        elif name in test and kinds[name] != "text":
            yield _part(name, test[name])


def _part(name: str, values: "pd.Series[Any]") -> Part:
    """Quarters of numbers and dates with more than four values, else every value; missing ones are a part."""
    missing = values.isna().to_numpy()
    if values.dtype.kind in "iufM" and values.nunique() > 4:
        edges = np.unique(values[~missing].quantile([0.25, 0.5, 0.75], interpolation="lower").to_numpy())
        codes = np.searchsorted(edges, values.to_numpy(), side="left")
        texts = [_text(edge) for edge in edges]
        between = [f"above {low} up to {high}" for low, high in itertools.pairwise(texts)]
        names = [f"{name} up to {texts[0]}", *(f"{name} {text}" for text in between), f"{name} above {texts[-1]}"]
    else:
        codes, found = pd.factorize(values)
        kept = np.argsort(-np.bincount(codes[~missing], minlength=len(found)), kind="stable")[:VALUES]
        place = np.full(len(found) + 1, -1)
        place[kept] = np.arange(len(kept))
        codes, names = place[codes], [f"{name} = {_text(found[at])}" for at in kept]
    return Part(name, (*names, f"{name} {MISSING}"), np.where(missing, len(names), codes))


def _text(value: Any) -> str:
    if isinstance(value, np.datetime64 | pd.Timestamp):
        return str(pd.Timestamp(value).date())
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)[:40]


def _members(part: Part | None, least: int) -> Iterator[tuple[str, Array]]:
    for code, name in enumerate(part.names if part else ()):
        rows = np.flatnonzero(part.codes == code) if part else np.empty(0)
        if least <= len(rows):
            yield name, rows


@dataclass(frozen=True)
class _Crossing:
    """One or two columns' parts, and how surely each combination's mean loss lies above the whole's."""

    parts: tuple[Part, ...]
    mean: Array
    sure: Array

    def of(self, code: int) -> tuple[str, Array]:
        """Name and rows of a combination."""
        places = np.unravel_index(code, [len(part.names) for part in self.parts])
        chosen = [(part.names[place], part.codes == place) for part, place in zip(self.parts, places, strict=True)]
        return " and ".join(name for name, _ in chosen), np.flatnonzero(np.all([rows for _, rows in chosen], axis=0))


def _worst(judged: Judged, parts: Sequence[Part]) -> Iterator[tuple[tuple[str, ...], str, Array]]:
    """The slices to be measured: columns, name, rows."""
    asked = judged.config.evaluation.slices
    if not asked.find:
        return
    losses = _losses(judged)
    single = [_cross(losses, asked.min_rows, part) for part in parts]
    hard = sorted(np.argsort([-one.sure.max() for one in single], kind="stable")[:CROSSED].tolist())
    pairs = [
        _cross(losses, asked.min_rows, *(single[at].parts[0] for at in pair), singles=[single[at].mean for at in pair])
        for pair in itertools.combinations(hard, 2)
    ]
    crossings = [*single, *pairs]
    order = sorted(
        (
            (sure, at, code)
            for at, one in enumerate(crossings)
            for code, sure in enumerate(one.sure.tolist())
            if sure > 0
        ),
        key=lambda found: (-found[0], found[1], found[2]),
    )
    taken, left = np.zeros(len(losses), dtype=bool), TRIED * asked.find
    for _, at, code in order:
        name, rows = crossings[at].of(code)
        if not left:
            return
        if 2 * taken[rows].sum() <= len(rows):
            taken[rows] = True
            left -= 1
            yield tuple(part.column for part in crossings[at].parts), name, rows


def _cross(losses: Array, least: int, *parts: Part, singles: Sequence[Array] = ()) -> _Crossing:
    """One column's parts, or two's where they are worse than both alone, of whose mean losses `singles` tells."""
    shape = [len(part.names) for part in parts]
    within = np.all([part.codes >= 0 for part in parts], axis=0)
    codes = np.ravel_multi_index([part.codes[within] for part in parts], shape)
    inside = losses[within]
    rows, sums, squares = (
        np.bincount(codes, weights=weights, minlength=np.prod(shape)) for weights in (None, inside, inside**2)
    )
    mean = sums / np.maximum(rows, 1)
    error = np.sqrt(np.maximum(squares / np.maximum(rows, 1) - mean**2, 0.0) / np.maximum(rows, 1))
    judged = (rows >= least) & (rows < len(losses))
    if singles:
        judged &= mean - APART * error > np.maximum.outer(*singles).ravel()
    return _Crossing(parts, mean, np.where(judged, mean - NEAR * error - losses.mean(), -np.inf))


def _losses(judged: Judged) -> Array:
    """What each row adds to the error: 0 or 1 where only the label counts, else log loss or squared error."""
    metric, answers = judged.config.metric, judged.answers
    if answers.probabilities is None:
        errors = np.abs(answers.values - judged.truth)
        return errors if metric == "mae" else errors**2
    codes = class_codes(judged.labels, judged.truth)
    if metric in (*AREAS, "log_loss", "brier", "ece"):
        logs, squares = row_losses(codes, answers.probabilities)
        return logs if metric == "log_loss" else squares
    return (codes != class_codes(judged.labels, answers.values)).astype(np.float64)
