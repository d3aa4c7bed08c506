"""Measuring: every figure of a model's answers with its interval, whole and by class, and how calibrated they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig
from steps.bootstrap import Cells, Figures, Grouping, Interval, cells, each_row, interval, resample
from steps.figures import BY_CLASS, Classified, Estimated, classified, estimated
from steps.metrics import ECE_BINS, calibration_gaps, class_codes
from steps.own import own_metrics, resample_own

if TYPE_CHECKING:
    from bentos.release import Answers

Array = np.ndarray[Any, Any]


class ClassFigures(BaseModel):
    """One class against the rest: precision, recall, f1, roc_auc, pr_auc (those that the rows allow).

    Attributes:
        label: The class.
        rows: Test rows that are of it.
        figures: Figure to value.
        intervals: Figure to its interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    rows: int
    figures: dict[str, float]
    intervals: dict[str, Interval]


class CalibrationBin(BaseModel):
    """Rows whose probability lies between two bounds, see `steps.metrics.calibration_gaps`.

    Attributes:
        low: Lower bound, exclusive.
        high: Upper bound, inclusive.
        rows: How many there are; bins without rows are left out.
        said: Mean probability.
        happened: Share of the rows where it came true.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    rows: int
    said: float
    happened: float


class CrossValidated(BaseModel):
    """What the chosen configuration scored in tuning, on folds of the training rows.

    Attributes:
        mean: Mean of the model's metric over the folds.
        spread: Standard deviation between the folds.
        folds: The scores; None where a fold does not allow the metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    spread: float
    folds: tuple[float | None, ...]


