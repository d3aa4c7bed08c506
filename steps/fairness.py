"""Fairness: how a model's rates differ between groups of the sensitive columns and where they cross."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bentos.release import Answers, Release
from models.config import ModelConfig
from models.errors import ConfigError, guess
from steps.cells import MOST_GROUPS, RATES, Cells, Crossing, count_cells, cross, fractions, resample, tally_matrix
from steps.fairness_report import FairnessReport, Gap, Group, Grouping, PlainModel, Rate, Side, badness
from steps.families import one_thread
from steps.gaps import Contest, Difference, differences, percentiles
from steps.groups import OTHERS, Groups, crossings, group_rows
from steps.metrics import compute_metrics
from steps.reweigh import unweighed
from steps.train import fit_pipeline

Array = np.ndarray[Any, Any]

MEAN_ERROR = "mean_error"


def assess_fairness(
    release: Release, train: pd.DataFrame, test: pd.DataFrame, answers: Answers
) -> FairnessReport | None:
    """Measure a Release's fairness; where its training rows were weighed, beside the same model without weights.

    Args:
        release: The challenger.
        train: Typed training rows with the target, to fit the model without weights.
        test: Typed test rows with the target.
        answers: What the Release says to them.

    Returns:
        None where no column is sensitive.

    Raises:
        ConfigError: `fairness.positive` is none of the classes.
        WorkError: The model without weights cannot be fitted.
    """
    config, labels = release.config, release.schema.labels
    report = measure_fairness(config, labels, test, answers)
    if report is None or not config.fairness.reweigh:
        return report
    from sklearn.base import clone

    pipeline = fit_pipeline(unweighed(config), release.family, clone(release.pipeline), train)
    with one_thread():
        said = np.asarray(pipeline.predict_proba(test), dtype=np.float64)
    plain = Answers(np.array(labels, dtype=object)[said.argmax(axis=1)], said)
    beside = measure_fairness(config, labels, test, plain)
    truth = test[config.target.column].to_numpy()
    metric, reweighed = (compute_metrics(config, labels, truth, a)[config.metric] for a in (plain, answers))
    gaps = beside.gaps if beside else ()
    return report.model_copy(update={"plain": PlainModel(metric=metric, reweighed=reweighed, gaps=gaps)})


def measure_fairness(
    config: ModelConfig, labels: Sequence[str], test: pd.DataFrame, answers: Answers
) -> FairnessReport | None:
    """Compare the groups of the sensitive columns, and of up to `fairness.intersections` of them crossed.

    A label counts also where the model would abstain. With two classes, or where `fairness.positive` names one, that
    class is the selected one; with more, each in turn is against the rest (its TPR is its recall), the intervals hold
    for all of them, and of each gap the worst class is kept and named. A regression selects nobody: its mean error in
    each group is shown, with an interval of the central limit theorem.

    Args:
        config: The model.
        labels: Its classes in the order of their codes; empty for a regression.
        test: Typed test rows with the target.
        answers: What the model says to them.

    Returns:
        None where no column is sensitive.

    Raises:
        ConfigError: `fairness.positive` is none of the classes.
    """
    columns = config.sensitive_names()
    if not columns:
        return None
    groups = {name: group_rows(config, test, name) for name in columns}
    truth = test[config.target.column]
    if not labels:
        return _of_numbers(config, groups, answers.values - truth.to_numpy(np.float64))
    return _of_classes(config, labels, count_cells(groups, _codes(labels, truth), _codes(labels, answers.values)))


@dataclass(frozen=True)
class _Measured:
    """One class against the rest in one grouping."""

    crossing: Crossing
    positive: int
    contest: Contest
    gaps: Mapping[str, Difference]


def _of_classes(config: ModelConfig, labels: Sequence[str], cells: Cells) -> FairnessReport:
    asked, settings = config.fairness, config.evaluation
    chosen = crossings(cells.columns, asked.intersections)
    crossed = [cross(cells, columns, asked.min_rows) for columns in chosen]
    measured = _measure(config, cells, crossed, _positives(config, labels))
    gaps = [
        max(found, key=badness)
        for rate in RATES
        for columns in chosen
        if (found := [_gap(m, rate, labels) for m in measured if m.crossing.columns == columns and rate in m.gaps])
    ]
    worst = max((gap for gap in gaps if gap.rate == "tpr"), key=badness, default=None)
    shown = worst.positive if worst else labels[measured[0].positive]
    return FairnessReport(
        positive=shown,
        confidence=settings.confidence,
        resamples=settings.resamples,
        min_rows=asked.min_rows,
        groupings=tuple(_grouping(config, cells, m) for m in measured if labels[m.positive] == shown),
        gaps=tuple(gaps),
        notes=tuple(_notes(labels, measured, shown)),
    )


def _notes(labels: Sequence[str], measured: Sequence[_Measured], shown: str) -> Iterator[str]:
    if len({m.positive for m in measured}) > 1:
        yield f"{len(labels)} classes, each against the rest; rates shown are those of '{shown}'"
    for crossing in {m.crossing.columns: m.crossing for m in measured}.values():
        if crossing.beyond:
            yield f"{' × '.join(crossing.columns)}: {crossing.beyond} smaller groups are neither shown nor judged"


def _measure(
    config: ModelConfig, cells: Cells, crossed: Sequence[Crossing], positives: Sequence[int]
) -> list[_Measured]:
    from scipy.sparse import hstack

    pairs = [(crossing, positive) for crossing in crossed for positive in positives]
    matrices = [tally_matrix(cells, *pair) for pair in pairs]
    drawn = resample(cells, hstack(matrices, format="csr"), config.evaluation.resamples, config.seed)
    parts = np.split(drawn, np.cumsum([matrix.shape[1] for matrix in matrices])[:-1], axis=1)
    contests = [
        Contest(
            np.asarray(cells.counts @ matrix).reshape(4, -1),
            part.reshape(len(part), 4, -1),
            crossing.judged(config.fairness.min_rows),
        )
        for (crossing, _), matrix, part in zip(pairs, matrices, parts, strict=True)
    ]
    found = differences(contests, config.evaluation.confidence)
    return [_Measured(*pair, contest, gaps) for pair, contest, gaps in zip(pairs, contests, found, strict=True)]


def _grouping(config: ModelConfig, cells: Cells, measured: _Measured) -> Grouping:
    crossing = measured.crossing
    estimates = group_rates(cells, crossing, measured.positive)
    low, high = percentiles(measured.contest, config.evaluation.confidence)
    judged = crossing.judged(config.fairness.min_rows)
    groups = [
        Group(
            values=values,
            rows=int(crossing.rows[at]),
            judged=bool(judged[at]),
            rates={
                rate: Rate(value=float(estimates[rate][at]), low=float(low[place, at]), high=float(high[place, at]))
                for place, rate in enumerate(RATES)
                if np.isfinite(low[place, at])
            },
        )
        for at, values in enumerate(crossing.names)
    ]
    return Grouping(columns=crossing.columns, groups=tuple(groups), beyond=crossing.beyond, unjudged=crossing.unjudged)


def group_rates(cells: Cells, crossing: Crossing, positive: int) -> pd.DataFrame:
    """The rates of every group by fairlearn's `MetricFrame`, each cell weighing as many rows as it holds.

    Returns:
        One row for each group of the crossing, in order, and a column for each rate; 0 where it is undefined.
    """
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import precision_score

    def precision(y_true: Array, y_pred: Array, sample_weight: Array) -> float:
        return float(precision_score(y_true, y_pred, sample_weight=sample_weight, zero_division=0))

    inside = crossing.codes >= 0
    weights = {"sample_weight": cells.counts[inside]}
    functions = (selection_rate, true_positive_rate, false_positive_rate, precision)
    frame = MetricFrame(
        metrics=dict(zip(RATES, functions, strict=True)),
        y_true=(cells.truth == positive)[inside].astype(int),
        y_pred=(cells.predicted == positive)[inside].astype(int),
        sensitive_features=crossing.codes[inside],
        sample_params=dict.fromkeys(RATES, weights),
    )
    return frame.by_group.sort_index()


def _gap(measured: _Measured, rate: str, labels: Sequence[str]) -> Gap:
    found, crossing = measured.gaps[rate], measured.crossing
    above, below = (part[RATES.index(rate)] for part in fractions(measured.contest.tally))

    def side(at: int) -> Side:
        name, rate = " and ".join(crossing.names[at]), float(above[at] / below[at])
        return Side(group=name, rate=rate, of=int(below[at]), rows=int(crossing.rows[at]))

    return Gap(
        rate=rate,
        columns=crossing.columns,
        positive=labels[measured.positive],
        value=found.value,
        low=found.low,
        high=found.high,
        higher=side(found.higher),
        lower=side(found.lower),
    )


def _of_numbers(config: ModelConfig, groups: Mapping[str, Groups], errors: Array) -> FairnessReport:
    from scipy.stats import norm

    half = float(norm.ppf((1 + config.evaluation.confidence) / 2))
    rows = pd.DataFrame({name: group.codes for name, group in groups.items()}).assign(**{MEAN_ERROR: errors})
    groupings = []
    for columns in crossings(tuple(groups), config.fairness.intersections):
        by = rows.groupby(list(columns))[MEAN_ERROR].agg(["mean", "sem", "size"])
        largest = by.nlargest(MOST_GROUPS, "size").sort_index()
        found = []
        for key, mean, error, size in largest.itertuples():
            codes = key if isinstance(key, tuple) else (key,)
            values = tuple(groups[name].names[code] for name, code in zip(columns, codes, strict=True))
            rates = (
                {MEAN_ERROR: Rate(value=mean, low=mean - half * error, high=mean + half * error)} if size > 1 else {}
            )
            judged = size >= config.fairness.min_rows and OTHERS not in values
            found.append(Group(values=values, rows=size, judged=judged, rates=rates))
        groupings.append(Grouping(columns=columns, groups=tuple(found), beyond=len(by) - len(found)))
    return FairnessReport(
        positive="",
        confidence=config.evaluation.confidence,
        resamples=0,
        min_rows=config.fairness.min_rows,
        groupings=tuple(groupings),
        notes=("a regression selects nobody: mean errors (predicted minus true) are shown, no gap is judged",),
    )


def _positives(config: ModelConfig, labels: Sequence[str]) -> list[int]:
    named = config.fairness.positive
    if named is not None and named not in labels:
        raise ConfigError(f"fairness.positive: the model has no class '{named}'{guess(named, list(labels))}")
    if named is not None:
        return [list(labels).index(named)]
    return [1] if len(labels) == 2 else list(range(len(labels)))


def _codes(labels: Sequence[str], values: Any) -> Array:
    return pd.Index(labels).get_indexer(pd.Index(values)).astype(np.int64)
