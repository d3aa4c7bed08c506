"""What a Release goes by as a whole: importance of its columns, their effects, its terms, and what changed in them."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bentos.explain import Attribution, Explainer, NotExplainable
from bentos.frame import to_frame
from bentos.release import Release, prepare
from models.errors import GauntletError, bounded
from steps.metrics import compute_metrics, greater_is_better
from steps.plots import dependence_plot, effects_plot, importance_plot, tokens_plot

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]

LOG = logging.getLogger(__name__)
IMPORTANCE_ROWS = 500
IMPORTANCE_COLUMNS = 50
IMPORTANCE_REPEATS = 3
DEPENDENCE_COLUMNS = 6
TOKENS = 10
TOKEN_CLASSES = 20
_CELLS = 1 << 22  # Prepared features that are held at once.


@dataclass(frozen=True)
class Effects:
    """Exact effects of the inputs on the answers to a sample of test rows.

    Attributes:
        columns: The inputs.
        rows: The sampled rows, typed.
        attribution: Their effects.
        scale: What effects are measured in.
    """

    columns: tuple[str, ...]
    rows: "pd.DataFrame"
    attribution: Attribution
    scale: str

    @property
    def means(self) -> dict[str, float]:
        """Input to the mean of its effects without their sign, largest first: global SHAP importance."""
        means = np.abs(self.attribution.effects).mean(axis=0).tolist()
        return _falling(dict(zip(self.columns, means, strict=True)))


@dataclass(frozen=True)
class Explanations:
    """What a challenger goes by, and how far that is from what the champion goes by.

    Attributes:
        importance: Input to what shuffling it costs, see `permutation_importance`.
        effects: Of a sample of test rows; None where the answers are no sums of effects, see `notes`.
        champion: The champion's mean effects on the same test rows; None where there are none.
        drift: See `importance_drift`; None where one of the two has no effects.
        tokens: Class to its terms and their signed effects, see `token_effects`; empty without a text column.
        notes: Why something is missing.
    """

    importance: Mapping[str, float]
    effects: Effects | None = None
    champion: Mapping[str, float] | None = None
    drift: float | None = None
    tokens: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def told(self) -> dict[str, Any]:
        """The same as fields of an `Evaluation`, of each figure the 50 largest columns."""
        return {
            "importance": _first(self.importance),
            "effects": _first(self.effects.means) if self.effects else None,
            "effects_scale": self.effects.scale if self.effects else None,
            "champion_effects": _first(self.champion) if self.champion is not None else None,
            "importance_drift": self.drift,
            "tokens": {label: dict(terms) for label, terms in self.tokens.items()} or None,
        }


def explain(release: Release, test: "pd.DataFrame", champion: Release | None = None) -> Explanations:
    """Explain a Release on its test rows, and beside the champion.

    Args:
        release: The challenger.
        test: Typed test rows with the target.
        champion: The champion's Release; one that cannot be explained on these rows leaves a note.

    Raises:
        WorkError: Effects do not add up to the answers; the message names the gap.
    """
    importance = permutation_importance(release, test)
    explainer = _explainer(release)
    if isinstance(explainer, str):
        return Explanations(importance, notes=(f"no effects: {explainer}",))
    effects = sampled_effects(release, explainer, test)
    tokens = token_effects(release, explainer, test)
    theirs = _effects_of_champion(champion, test) if champion is not None else None
    if not isinstance(theirs, Effects):
        return Explanations(importance, effects, tokens=tokens, notes=(theirs,) if theirs else ())
    drift = importance_drift(theirs.means, effects.means)
    return Explanations(importance, effects, theirs.means, drift, tokens)


def permutation_importance(release: Release, test: "pd.DataFrame") -> dict[str, float]:
    """What shuffling one input column costs in the model's metric (Breiman 2001), seeded, on at most 500 test rows.

    Returns:
        Input to the mean loss over a few shuffles, positive when the column helps; largest first.
    """
    config, labels = release.config, release.schema.labels
    random = np.random.default_rng(config.seed)
    rows = test.iloc[np.sort(random.permutation(len(test))[:IMPORTANCE_ROWS])].reset_index(drop=True)
    truth = rows[config.target.column].to_numpy()
    sign = 1 if greater_is_better(config.metric, config.evaluation.metrics) else -1
    whole = compute_metrics(config, labels, truth, release.answer(rows))[config.metric]
    costs = {}
    for name in list(release.schema.inputs)[:IMPORTANCE_COLUMNS]:
        losses = []
        for _ in range(IMPORTANCE_REPEATS):
            shuffled = rows.assign(**{name: rows[name].to_numpy()[random.permutation(len(rows))]})
            losses.append(whole - compute_metrics(config, labels, truth, release.answer(shuffled))[config.metric])
        costs[name] = sign * float(np.mean(losses))
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def sampled_effects(release: Release, explainer: Explainer, test: "pd.DataFrame") -> Effects:
    """Effects on a seeded sample of test rows, by the code that explains the served answers, checked to add up.

    Args:
        release: The Release.
        explainer: Its explainer.
        test: Typed test rows; at most 500 of them are explained, as many as take about a second.

    Raises:
        NotExplainable: Base and effects do not add up to the model's output; the message names the gap.
    """
    return _effects(release, explainer, _sample(release, test, _most_rows(explainer)))


def mean_effects(release: Release, explainer: Explainer, test: "pd.DataFrame") -> dict[str, float]:
    """How much each input moves the answers on average, see `sampled_effects`.

    Lundberg et al. (2020), "From local explanations to global understanding with explainable AI for trees".

    Returns:
        Input to the mean of its effects without their sign, on the explainer's scale; largest first.
    """
    return sampled_effects(release, explainer, test).means


def importance_drift(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """How differently two models spread their weight over columns: the total variation distance of the two shares.

    Half the sum of |share now - share before| over the union of columns (Levin & Peres 2017, proposition 4.2). It needs
    no common scale: log-odds and probabilities compare.

    Args:
        before: Column to its importance, none below 0.
        now: The same of the other model.

    Returns:
        0 where all shares are equal, 1 where no column counts in both; 1 too where only one of them goes by any column.
    """
    totals = sum(before.values()), sum(now.values())
    if not all(totals):
        return float(any(totals))
    names = {*before, *now}
    return sum(abs(now.get(name, 0) / totals[1] - before.get(name, 0) / totals[0]) for name in names) / 2


def token_effects(release: Release, explainer: Explainer, test: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """The terms that speak most for and against each class: their mean signed effect over a sample of test rows.

    A term counts in the rows that hold it and is 0 in the others, as in the served explanations. Of two classes the
    effects on the first are those on the second with the sign turned.

    Returns:
        Class (the target's name in a regression) to its ten largest terms; empty for a model without text. With
        several text columns a term is told as `column: term`.
    """
    if not explainer.terms:
        return {}
    labels = release.schema.labels
    classes = range(len(labels)) if len(labels) > 2 else [len(labels) - 1] if labels else [0]
    width = max(1, explainer.shares.shape[0])
    most = min(_most_rows(explainer) // len(classes), _CELLS // width)
    rows = _sample(release, test, most)
    prepared = prepare(release.pipeline, rows[list(release.schema.inputs)])
    held = np.asarray(prepared.toarray() if hasattr(prepared, "toarray") else prepared) != 0
    told = {}
    for code in list(classes)[:TOKEN_CLASSES]:
        _, effects = explainer.method.effects(prepared, np.full(len(rows), code))
        told[labels[code] if labels else release.schema.target] = _largest_terms(
            explainer, np.where(held, effects, 0.0).mean(axis=0)
        )
    if len(labels) == 2:
        against = {term: -effect for term, effect in told[labels[1]].items()}
        return {labels[0]: against, **told}
    return told


def draw_explanations(explanations: Explanations, release: Release, folder: Path) -> None:
    """Draw plots and write figures of a Release's explanations into a folder: JSON and PNG."""
    importance_plot(folder / "importance.png", explanations.importance, release.config.metric)
    _write(folder / "importance.json", explanations.importance)
    if explanations.effects is None:
        return
    effects = explanations.effects
    effects_plot(folder / "effects.png", effects.means, effects.scale)
    _write(folder / "effects.json", effects.means)
    draw_dependence(effects, release, folder / "dependence")
    if explanations.tokens:
        tokens_plot(folder / "tokens.png", explanations.tokens, effects.scale)
        _write(folder / "tokens.json", explanations.tokens)


def draw_dependence(effects: Effects, release: Release, folder: Path) -> None:
    """Draw effect against value for the columns with the largest effects, texts left out: 01.png, 02.png, ….

    Lundberg et al. (2020), section "SHAP dependence plots".
    """
    kinds = {name: column.type for name, column in release.schema.inputs.items()}
    labels = release.schema.labels
    codes = effects.attribution.codes
    speak_for = np.array(labels, dtype=object)[codes] if len(labels) > 2 else None
    scale = f"{effects.scale} of {bounded(labels[-1], 40)}" if len(labels) == 2 else effects.scale
    shown = [name for name in effects.means if kinds[name] != "text"][:DEPENDENCE_COLUMNS]
    if shown:
        folder.mkdir()
    for number, name in enumerate(shown, 1):
        values = effects.rows[name].to_numpy()
        own = effects.attribution.effects[:, effects.columns.index(name)]
        strips = kinds[name] in ("category", "boolean")
        dependence_plot(folder / f"{number:02d}.png", name, values, own, scale, speak_for, strips=strips)


def _effects(release: Release, explainer: Explainer, rows: "pd.DataFrame") -> Effects:
    attribution = explainer.attribute(rows, release.answer(rows))
    explainer.require_additive(rows, attribution)
    return Effects(tuple(release.schema.inputs), rows, attribution, explainer.method.scale)


def _most_rows(explainer: Explainer) -> int:
    return min(IMPORTANCE_ROWS, explainer.most_rows // 10)


def _sample(release: Release, test: "pd.DataFrame", most: int) -> "pd.DataFrame":
    random = np.random.default_rng(release.config.seed)
    return test.iloc[np.sort(random.permutation(len(test))[: max(1, most)])]


def _explainer(release: Release) -> Explainer | str:
    """The Release's explainer, or why it has none."""
    try:
        return Explainer.of(release)
    except NotExplainable as error:
        LOG.info("no mean effects: %s", error)
        return bounded(str(error), 300)


def _effects_of_champion(champion: Release, test: "pd.DataFrame") -> Effects | str:
    """The champion's effects on rows that were typed for the challenger, or why there are none."""
    inputs = champion.schema.inputs
    if absent := [name for name in inputs if name not in test.columns]:
        return f"no effects of the champion: the rows lack {len(absent)} columns that it reads: {', '.join(absent[:5])}"
    try:
        explainer = Explainer.of(champion)
        rows = _sample(champion, test, _most_rows(explainer))
        return _effects(champion, explainer, to_frame(rows, inputs).frame)
    except GauntletError as error:
        return f"no effects of the champion: {bounded(str(error), 300)}"
    except Exception as error:  # a fitted pipeline of any library; its text may hold a value of a row
        return f"no effects of the champion: it fails on these rows with {type(error).__name__}"


def _largest_terms(explainer: Explainer, means: Array) -> dict[str, float]:
    """Terms with the largest means, shape (features,), in falling order of size; those without any effect left out."""
    alone = len(explainer.terms) == 1
    told = {
        str(term) if alone else f"{column}: {term}": float(means[known.start + place])
        for column, known in explainer.terms.items()
        for place, term in enumerate(known.terms)
    }
    return {term: effect for term, effect in list(_falling(told).items())[:TOKENS] if effect}


def _falling(figures: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(figures.items(), key=lambda item: -abs(item[1])))


def _first(figures: Mapping[str, float]) -> dict[str, float]:
    return dict(list(figures.items())[:IMPORTANCE_COLUMNS])


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=2))
