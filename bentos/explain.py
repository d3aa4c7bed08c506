"""Why an answer is what it is: signed effects of the raw columns that add up to the model's output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bentos.cells import widths
from bentos.features import DerivedColumns
from bentos.inputs import plain_rows, typed_rows
from bentos.release import prepare
from bentos.text import TextTfidf
from bentos.treeshap import ForestShap
from models.errors import WorkError, bounded

if TYPE_CHECKING:
    import pandas as pd

    from bentos.release import Answers, Release

Array = np.ndarray[Any, Any]
Scale = Literal["log-odds", "probability", "value"]

TOLERANCE = 1e-5
TOKENS = 5
VALUE_CHARACTERS = 200
MOST_ROWS = 10_000
_CELLS = 1 << 22  # Effects of prepared features that are held at once.
_DENSE = 1 << 16  # Cells up to which shares are kept dense: one row is then many times as fast.
_BUDGET = 1 << 28  # Cells of a forest that one request may cost: about ten seconds of one core.


class NotExplainable(WorkError):
    """The answers of a Release cannot be told as sums of effects."""


@dataclass(frozen=True)
class Token:
    """A term of a text and its signed part of the text's effect."""

    token: str
    effect: float


@dataclass(frozen=True)
class Contribution:
    """What one raw column adds to the output.

    Attributes:
        column: Name of the input.
        value: As JSON takes it; None where missing, the beginning of a long text.
        effect: Signed, on the scale of the explanation.
        tokens: Of a text, the terms in it with the largest effects, at most 5; None for other columns.
    """

    column: str
    value: str | float | bool | None
    effect: float
    tokens: tuple[Token, ...] | None = None


@dataclass(frozen=True)
class Explanation:
    """One explained answer.

    Attributes:
        label: The class that effects speak for: the positive one of two, the predicted one of more; None in a
            regression.
        base: Output before anything is known of the row.
        output: `base` and the effects of all columns, also of those that are not told.
        contributions: The largest effects first.
    """

    label: str | None
    base: float
    output: float
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Attribution:
    """Effects of all raw columns for n rows.

    Attributes:
        codes: Shape (n,): class that is explained; 0 in a regression.
        base: Shape (n,).
        effects: Shape (n, columns), in the order of the schema's inputs; with `base` they add up to the output.
    """

    codes: Array
    base: Array
    effects: Array


class Method(Protocol):
    """How effects of prepared features are found."""

    @property
    def name(self) -> str:
        """What the method is called in answers."""

    @property
    def scale(self) -> Scale:
        """What effects are measured in."""

    def outputs(self, prepared: Any) -> Array:
        """Shape (n, k): what the effects of each class must add up to; (n, 1) in a regression."""

    def effects(self, prepared: Any, codes: Array) -> tuple[Array, Array]:
        """Base, shape (n,), and effects of the prepared features, shape (n, features), for one class a row."""


@dataclass(frozen=True)
class Linear:
    """Coefficient times distance from the background's mean: SHAP values of features taken as independent.

    Štrumbelj and Kononenko (2014), "Explaining prediction models and individual predictions with feature
    contributions". Of more than two classes, the output is the class's score before softmax.

    Attributes:
        estimator: A fitted linear or logistic regression.
        means: Shape (features,): of the prepared background.
        scale: "log-odds" for logistic regression.
    """

    estimator: Any
    means: Array
    scale: Scale
    name: str = "linear"

    def outputs(self, prepared: Any) -> Array:
        """Shape (n, k): scores of the classes, or the numbers."""
        if self.scale == "value":
            return np.asarray(self.estimator.predict(prepared)).reshape(-1, 1)
        return _scores(self.estimator.decision_function(prepared))

    def effects(self, prepared: Any, codes: Array) -> tuple[Array, Array]:
        """See `Method`."""
        slopes, starts = np.atleast_2d(self.estimator.coef_), np.atleast_1d(self.estimator.intercept_)
        lines = codes if len(slopes) > 1 else np.zeros(len(codes), dtype=np.int64)
        return starts[lines] + slopes[lines] @ self.means, slopes[lines] * (_dense(prepared) - self.means)


