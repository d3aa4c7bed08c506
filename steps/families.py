"""The families of estimators, and the one pipeline around each: typed row in, answer out."""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bentos.features import derived_columns, feature_kinds
from bentos.text import text_tfidf
from models.config import Family, ModelConfig, Parameter
from models.errors import ConfigError
from models.section import Scalar

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

Params = Mapping[str, Scalar | None]
Candidates = Mapping[Family, Mapping[str, Parameter | Scalar]]

MAX_CATEGORIES = 100
MISSING_CATEGORY = "(missing)"
_OURS = ("n_jobs", "random_state", "verbosity", "verbose", "warm_start", "callbacks", "device")
_FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "classification": ("logistic_regression", "random_forest", "xgboost"),
    "regression": ("linear_regression", "random_forest", "xgboost"),
}
_FOREST = {
    "n_estimators": Parameter(choice=(50, 100)),
    "max_depth": Parameter(integer=(3, 12)),
    "min_samples_leaf": Parameter(integer=(1, 10)),
}
_BOOSTING = {
    "n_estimators": Parameter(choice=(50, 100, 200)),
    "max_depth": Parameter(integer=(2, 6)),
    "learning_rate": Parameter(loguniform=(0.03, 0.3)),
}


def plain_linear(config: ModelConfig) -> Family:
    """The family that every tuned model has to beat, with its default parameters."""
    return _FAMILIES[config.task][0]


def candidates(config: ModelConfig) -> Candidates:
    """What tuning searches: the YAML's candidates, else every family of the task over modest ranges.

    Raises:
        ConfigError: A family does not fit the task, or has no parameter of that name.
    """
    given: Candidates = config.tuning.candidates
    if not given:
        linear = {"C": Parameter(loguniform=(0.01, 30))}
        if config.task == "regression":
            linear = {"alpha": Parameter(loguniform=(0.001, 100))}
        return {plain_linear(config): linear, "random_forest": _FOREST, "xgboost": _BOOSTING}
    for family, space in given.items():
        if family not in _FAMILIES[config.task]:
            there = ", ".join(_FAMILIES[config.task])
            raise ConfigError(f"tuning.candidates: {family} does no {config.task} (there is: {there})")
        known = parameter_names(config, family)
        for name in space:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise ConfigError(
                    f"tuning.candidates.{family}: no parameter '{name}'{hint} (there is: {', '.join(known)})"
                )
    return given


def parameter_names(config: ModelConfig, family: Family) -> list[str]:
    """Parameters of a family that a YAML may set, sorted; seeds and threads are ours."""
    names = set(build_estimator(config, family, {}).get_params())
    return sorted((names | {"alpha"} if family == "linear_regression" else names).difference(_OURS))


def build_estimator(config: ModelConfig, family: Family, params: Params) -> "BaseEstimator":
    """An unfitted estimator, seeded by the model's seed, on one thread.

    `linear_regression` with an `alpha` is ridge regression.
    """
    classify = config.task == "classification"
    if family == "logistic_regression":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(**{"max_iter": 1000, **params}, random_state=config.seed)
    if family == "linear_regression":
        from sklearn.linear_model import LinearRegression, Ridge

        return Ridge(**params, random_state=config.seed) if "alpha" in params else LinearRegression(**params)
    if family == "random_forest":
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        forest = RandomForestClassifier if classify else RandomForestRegressor
        return forest(**params, random_state=config.seed, n_jobs=1)
    from xgboost import XGBClassifier, XGBRegressor

    booster = XGBClassifier if classify else XGBRegressor
    return booster(**{"tree_method": "hist", **params}, random_state=config.seed, n_jobs=1, verbosity=0)


def is_scaled(family: Family) -> bool:
    """Whether a family wants its numbers centred and scaled."""
    return family in ("logistic_regression", "linear_regression")


def build_preparation(config: ModelConfig, *, scaled: bool) -> "ColumnTransformer":
    """Feature columns in, one float64 matrix out: dense, or sparse (CSR) where a feature is text.

    Numbers: median for missing, a further column that says where it was missing, then centred and scaled if wanted;
    an all-missing column becomes 0. Categories: missing is a category of its own; one column for each of the 100
    most frequent, one for all others where there are more; an unseen one counts among those others, else as none.
    Texts: TF-IDF as `text` in the YAML says, each column with terms of its own; missing is an empty text.

    Raises:
        ConfigError: There is no feature at all.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    kinds = feature_kinds(config)
    if not kinds:
        raise ConfigError("features: no column is left that the model may see")
    fill = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    number = Pipeline([("fill", fill), ("scale", StandardScaler())] if scaled else [("fill", fill)])
    encode = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=MAX_CATEGORIES, sparse_output=False, dtype="float64"
    )
    name_missing = SimpleImputer(strategy="constant", fill_value=MISSING_CATEGORY, keep_empty_features=True)
    category = Pipeline([("fill", name_missing), ("encode", encode)])
    groups = [("number", number, "number"), ("category", category, "category")]
    columns: list[tuple[str, Any, Any]] = [
        (name, part, chosen) for name, part, kind in groups if (chosen := [n for n, k in kinds.items() if k == kind])
    ]
    texts = [name for name, kind in kinds.items() if kind == "text"]
    columns += [(f"text_{place}", text_tfidf(config), name) for place, name in enumerate(texts)]
    return ColumnTransformer(columns, sparse_threshold=1.0 if texts else 0.0)


def build_pipeline(config: ModelConfig, family: Family, params: Params) -> "Pipeline":
    """The whole unfitted pipeline: derived columns, preparation, estimator.

    Raises:
        ConfigError: There is no feature at all.
    """
    from sklearn.pipeline import Pipeline

    return Pipeline(
        [
            ("features", derived_columns(config)),
            ("prepare", build_preparation(config, scaled=is_scaled(family))),
            ("model", build_estimator(config, family, params)),
        ]
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Fit inside: BLAS and OpenMP on one thread, so that the same data give the same numbers on any machine.

    Warnings that a search over parameters provokes by design are silent.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message=".*[Ll]east populated class.*")
        yield


def plain(params: Mapping[str, Any]) -> dict[str, Scalar | None]:
    """Parameters as Python's own scalars, sorted by name, so that they print and compare the same everywhere."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in sorted(params.items())}
