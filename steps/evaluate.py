"""Evaluating: champion and challenger on the same raw rows, none of which either was trained on."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from zenml import step

from bentos.frame import to_frame
from bentos.release import Answers, Release
from bentos.schema import encode
from models.config import ModelConfig
from models.errors import DataError
from stacks import registry, runs
from steps.caching import cached_by, parse_config
from steps.crossval import dummy_answer
from steps.families import one_thread, plain_linear
from steps.metrics import compute_metrics, greater_is_better
from steps.plots import confusion_plot, importance_plot, residual_plot, roc_plot
from steps.split import in_test
from steps.train import fit_family
from steps.validate import QualityReport

Array = np.ndarray[Any, Any]

IMPORTANCE_ROWS = 500
IMPORTANCE_COLUMNS = 50
IMPORTANCE_REPEATS = 3


class Evaluation(BaseModel):
    """What a challenger is worth, beside the champion and the simplest models.

    Attributes:
        model: Name of the model.
        release_digest: The challenger's Release digest.
        data_digest: Digest of the data it comes from.
        metric: The figure that decides.
        greater_is_better: Whether a larger one is better.
        challenger: Its figures on all test rows.
        champion_version: The champion of that moment.
        champion: The champion's figures on the compared rows; None when there is nothing to compare (see notes).
        challenger_compared: The challenger's figures on the same rows.
        rows: How many rows were compared: neither was trained on any of them.
        test_rows: How many test rows there are.
        dummy: The metric of a model that ignores its input, on the test rows.
        linear: The metric of the plain linear pipeline, fitted on the training rows, on the test rows.
        quality_score: The data's, 0 to 100.
        mlflow_run_id: The run that holds figures and plots.
        notes: What a reader of the figures has to know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    release_digest: str
    data_digest: str
    metric: str
    greater_is_better: bool
    challenger: dict[str, float]
    champion_version: int | None = None
    champion: dict[str, float] | None = None
    challenger_compared: dict[str, float] | None = None
    rows: int
    test_rows: int
    dummy: float
    linear: float
    quality_score: float
    mlflow_run_id: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the same rows; without figures where that cannot be, and why."""

    rows: int
    champion: dict[str, float] | None
    challenger: dict[str, float] | None
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
    config, labels = release.config, release.schema.labels
    truth = test[config.target.column].to_numpy()
    compared = Comparison(0, None, None)
    with one_thread():
        answers = release.answer(test)
        if champion is not None:
            compared = compare(config, release, champion, f"v{champion_version}", test)
        dummy, linear = _simplest(config, release, train, test)
    return Evaluation(
        model=config.name,
        release_digest=release.digest,
        data_digest=release.data_digest,
        metric=config.metric,
        greater_is_better=greater_is_better(config.metric),
        challenger=compute_metrics(config, labels, truth, answers),
        champion_version=champion_version,
        champion=compared.champion,
        challenger_compared=compared.challenger,
        rows=compared.rows,
        test_rows=len(test),
        dummy=dummy,
        linear=linear,
        quality_score=quality_score,
        mlflow_run_id=str(release.evidence.get("mlflow_run", {}).get("run_id", "")),
        notes=compared.notes,
    )


def compare(config: ModelConfig, challenger: Release, champion: Release, name: str, test: pd.DataFrame) -> Comparison:
    """Put champion and challenger on the same raw rows, none of which either was trained on.

    Each prepares the rows by its own pipeline. A champion that cannot read the rows is no error: the notes say why.

    Args:
        config: The challenger's configuration: its metric is the one that counts.
        challenger: The new Release.
        champion: The present one.
        name: What the notes call the champion.
        test: Typed test rows of the challenger, with the target.
    """
    try:
        rows = test[unseen(challenger, test) & unseen(champion, test)]
        if rows.empty:
            return Comparison(0, None, None, (f"{name} was trained on all {len(test)} test rows",))
        notes = (
            []
            if len(rows) == len(test)
            else [f"{name} was trained on {len(test) - len(rows)} of {len(test)} test rows"]
        )
        theirs, read = _answers_of(champion, name, rows)
        if champion.schema.labels != challenger.schema.labels:
            notes.append(f"{name} knows the classes {', '.join(champion.schema.labels)[:200] or 'of no kind'}")
        truth = rows[config.target.column].to_numpy()
        return Comparison(
            len(rows),
            compute_metrics(config, champion.schema.labels, truth, theirs),
            compute_metrics(config, challenger.schema.labels, truth, challenger.answer(rows)),
            (*notes, *read),
        )
    except DataError as error:
        return Comparison(0, None, None, (f"{name} cannot be compared: {error}",))


def unseen(release: Release, frame: pd.DataFrame) -> Array:
    """Which rows a Release cannot have been trained on.

    By content or entity that is a property of the row; by time, whatever is newer than its newest training row.

    Returns:
        Shape (n,) of bool.

    Raises:
        DataError: The column that decides is absent or has missing values.
    """
    split = release.config.split
    if split.by != "time" or split.column is None:
        return np.asarray(in_test(release.config, frame), dtype=bool)
    if split.column not in frame.columns:
        raise DataError(f"the rows have no column '{split.column}', by which its training rows were chosen")
    newest = release.reference_summary["columns"][split.column]["quantiles"]["1"]
    moments = frame[split.column]
    return np.asarray(moments > (pd.Timestamp(newest) if moments.dtype.kind == "M" else newest), dtype=bool)


def permutation_importance(release: Release, test: pd.DataFrame) -> dict[str, float]:
    """What shuffling one input column costs in the model's metric (Breiman 2001), seeded, on at most 500 test rows.

    Returns:
        Input to the mean loss over a few shuffles, positive when the column helps; largest first.
    """
    config, labels = release.config, release.schema.labels
    random = np.random.default_rng(config.seed)
    rows = test.iloc[np.sort(random.permutation(len(test))[:IMPORTANCE_ROWS])].reset_index(drop=True)
    truth = rows[config.target.column].to_numpy()
    sign = 1 if greater_is_better(config.metric) else -1
    whole = compute_metrics(config, labels, truth, release.answer(rows))[config.metric]
    costs = {}
    for name in list(release.schema.inputs)[:IMPORTANCE_COLUMNS]:
        losses = []
        for _ in range(IMPORTANCE_REPEATS):
            shuffled = rows.assign(**{name: rows[name].to_numpy()[random.permutation(len(rows))]})
            losses.append(whole - compute_metrics(config, labels, truth, release.answer(shuffled))[config.metric])
        costs[name] = sign * float(np.mean(losses))
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def record(evaluation: Evaluation, release: Release, test: pd.DataFrame) -> Evaluation:
    """Write figures and plots to the Release's MLflow run.

    Returns:
        The evaluation with the id of the run that holds them.

    Raises:
        WorkError: MLflow refused.
    """
    run_id = runs.same_run(evaluation.model, evaluation.mlflow_run_id)
    figures = {f"test_{name}": value for name, value in evaluation.challenger.items()}
    figures |= {
        f"test_{evaluation.metric}_dummy": evaluation.dummy,
        f"test_{evaluation.metric}_linear": evaluation.linear,
        "quality_score": evaluation.quality_score,
    }
    if evaluation.champion is not None:
        figures[f"compared_{evaluation.metric}_champion"] = evaluation.champion[evaluation.metric]
    runs.log_run(run_id, metrics=figures)
    with tempfile.TemporaryDirectory() as folder:
        draw(release, test, Path(folder))
        evaluation = evaluation.model_copy(update={"mlflow_run_id": run_id})
        (Path(folder) / "evaluation.json").write_text(evaluation.model_dump_json(indent=2))
        runs.log_files(run_id, Path(folder), "evaluation")
    return evaluation


def draw(release: Release, test: pd.DataFrame, folder: Path) -> None:
    """Draw the plots of a Release's answers to its test rows into a folder."""
    answers, labels = release.answer(test), release.schema.labels
    truth = test[release.config.target.column].to_numpy()
    if answers.probabilities is None:
        residual_plot(folder / "residuals.png", np.asarray(truth, dtype=np.float64), answers.values)
    else:
        confusion_plot(folder / "confusion_matrix.png", labels, truth, answers.values)
        roc_plot(folder / "roc.png", labels, truth, answers.probabilities)
    importance = permutation_importance(release, test)
    importance_plot(folder / "importance.png", importance, release.config.metric)
    (folder / "importance.json").write_text(json.dumps(importance, indent=2))


