"""Text drift: whether a classifier can tell a window's texts from the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steps.significance import LEVEL, Departure

MOST_TEXTS = 2_000
MOST_NEW = 500
LEAST_TEXTS = 40
RESAMPLES = 20
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Entities:
    """Whose each of the reference's n rows is, where a model is split by entity.

    Attributes:
        of: Shape (n,): an entity's code.
        unseen: Share of all entities that the reference was not given, so that windows hold texts of entities that it
            does not know.
    """

    of: _Array
    unseen: float


def text_departure(
    reference: "pd.Series[Any]", window: "pd.Series[Any]", rng: np.random.Generator, entities: Entities | None = None
) -> Departure | None:
    """How well a domain classifier tells two samples of texts apart, on texts that it was not fitted on.

    The classifier is Evidently's (TF-IDF, then a linear one by SGD). The effect is Somers' D, 2 · ROC-AUC - 1 and at
    least 0: 0.1 is the area of 0.55 from which Evidently calls a text drifted. Chance is what 20 windows drawn from
    the reference show, each by a classifier of its own, with as many rows of unknown entities as a window has; p is
    Student's for one more such window.

    Args:
        reference: Texts, missing ones left out; at most 2,000 are drawn.
        window: As `reference`; at most 500 are drawn, and at most a quarter of the reference.
        rng: Source of chance.
        entities: Of the reference's rows.

    Returns:
        None where a side has too few texts (the reference 160, the window 40), or they hold no words.
    """
    from scipy.stats import t as student

    known, new = (np.flatnonzero(texts.notna().to_numpy()) for texts in (reference, window))
    known = np.sort(rng.permutation(known)[:MOST_TEXTS])
    new = np.sort(rng.permutation(new)[: min(MOST_NEW, len(known) // 4)])
    if len(new) < LEAST_TEXTS:
        return None
    prepared = _vectors([*reference.iloc[known], *window.iloc[new]])
    if prepared is None:
        return None
    of = entities.of[known] if entities else np.arange(len(known))
    unseen = entities.unseen if entities else 0.0
    chance = np.array([_told(prepared, *_drawn(of, unseen, len(new), rng), rng) for _ in range(RESAMPLES)])
    kept = np.sort(rng.permutation(len(known))[: len(known) - len(new)])
    effect = _told(prepared, kept, np.arange(len(known), len(known) + len(new)), rng)
    spread = max(float(chance.std(ddof=1)), 1e-3) * (1 + 1 / RESAMPLES) ** 0.5
    mean, freedom = float(chance.mean()), RESAMPLES - 1
    usual = max(mean + spread * float(student.ppf(1 - LEVEL, freedom)), 0.0)
    return Departure(max(effect, 0.0), usual, float(student.sf((effect - mean) / spread, freedom)))


def _vectors(texts: Sequence[str]) -> Any:
    """TF-IDF of n texts, shape (n, terms), CSR; None where they hold no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(sublinear_tf=True, max_df=0.5, min_df=2).fit_transform(texts)
    except ValueError:  # an empty vocabulary, the only thing that it says of texts
        return None


def _drawn(of: _Array, unseen: float, rows: int, rng: np.random.Generator) -> tuple[_Array, _Array]:
    """A reference and a window without drift: positions of the rows of each, parted like those at hand."""
    names = np.unique(of)
    strange = np.isin(of, rng.permutation(names)[: round(unseen * len(names))])
    order = rng.permutation(len(of))
    drawn, rest = order[:rows], order[rows:]
    return rest[~strange[rest]], drawn


def _told(prepared: Any, old: _Array, new: _Array, rng: np.random.Generator) -> float:
    """Somers' D of a classifier fitted on one half of both sides, on the other."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import roc_auc_score

    halves = [np.array_split(rng.permutation(side), 2) for side in (old, new)]
    fit, rest = (np.concatenate([side[half] for side in halves]) for half in (0, 1))
    is_new = [np.repeat([0, 1], [len(side[half]) for side in halves]) for half in (0, 1)]
    model = SGDClassifier(loss="modified_huber", penalty="l1", alpha=1e-4, max_iter=50, random_state=0)
    scores = model.fit(prepared[fit], is_new[0]).decision_function(prepared[rest])
    return 2 * float(roc_auc_score(is_new[1], scores)) - 1
