"""Evaluating: champion and challenger on the same raw rows, none of which either was trained on."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from zenml import step

from bentos.release import Answers, Release
from bentos.schema import encode
from models.config import ModelConfig
from models.errors import WorkError, bounded
from stacks import registry, runs
from stacks.commit import COMMIT_TAG, commit
from steps.behaviour import Behaved, check_behaviour
from steps.bootstrap import Interval
from steps.caching import cached_by, forget, parse_config
from steps.compare import Comparison, compare
from steps.crossval import dummy_answer
from steps.explanations import draw_explanations, explain
from steps.facts import EVALUATION, EVALUATION_FOLDER, FACTS, facts_of
from steps.fairness import assess_fairness
from steps.fairness_plot import fairness_plot
from steps.fairness_report import FairnessReport
from steps.families import one_thread, plain_linear
from steps.holdout import draw_holdout, write_holdout
from steps.measure import CalibrationBin, ClassFigures, CrossValidated, cross_validated, measure
from steps.metrics import compute_metrics, greater_is_better
from steps.paired import Difference, Paired
from steps.partitions import Partitions
from steps.plots import (
    calibration_plot,
    confusion_plot,
    pr_plot,
    residual_plot,
    residual_spread_plot,
    roc_plot,
    slices_plot,
)
from steps.slices import Slice, Unjudged, slices, unjudged
from steps.train import fit_family
from steps.validate import QualityReport

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Array = np.ndarray[Any, Any]
LOG = logging.getLogger(__name__)


class Evaluation(BaseModel):
    """What a challenger is worth, beside the champion and the simplest models.

    Attributes:
        model: Name of the model.
        release_digest: The challenger's Release digest.
        data_digest: Digest of the data it comes from.
        metric: The figure that decides.
        greater_is_better: Whether a larger one is better.
        smaller_is_better: The user's own figures of which a smaller one is better.
        challenger: Its figures on all test rows.
        champion_version: The champion of that moment.
        champion: The champion's figures on the compared rows; None when there is nothing to compare (see notes).
        challenger_compared: The challenger's figures on the same rows.
        paired: By how much the challenger is better, with its bounds; None where there are no champion's figures.
        differences: The same of every figure that both have, by its name; empty in evaluations of earlier releases.
        rows: How many rows were compared: neither was trained on any of them.
        test_rows: How many test rows there are.
        dummy: The metric of a model that ignores its input, on the test rows.
        linear: The metric of the plain linear pipeline, fitted on the training rows, on the test rows.
        quality_score: The data's, 0 to 100.
        mlflow_run_id: The run that holds figures and plots.
        behaviour: What came of each of the YAML's behavioural checks.
        notes: What a reader of the figures has to know.
        importance: Input to what shuffling it costs in the metric, the 50 largest.
        effects: Input to its mean absolute effect on the answers (global SHAP importance), the 50 largest.
        effects_scale: What effects are measured in.
        champion_effects: The champion's on the same test rows.
        importance_drift: Total variation distance, 0 to 1, between the two models' shares of effect by column.
        tokens: Class to its terms and their mean signed effects, of a model that reads text.
        intervals: Figure of the challenger to its bootstrap interval on all test rows.
        classes: The same class by class; empty for a regression.
        calibration: The challenger's probabilities beside what happened; empty for a regression.
        slices: Parts of the test rows: those that the YAML asks for, then the worst ones found.
        unjudged: Slices that the YAML asks for and that are too small, or do not allow the metric.
        cross_validation: What the challenger's configuration scored on the folds of the training rows.
        fairness: Rates of the groups of sensitive columns; None where there is no such column.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    release_digest: str
    data_digest: str
    metric: str
    greater_is_better: bool
    smaller_is_better: tuple[str, ...] = ()
    challenger: dict[str, float]
    champion_version: int | None = None
    champion: dict[str, float] | None = None
    challenger_compared: dict[str, float] | None = None
    paired: Paired | None = None
    differences: dict[str, Difference] = Field(default_factory=dict)
    rows: int
    test_rows: int
    dummy: float
    linear: float
    quality_score: float
    mlflow_run_id: str
    behaviour: tuple[Behaved, ...] = ()
    importance: dict[str, float] | None = None
    effects: dict[str, float] | None = None
    effects_scale: str | None = None
    champion_effects: dict[str, float] | None = None
    importance_drift: float | None = None
    tokens: dict[str, dict[str, float]] | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    classes: tuple[ClassFigures, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    slices: tuple[Slice, ...] = ()
    unjudged: tuple[Unjudged, ...] = ()
    cross_validation: CrossValidated | None = None
    fairness: FairnessReport | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """What was said to all test rows, and those of them that are looked at more closely.

    Attributes:
        truth: Shape (n,): labels or numbers.
        answers: The challenger's, to the n rows.
        linear: What the plain linear pipeline said to them: shape (n, k) or (n,).
        known: The targets of all training rows.
        compared: Champion and challenger on the rows that neither was trained on.
        train: Training rows that the simplest models were fitted on.
        looked: Test rows that behaviour, slices and fairness are judged by.
        said: The challenger's answers to these.
        notes: What a reader of the figures has to know.
    """

    truth: Array
    answers: Answers
    linear: Array
    known: "pd.Series[Any]"
    compared: Comparison
    train: pd.DataFrame
    looked: pd.DataFrame
    said: Answers
    notes: tuple[str, ...] = ()


def evaluate_release(
    release: Release,
    train: pd.DataFrame,
    test: pd.DataFrame,
    quality_score: float,
    champion: Release | None = None,
    champion_version: int | None = None,
) -> Evaluation:
    """Judge a Release on its test rows, and beside the champion on those that neither was trained on.

    Args:
        release: The challenger.
        train: Typed training rows with the target, for the simplest models only.
        test: Typed test rows with the target.
        quality_score: The data's, 0 to 100.
        champion: The champion's Release; None for the first model.
        champion_version: Its version.

    Raises:
        DataError: The test rows do not allow the model's metric.
    """
    config = release.config
    compared = Comparison(0, None, None)
    with one_thread():
        answers = release.answer(test)
        if champion is not None:
            compared = compare(config, release, champion, f"v{champion_version}", test)
        linear = linear_answer(plain_pipeline(config, train), test)
    known = train[config.target.column]
    truth = test[config.target.column].to_numpy()
    found = Scored(truth, answers, linear, known, compared, train, test, answers)
    return evaluation_of(release, found, quality_score, champion_version)


def evaluation_of(
    release: Release, found: Scored, quality_score: float, champion_version: int | None = None
) -> Evaluation:
    """Judge a Release by what it, the champion and the simplest models said to the test rows.

    Raises:
        DataError: The test rows do not allow the model's metric.
    """
    config, labels, compared = release.config, release.schema.labels, found.compared
    with one_thread():
        behaviour = check_behaviour(release, found.looked)
    figures = compute_metrics(config, labels, found.truth, found.answers)
    measured = measure(config, labels, found.truth, found.answers)
    dummy, linear = _simplest(config, labels, found)
    parts = slices(config, labels, found.looked, found.said, figures[config.metric])
    return Evaluation(
        model=config.name,
        release_digest=release.digest,
        data_digest=release.data_digest,
        metric=config.metric,
        greater_is_better=greater_is_better(config.metric, config.evaluation.metrics),
        smaller_is_better=tuple(name for name, own in config.evaluation.metrics.items() if not own.greater_is_better),
        challenger=figures,
        champion_version=champion_version,
        champion=compared.champion,
        challenger_compared=compared.challenger,
        paired=compared.paired,
        differences=compared.differences(measured.drawn if _are_all(compared, found, labels) else None),
        rows=compared.rows,
        test_rows=len(found.truth),
        dummy=dummy,
        linear=linear,
        quality_score=quality_score,
        mlflow_run_id=str(release.evidence.get("mlflow_run", {}).get("run_id", "")),
        behaviour=behaviour,
        notes=(*compared.notes, *found.notes),
        intervals=measured.intervals,
        classes=measured.classes,
        calibration=measured.calibration,
        slices=parts,
        unjudged=unjudged(config, found.looked, parts),
        cross_validation=cross_validated(release.evidence.get("tuning")),
        fairness=assess_fairness(release, found.train, found.looked, found.said),
    )


def _are_all(compared: Comparison, found: Scored, labels: Sequence[str]) -> bool:
    """Whether the compared rows are all test rows, judged by the challenger's own classes."""
    sides = compared.sides
    return sides is not None and len(sides.truth) == len(found.truth) and sides.labels == tuple(labels)


def record(
    evaluation: Evaluation,
    release: Release,
    test: pd.DataFrame,
    champion: Release | None = None,
    truth: Array | None = None,
) -> Evaluation:
    """Explain a Release, beside the champion, and write figures, plots and holdout scores to its MLflow run.

    Args:
        evaluation: What it is worth.
        release: The Release.
        test: Typed test rows with the target.
        champion: The champion's Release.
        truth: The targets of all test rows, where `test` holds some of them.

    Returns:
        The evaluation with its explanations and the id of the run that holds them.

    Raises:
        WorkError: MLflow refused, or effects do not add up to the answers.
    """
    explanations = explain(release, test, champion)
    evaluation = evaluation.model_copy(
        update={**explanations.told(), "notes": (*evaluation.notes, *explanations.notes)}
    )
    run_id = runs.same_run(evaluation.model, evaluation.mlflow_run_id)
    figures = {f"test_{name}": value for name, value in evaluation.challenger.items()}
    for name, ends in evaluation.intervals.items():
        figures |= {f"test_{name}_low": ends.low, f"test_{name}_high": ends.high}
    figures |= {
        f"test_{evaluation.metric}_dummy": evaluation.dummy,
        f"test_{evaluation.metric}_linear": evaluation.linear,
        "quality_score": evaluation.quality_score,
    }
    if evaluation.champion is not None:
        figures[f"compared_{evaluation.metric}_champion"] = evaluation.champion[evaluation.metric]
    if evaluation.fairness is not None:
        figures |= {f"test_{name}": value for name, value in evaluation.fairness.figures().items()}
    if evaluation.importance_drift is not None:
        figures["importance_drift"] = evaluation.importance_drift
    known = commit()
    runs.log_run(run_id, metrics=figures, tags={COMMIT_TAG: known} if known else {})
    with tempfile.TemporaryDirectory() as folder:
        draw(release, test, Path(folder))
        draw_explanations(explanations, release, Path(folder))
        tested = test if truth is None else pd.DataFrame({release.schema.target: truth})
        (Path(folder) / FACTS).write_text(facts_of(release, tested).model_dump_json(indent=2))
        draw_judged(evaluation, Path(folder))
        write_holdout(Path(folder), draw_holdout(release, test))
        if evaluation.fairness is not None:
            fairness_plot(Path(folder) / "fairness.png", evaluation.fairness)
        evaluation = evaluation.model_copy(update={"mlflow_run_id": run_id})
        (Path(folder) / EVALUATION).write_text(evaluation.model_dump_json(indent=2))
        runs.log_files(run_id, Path(folder), EVALUATION_FOLDER)
    return evaluation


def draw(release: Release, test: pd.DataFrame, folder: Path) -> None:
    """Draw the plots of a Release's answers to its test rows into a folder."""
    answers, labels = release.answer(test), release.schema.labels
    truth = test[release.config.target.column].to_numpy()
    if answers.probabilities is None:
        residual_plot(folder / "residuals.png", np.asarray(truth, dtype=np.float64), answers.values)
        residual_spread_plot(folder / "residual_spread.png", np.asarray(truth, dtype=np.float64), answers.values)
    else:
        confusion_plot(folder / "confusion_matrix.png", labels, truth, answers.values)
        roc_plot(folder / "roc.png", labels, truth, answers.probabilities)
        pr_plot(folder / "precision_recall.png", labels, truth, answers.probabilities)


def draw_judged(evaluation: Evaluation, folder: Path) -> None:
    """Draw calibration and slices, where there are any, into a folder."""
    if evaluation.calibration:
        two = len(evaluation.classes) == 2
        said = f"probability of {evaluation.classes[1].label[:20]}" if two else "the most probable class"
        calibration_plot(folder / "calibration.png", evaluation.calibration, said)
    if evaluation.slices:
        whole = evaluation.challenger[evaluation.metric]
        slices_plot(folder / "slices.png", evaluation.slices, evaluation.metric, whole)


def plain_pipeline(config: ModelConfig, train: pd.DataFrame) -> "Pipeline":
    """The plain linear pipeline, fitted."""
    return fit_family(config, plain_linear(config), {}, train)


def linear_answer(pipeline: "Pipeline", rows: pd.DataFrame) -> Array:
    """What a fitted pipeline says to typed rows: shape (n, k), probabilities, or (n,), numbers."""
    said = pipeline.predict_proba(rows) if hasattr(pipeline, "predict_proba") else pipeline.predict(rows)
    return np.asarray(said, dtype=np.float64)


def _simplest(config: ModelConfig, labels: Sequence[str], found: Scored) -> tuple[float, float]:
    """The metric on the test rows of a model that ignores its input, and of the plain linear pipeline."""
    known = encode(labels, found.known).to_numpy() if labels else found.known.to_numpy(np.float64)
    figures = []
    for answered in (dummy_answer(config, known, len(found.truth), len(labels)), found.linear):
        answers = Answers(answered, None)
        if labels:
            answers = Answers(np.array(labels, dtype=object)[answered.argmax(axis=1)], answered)
        figures.append(compute_metrics(config, labels, found.truth, answers)[config.metric])
    return figures[0], figures[1]


@step(cache_policy=cached_by(__name__))
def evaluate(
    config: str,
    release: Path,
    train: pd.DataFrame | Partitions,
    test: pd.DataFrame | Partitions,
    report: QualityReport,
    champion_version: int | None,
) -> Annotated[Evaluation, "evaluation"]:
    """Judge a Release on its test rows, and beside the champion of this moment."""
    challenger = Release.open(release)
    champion, notes = _champion(parse_config(config).name, champion_version)
    if isinstance(train, Partitions) and isinstance(test, Partitions):
        from steps.evaluate_parts import score_partitions

        found = score_partitions(challenger, train, test, champion, champion_version)
        judged = evaluation_of(challenger, found, report.score, champion_version)
        return record(_noted(judged, notes), challenger, found.looked, champion, found.truth)
    assert isinstance(train, pd.DataFrame) and isinstance(test, pd.DataFrame)
    judged = evaluate_release(challenger, train, test, report.score, champion, champion_version)
    return record(_noted(judged, notes), challenger, test, champion)


def _champion(model: str, version: int | None) -> tuple[Release | None, tuple[str, ...]]:
    """The champion's Release where there is one to be read, and why it cannot be read."""
    if version is None:
        return None, ()
    try:
        return Release.open(registry.release_dir(model, version)), ()
    except WorkError as error:
        LOG.warning("%s: there is no comparison with v%d: %s", model, version, error)
        forget()
        return None, (f"the Release of v{version} cannot be read: {bounded(str(error), 300)}",)


def _noted(evaluation: Evaluation, notes: tuple[str, ...]) -> Evaluation:
    return evaluation.model_copy(update={"notes": (*notes, *evaluation.notes)})