@dataclass(frozen=True)
class Forest:
    """TreeSHAP (path-dependent) on the forest's probabilities, or its numbers.

    Attributes:
        estimator: A fitted random forest.
        shap: Its trees, laid out.
        scale: "probability" or "value".
    """

    estimator: Any
    shap: ForestShap
    scale: Scale
    name: str = "tree_shap"

    def outputs(self, prepared: Any) -> Array:
        """Shape (n, k): probabilities, or the numbers."""
        if self.scale == "value":
            return np.asarray(self.estimator.predict(prepared)).reshape(-1, 1)
        return np.asarray(self.estimator.predict_proba(prepared))

    def effects(self, prepared: Any, codes: Array) -> tuple[Array, Array]:
        """See `Method`."""
        rows = zip(_dense(prepared), codes.tolist(), strict=True)
        return self.shap.base[codes], np.array([self.shap.effects(row, code) for row, code in rows])


@dataclass(frozen=True)
class Boosting:
    """TreeSHAP (path-dependent) as XGBoost computes it, on the raw margin.

    Attributes:
        estimator: A fitted XGBClassifier or XGBRegressor.
        scale: "log-odds" or "value".
    """

    estimator: Any
    scale: Scale
    name: str = "tree_shap"

    def outputs(self, prepared: Any) -> Array:
        """Shape (n, k): margins of the classes, or the numbers."""
        if self.scale == "value":
            return np.asarray(self.estimator.predict(prepared), dtype=np.float64).reshape(-1, 1)
        return _scores(self.estimator.predict(prepared, output_margin=True))

    def effects(self, prepared: Any, codes: Array) -> tuple[Array, Array]:
        """See `Method`."""
        import xgboost

        rows = xgboost.DMatrix(prepared, nthread=1)
        told = np.asarray(self.estimator.get_booster().predict(rows, pred_contribs=True), dtype=np.float64)
        chosen = told if told.ndim == 2 else told[np.arange(len(codes)), codes]
        return chosen[:, -1], chosen[:, :-1]


@dataclass(frozen=True)
class _Terms:
    """The terms of one text column and where they stand among the prepared features."""

    start: int
    terms: Array

    def tokens(self, row: Array, effects: Array) -> tuple[Token, ...]:
        """Terms that a row holds, the largest effects first; both of shape (features,)."""
        own = slice(self.start, self.start + len(self.terms))
        told = np.where(row[own] != 0, effects[own], 0.0)
        first = [place for place in np.argsort(-np.abs(told), kind="stable")[:TOKENS] if told[place] != 0]
        return tuple(Token(str(self.terms[place]), float(told[place])) for place in first)