def _answers_of(champion: Release, name: str, rows: pd.DataFrame) -> tuple[Answers, list[str]]:
    """The champion's answers to rows that were typed for the challenger, typed again by its own schema."""
    typed = to_frame(rows, champion.schema.inputs)
    absent = [column for column in champion.schema.inputs if column not in rows.columns]
    if absent:
        raise DataError(f"the rows lack {len(absent)} columns that it reads: {', '.join(absent[:5])}")
    notes = [f"{name} reads {p.count} values of '{p.column}' as missing: {p.reason}" for p in typed.problems[:5]]
    return champion.answer(typed.frame), notes


def _simplest(config: ModelConfig, release: Release, train: pd.DataFrame, test: pd.DataFrame) -> tuple[float, float]:
    """The metric on the test rows of a model that ignores its input, and of the plain linear pipeline."""
    labels, truth = release.schema.labels, test[config.target.column].to_numpy()
    target = train[config.target.column]
    known = encode(labels, target).to_numpy() if labels else target.to_numpy(np.float64)
    pipeline = fit_family(config, plain_linear(config), {}, train)
    said = pipeline.predict_proba(test) if labels else pipeline.predict(test)
    figures = []
    for answered in (dummy_answer(config, known, len(test), len(labels)), np.asarray(said, dtype=np.float64)):
        answers = Answers(answered, None)
        if labels:
            answers = Answers(np.array(labels, dtype=object)[answered.argmax(axis=1)], answered)
        figures.append(compute_metrics(config, labels, truth, answers)[config.metric])
    return figures[0], figures[1]


@step(cache_policy=cached_by(__name__))
def evaluate(
    config: str,
    release: Path,
    train: pd.DataFrame,
    test: pd.DataFrame,
    report: QualityReport,
    champion_version: int | None,
) -> Annotated[Evaluation, "evaluation"]:
    """Judge a Release on its test rows, and beside the champion of this moment."""
    challenger = Release.open(release)
    champion = None
    if champion_version is not None:
        champion = Release.open(registry.release_dir(parse_config(config).name, champion_version))
    judged = evaluate_release(challenger, train, test, report.score, champion, champion_version)
    return record(judged, challenger, test)
