"""Evidently's page of a window beside the reference, by the same distances as `steps.dataset_drift`."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.config import ModelConfig
from models.monitoring import Distance
from steps.dataset_drift import bounded_sample, method_of
from steps.drift import drift_score

MOST_CATEGORIES = 50


@dataclass(frozen=True)
class DriftPage:
    """What Evidently says.

    Attributes:
        html: One page.
        scores: Its score of each column that it was shown.
    """

    html: str
    scores: Mapping[str, float]


def drift_page(config: ModelConfig, reference: pd.DataFrame, window: pd.DataFrame) -> DriftPage | None:
    """Let Evidently compare a bounded sample of a window with the reference, and draw both.

    The distances are registered with it as its own are: its Jensen-Shannon distance cuts the joint range into equal
    parts, and so one far value leaves all others in one of them; its `ks` and `chisquare` are p-values.
    Texts are left out: the page would show some of them. So are columns with more than 50 categories.

    Returns:
        None where no column can be shown.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    new = bounded_sample(window, config.seed)
    shown = [name for name in config.input_names() if _is_shown(config, name, reference, new)]
    if not shown:
        return None
    old, new = (_plain(side[shown]) for side in (reference, new))
    named = [name for name in shown if old[name].dtype == np.dtype(object)]
    definition = DataDefinition(
        numerical_columns=[name for name in shown if name not in named],
        categorical_columns=named,
        datetime_columns=[],
        text_columns=[],
    )
    threshold = config.monitoring.threshold
    methods = {name: _registered(method_of(config.monitoring, name, config.columns[name])) for name in shown}
    metrics: list[Any] = [ValueDrift(column=n, method=method, threshold=threshold) for n, method in methods.items()]
    sides = (Dataset.from_pandas(side.reset_index(drop=True), data_definition=definition) for side in (new, old))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        snapshot = Report(metrics).run(*sides)
        html: str = snapshot.get_html_str(as_iframe=False)
    found = snapshot.dict()["metrics"]
    return DriftPage(html, {name: float(metric["value"]) for name, metric in zip(shown, found, strict=True)})


def _registered(method: Distance) -> str:
    """Make a distance known to Evidently, under a name of ours."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    name = f"gauntlet_{method}"
    kinds = [ColumnType.Categorical, ColumnType.Numerical]
    register_stattest(StatTest(name=name, display_name=f"{method} distance", allowed_feature_types=kinds), _by(method))
    return name


def _by(method: Distance) -> Callable[[Any, Any, Any, float], tuple[float, bool]]:
    def measure(reference: Any, current: Any, kind: Any, threshold: float) -> tuple[float, bool]:  # noqa: ARG001
        score = drift_score(method, reference, current)
        return score, score >= threshold

    return measure


def _is_shown(config: ModelConfig, name: str, reference: pd.DataFrame, window: pd.DataFrame) -> bool:
    column = config.columns[name]
    if column.personal or column.type == "text" or name not in reference.columns or name not in window.columns:
        return False
    if not (reference[name].notna().any() and window[name].notna().any()):
        return False
    return (
        reference[name].dtype != np.dtype(object)
        or max(reference[name].nunique(), window[name].nunique()) <= MOST_CATEGORIES
    )


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Dates as seconds since 1970: Evidently compares no dates."""
    dates = frame.select_dtypes("datetime")
    seconds = {str(n): dates[n].astype("datetime64[s]").astype("int64").where(dates[n].notna()) for n in dates}
    return frame.assign(**seconds)