@dataclass(frozen=True)
class Explainer:
    """Explains the answers of one Release; made once, when it is loaded.

    Attributes:
        release: The Release.
        method: How effects of prepared features are found.
        shares: Shape (features, columns), sparse where large: what part of a prepared feature's effect is a raw
            column's. A derived column is read from one raw column or two, which share its effect evenly.
        terms: By text column.
    """

    release: "Release"
    method: Method
    shares: Any
    terms: dict[str, _Terms]

    @classmethod
    def of(cls, release: "Release") -> Self:
        """Make the explainer of a Release and check on its golden rows that effects add up.

        Raises:
            WorkError: They do not, or the model is none that is known here.
        """
        sources = _sources(release.pipeline)
        columns = {name: place for place, name in enumerate(release.schema.inputs)}
        cells = [(feature, columns[name], 1 / len(read)) for feature, read in enumerate(sources) for name in read]
        rows, places, parts = (np.array(line) for line in zip(*cells, strict=True))
        shares = csr_matrix((parts, (rows, places)), shape=(len(sources), len(columns)))
        if len(sources) * len(columns) <= _DENSE:
            shares = shares.toarray()
        explainer = cls(release, _method(release, len(sources)), shares, _terms(release.pipeline))
        explainer._require_sums()
        return explainer

    def attribute(self, frame: "pd.DataFrame", answers: "Answers") -> Attribution:
        """Effects of all raw columns on the answers that the Release gave to the rows of a typed frame.

        Two classes: on the positive one. More: on the predicted one.
        """
        parts = [(base, effects @ self.shares) for _, base, effects in self._parts(frame, self._codes(answers))]
        bases, effects = zip(*parts, strict=True)
        return Attribution(self._codes(answers), np.concatenate(bases), np.concatenate(effects))

    def explain(self, frame: "pd.DataFrame", answers: "Answers", k: int) -> list[Explanation]:
        """The k largest effects on each answer that the Release gave to the rows of a typed frame."""
        codes, told = self._codes(answers), list[Explanation]()
        values = plain_rows(frame, self.release.schema.inputs)
        for prepared, base, features in self._parts(frame, codes):
            rows = slice(len(told), len(told) + len(base))
            told += self._explanations(prepared, values[rows], codes[rows], base, features, k)
        return told

    def explain_prepared(
        self, prepared: Array, values: Sequence[Mapping[str, Any]], answers: "Answers", k: int
    ) -> list[Explanation]:
        """The same of rows as the estimator sees them, shape (n, features).

        Args:
            prepared: See `bentos.quick.Quick.prepare`.
            values: The rows as they are told, by input; see `bentos.quick.Quick.plain`.
            answers: What the Release, or its fast path, said to them.
            k: How many effects.
        """
        codes, told = self._codes(answers), list[Explanation]()
        for start in range(0, len(prepared), self._most):
            rows = slice(start, start + self._most)
            base, features = self.method.effects(prepared[rows], codes[rows])
            told += self._explanations(prepared[rows], values[rows], codes[rows], base, features, k)
        return told

    @property
    def most_rows(self) -> int:
        """Rows of one request that can be explained in about ten seconds, 10,000 at most."""
        size = self.method.shap.size if isinstance(self.method, Forest) else 1
        return max(1, min(MOST_ROWS, _BUDGET // size))

    def told(self, explanations: Sequence[Explanation]) -> list[dict[str, Any]]:
        """Explanations as answers carry them: `contributions` and `explanation`."""
        how = {"method": self.method.name, "scale": self.method.scale}
        return [
            {
                "contributions": [_contribution(part) for part in explanation.contributions],
                "explanation": ({} if explanation.label is None else {"label": explanation.label})
                | {"base": explanation.base, "output": explanation.output, **how},
            }
            for explanation in explanations
        ]

    def _explanations(
        self,
        prepared: Any,
        values: Sequence[Mapping[str, Any]],
        codes: Array,
        base: Array,
        features: Array,
        k: int,
    ) -> list[Explanation]:
        names, told = list(self.release.schema.inputs), []
        dense = _dense(prepared) if self.terms else prepared
        for row, effects in enumerate(features @ self.shares):
            contributions = []
            for place in np.argsort(-np.abs(effects), kind="stable")[:k].tolist():
                name = names[place]
                tokens = self.terms[name].tokens(dense[row], features[row]) if name in self.terms else None
                contributions.append(Contribution(name, _short(values[row][name]), float(effects[place]), tokens))
            output = float(base[row] + effects.sum())
            told.append(Explanation(self._label(codes[row]), float(base[row]), output, tuple(contributions)))
        return told

    def _label(self, code: int) -> str | None:
        return self.release.schema.labels[code] if self.release.schema.labels else None

    def _codes(self, answers: "Answers") -> Array:
        if answers.probabilities is None:
            return np.zeros(len(answers.values), dtype=np.int64)
        if answers.probabilities.shape[1] == 2:
            return np.ones(len(answers.values), dtype=np.int64)
        return np.asarray(answers.probabilities.argmax(axis=1))

    def _parts(self, frame: "pd.DataFrame", codes: Array) -> Iterator[tuple[Any, Array, Array]]:
        """Prepared rows, base and effects of prepared features, as many rows at a time as memory should hold."""
        inputs = frame[list(self.release.schema.inputs)]
        for start in range(0, len(frame), self._most):
            rows = slice(start, start + self._most)
            prepared = prepare(self.release.pipeline, inputs.iloc[rows])
            yield prepared, *self.method.effects(prepared, codes[rows])

    @property
    def _most(self) -> int:
        """Rows whose effects are held at once."""
        return max(1, _CELLS // (self.shares.shape[0] * max(1, len(self.release.schema.labels))))

    def require_additive(self, frame: "pd.DataFrame", told: Attribution) -> Array:
        """Check that base and effects of typed rows add up to the model's output.

        Returns:
            Shape (n, k): the outputs of all classes; (n, 1) in a regression.

        Raises:
            NotExplainable: They do not; the message names the largest gap.
        """
        outputs = self.method.outputs(prepare(self.release.pipeline, frame[list(self.release.schema.inputs)]))
        gap = np.abs(told.base + told.effects.sum(axis=1) - outputs[np.arange(len(frame)), told.codes])
        if not (gap <= TOLERANCE * (np.abs(told.base) + np.abs(told.effects).sum(axis=1))).all():
            raise NotExplainable(f"effects and base do not add up to the model's output ({gap.max():.3g} beside it)")
        return outputs

    def _require_sums(self) -> None:
        rows = [list(golden.inputs.values()) for golden in self.release.golden]
        frame = typed_rows(rows, self.release.schema.inputs).frame
        answers = self.release.answer(frame)
        outputs = self.require_additive(frame, self.attribute(frame, answers))
        if answers.probabilities is None:
            return
        shares = _softmax(outputs) if self.method.scale == "log-odds" else outputs
        if not np.allclose(shares, answers.probabilities, rtol=0, atol=TOLERANCE):
            raise NotExplainable(
                "the model's probabilities are no logistic function of the output that effects add up to"
            )


def _method(release: "Release", width: int) -> Method:
    estimator, regression = release.pipeline.steps[-1][1], release.schema.task == "regression"
    if estimator.n_features_in_ != width:
        raise NotExplainable(f"the estimator takes {estimator.n_features_in_} features, the preparation gives {width}")
    if release.family == "xgboost":
        if estimator.get_params()["booster"] == "gblinear":
            raise NotExplainable("its booster is no trees (gblinear)")
        return Boosting(estimator, "value" if regression else "log-odds")
    if release.family == "random_forest":
        return Forest(estimator, ForestShap.of(estimator), "value" if regression else "probability")
    if release.background is None:
        raise NotExplainable("it was written without its background, which a linear model's effects are measured from")
    return Linear(estimator, np.array(release.background), "value" if regression else "log-odds")


def _sources(pipeline: Pipeline) -> list[tuple[str, ...]]:
    """By prepared feature: the raw columns that it is made of."""
    features, preparation = _known(pipeline)
    read = {name: _read(name, features) for name in features.features}
    made: list[tuple[str, ...]] = []
    for name, part, chosen in preparation.transformers_:
        if name == "remainder" and part == "drop":
            continue
        columns = [chosen] if isinstance(chosen, str) else list(chosen)
        made += _through(part, [read[column] for column in columns])
    return made


def _known(pipeline: Pipeline) -> tuple[DerivedColumns, Any]:
    steps = [step for _, step in pipeline.steps[:-1]]
    if len(steps) != 2 or not isinstance(steps[0], DerivedColumns) or not hasattr(steps[1], "transformers_"):
        raise NotExplainable("its pipeline is not derived columns, a ColumnTransformer and an estimator")
    return steps[0], steps[1]


def _read(name: str, features: DerivedColumns) -> tuple[str, ...]:
    expression = features.expressions.get(name)
    if expression is None:
        return (name,)
    if pair := expression.get("ratio") or expression.get("difference"):
        return tuple(dict.fromkeys(pair))
    return (str(expression.get("log") or expression.get("bin") or expression.get("date")),)


def _through(part: Any, sources: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Sources of the features that a transformer makes of features with these sources."""
    made = list(sources)
    if isinstance(part, Pipeline):
        for _, step in part.steps:
            made = _through(step, made)
    elif isinstance(part, SimpleImputer) and part.keep_empty_features:
        made += [made[place] for place in part.indicator_.features_] if part.add_indicator else []
    elif isinstance(part, OneHotEncoder) and part.drop is None:
        made = [source for source, width in zip(made, widths(part), strict=True) for _ in range(width)]
    elif isinstance(part, TextTfidf):
        made = made * len(part.weights_)
    elif not isinstance(part, StandardScaler):
        raise NotExplainable(f"what {type(part).__name__} makes of a column is not known to explanations")
    return made


def _terms(pipeline: Pipeline) -> dict[str, _Terms]:
    _, preparation = _known(pipeline)
    return {
        columns: _Terms(preparation.output_indices_[name].start, part.get_feature_names_out())
        for name, part, columns in preparation.transformers_
        if isinstance(part, TextTfidf)
    }


def _scores(margins: Any) -> Array:
    """Shape (n, k): margins of all classes; the first of two has 0."""
    margins = np.asarray(margins, dtype=np.float64)
    return margins if margins.ndim == 2 else np.column_stack([np.zeros(len(margins)), margins])


def _softmax(scores: Array) -> Array:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def _dense(prepared: Any) -> Array:
    return np.asarray(prepared.toarray() if issparse(prepared) else prepared)


def _contribution(part: Contribution) -> dict[str, Any]:
    told = {"column": part.column, "value": part.value, "effect": part.effect}
    if part.tokens is None:
        return told
    return told | {"tokens": [{"token": token.token, "effect": token.effect} for token in part.tokens]}


def _short(value: Any) -> Any:
    return bounded(value, VALUE_CHARACTERS) if isinstance(value, str) else value