@dataclass(frozen=True)
class Measured:
    """How sure a model's figures are, class by class too, and how calibrated it is.

    Attributes:
        intervals: Figure to its interval.
        classes: Each class against the rest; none in a regression.
        calibration: Its probabilities beside what happened; none in a regression.
        drawn: Where each row is drawn by itself, as `drawn` has it; else empty.
    """

    intervals: dict[str, Interval]
    classes: tuple[ClassFigures, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    drawn: Mapping[str, Array] = field(default_factory=dict, repr=False, compare=False)


def measure(config: ModelConfig, labels: Sequence[str], truth: Array, answers: "Answers") -> Measured:
    """Intervals of every figure of a task, whole and by class.

    Args:
        config: The model; `evaluation` says how many resamples and which confidence.
        labels: Classes in the order of the probabilities' columns; empty for regression.
        truth: Shape (n,): labels, or numbers for regression.
        answers: What the model said to the same rows.

    Raises:
        DataError: An own metric fails on the rows.
    """
    truth = truth if labels else np.asarray(truth, dtype=np.float64)
    grouped = prepared(config, labels, truth, answers)
    rough = estimates(grouped.figures, grouped.cells)
    figures = rough | exact_areas(config, labels, truth, answers, grouped)
    values = resample(grouped.figures, grouped.cells.sizes, config.evaluation.resamples, config.seed)
    found = intervals(config, values, rough, figures)
    own = own_metrics(config, truth, answers.values, answers.probabilities)
    own_values = resample_own(config, truth, answers.values, answers.probabilities, own)
    found |= intervals(config, own_values, own, own)
    whole = {name: ends for name, ends in found.items() if is_whole(name)}
    each = _whole(values) | own_values if len(grouped.cells.sizes) == len(truth) else {}
    if answers.probabilities is None:
        return Measured(whole, drawn=each)
    codes = class_codes(labels, truth)
    classes = tuple(_of_class(code, label, codes, figures, found) for code, label in enumerate(labels))
    return Measured(whole, classes, calibration(codes, answers.probabilities), each)


def drawn(
    config: ModelConfig, labels: Sequence[str], truth: Array, answers: "Answers", own: Mapping[str, float]
) -> dict[str, Array]:
    """Every figure of the whole in each resample, where each row is drawn by itself.

    Of the same rows the same are drawn, whatever was answered: the differences of two models' are a paired bootstrap.

    Args:
        config: As `measure` takes it.
        labels: Likewise.
        truth: Likewise.
        answers: Likewise.
        own: The user's own figures of all rows; others in it are not looked at.

    Returns:
        Figure to shape (resamples,), NaN where a resample does not allow it.
    """
    grouped = prepared(config, labels, truth, answers, each_row)
    values = resample(grouped.figures, grouped.cells.sizes, config.evaluation.resamples, config.seed)
    return _whole(values) | resample_own(config, truth, answers.values, answers.probabilities, own)


def prepared(
    config: ModelConfig, labels: Sequence[str], truth: Array, answers: "Answers", group: Grouping = cells
) -> Classified | Estimated:
    """A model's answers as `steps.figures` counts them, in the cells that `group` makes."""
    if answers.probabilities is None:
        return estimated(np.asarray(truth, dtype=np.float64), answers.values, group)
    told = None
    if (least := config.serving.abstain_below) is not None:
        told = answers.probabilities.max(axis=1) >= least
    codes, said = class_codes(labels, truth), class_codes(labels, answers.values)
    return classified(codes, said, answers.probabilities, told, group)


def estimates(figures: Figures, counted: Cells) -> dict[str, float]:
    """Figures of all rows, each counted once; NaN where they do not allow one."""
    return {name: float(values[0]) for name, values in figures(counted.sizes[None].astype(np.float64)).items()}


def exact_areas(
    config: ModelConfig, labels: Sequence[str], truth: Array, answers: "Answers", grouped: Classified | Estimated
) -> dict[str, float]:
    """Areas under curves by each row's own score, where `grouped` has them by cells: sums are exact in cells."""
    if isinstance(grouped, Estimated) or len(grouped.cells.sizes) == len(truth):
        return {}
    by_row = prepared(config, labels, truth, answers, each_row)
    assert isinstance(by_row, Classified)
    return estimates(by_row.area_figures, by_row.cells)


def intervals(
    config: ModelConfig, values: Mapping[str, Array], rough: Mapping[str, float], figures: Mapping[str, float]
) -> dict[str, Interval]:
    """The interval of each figure that the rows and at least half of the resamples allow.

    Args:
        config: The model.
        values: Figure to shape (resamples,): in cells where there are many rows.
        rough: The figures by these cells.
        figures: The exact ones: an interval is moved by what the cells change of its figure.
    """
    found = {}
    for name in values:
        moved = figures[name] - rough[name]
        if np.isfinite(moved) and (ends := interval(values[name], config.evaluation.confidence, moved)) is not None:
            found[name] = ends
    return found


def is_whole(name: str) -> bool:
    """Whether a figure of `steps.figures` is of the whole, and not `<figure>:<code>` of a class."""
    return ":" not in name


def calibration(truth: Array, probabilities: Array) -> tuple[CalibrationBin, ...]:
    """The bins that the expected calibration error is made of; shapes as in `calibration_gaps`."""
    bins, gaps = calibration_gaps(truth, probabilities)
    two = probabilities.shape[1] == 2
    said = probabilities[:, 1] if two else probabilities.max(axis=1)
    rows, sums, errors = (np.bincount(bins, weights=w, minlength=ECE_BINS) for w in (None, said, gaps))
    return tuple(
        CalibrationBin(
            low=number / ECE_BINS,
            high=(number + 1) / ECE_BINS,
            rows=int(rows[number]),
            said=float(sums[number] / rows[number]),
            happened=float((sums[number] - errors[number]) / rows[number]),
        )
        for number in np.flatnonzero(rows).tolist()
    )


def cross_validated(tuning: Mapping[str, Any] | None) -> CrossValidated | None:
    """The folds of the configuration that tuning came to, of a `TuningResult` as a Release keeps it; None without."""
    folds = tuple(tuning.get("fold_scores", ())) if tuning else ()
    known = [score for score in folds if score is not None]
    if not known:
        return None
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return CrossValidated(mean=float(np.mean(known)), spread=spread, folds=folds)


def _of_class(
    code: int, label: str, truth: Array, figures: Mapping[str, float], found: Mapping[str, Interval]
) -> ClassFigures:
    known = {name: figures[f"{name}:{code}"] for name in BY_CLASS}
    return ClassFigures(
        label=label,
        rows=int(np.sum(truth == code)),
        figures={name: value for name, value in known.items() if np.isfinite(value)},
        intervals={name: found[key] for name in BY_CLASS if (key := f"{name}:{code}") in found},
    )


def _whole(values: Mapping[str, Array]) -> dict[str, Array]:
    return {name: each for name, each in values.items() if is_whole(name)}
