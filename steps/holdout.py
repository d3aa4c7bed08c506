"""The holdout's scores and truth, kept with a version's evaluation: what its later answers are compared with."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from bentos.release import Release
from models.config import ModelConfig
from stacks import runs
from steps.estimate import estimate_error, measure_of
from steps.facts import EVALUATION_FOLDER

HOLDOUT: Final = "holdout.npz"
MOST: Final = 20_000


@dataclass(frozen=True)
class Holdout:
    """What a version answered to test rows, and what was true: n of them, at most 20,000.

    Attributes:
        scores: Shape (n, k), probabilities in the order of the schema's labels, or (n,), numbers; float32.
        truth: Shape (n,): codes 0..k-1, -1 for a class that the model does not know, or numbers (float64).
    """

    scores: "np.ndarray[Any, Any]" = field(repr=False)
    truth: "np.ndarray[Any, Any]" = field(repr=False)

    def gap(self, config: ModelConfig, labels: Sequence[str]) -> float | None:
        """How much more the scores expect of the metric than they got; None for a regression, or where neither is."""
        if self.scores.ndim == 1:
            return None
        scores, measure = self.scores.astype(np.float64), measure_of(config, labels)
        found = estimate_error(config.metric, measure, self.truth, scores, config.seed)
        return found.error if found else None


def draw_holdout(release: Release, test: pd.DataFrame) -> Holdout:
    """A seeded sample of a Release's answers to its typed test rows."""
    config, labels = release.config, release.schema.labels
    rows = np.arange(len(test))
    if len(test) > MOST:
        rows = np.sort(np.random.default_rng(config.seed).choice(len(test), MOST, replace=False))
    sample = test.iloc[rows]
    answers, target = release.answer(sample), sample[config.target.column]
    scores = answers.values if answers.probabilities is None else answers.probabilities
    truth = pd.Index(labels).get_indexer(pd.Index(target)) if labels else target.to_numpy(np.float64)
    return Holdout(scores.astype(np.float32), np.asarray(truth))


def write_holdout(folder: Path, holdout: Holdout) -> None:
    """Write it as arrays, never as a pickle, into a folder."""
    np.savez(folder / HOLDOUT, scores=holdout.scores, truth=holdout.truth)


def read_holdout(run_id: str) -> Holdout | None:
    """What an MLflow run keeps of it; None for a run from before it was kept.

    Raises:
        WorkError: MLflow refused.
    """
    content = runs.read_files(run_id, EVALUATION_FOLDER, HOLDOUT).get(HOLDOUT)
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Holdout(arrays["scores"], arrays["truth"])
