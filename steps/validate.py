"""Validating: a typed frame is checked against the YAML, scored, and stopped where it cannot be used."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pandas as pd
from zenml import step
from zenml.types import HTMLString

from bentos.release import REFERENCE_CHARACTERS
from models.config import ModelConfig
from models.errors import WorkError
from steps.caching import cached_by, forget, parse_config
from steps.drift import MIN_ROWS, drift_score
from steps.hashes import content_hashes
from steps.leak import told_alone
from steps.partitions import Partitions, public_columns
from steps.quality import Check, QualityReport, check_severities, report_of, severity_of
from steps.split import in_test
from steps.suite import CROSSING, REPEATED, as_view, run_suite, wanted

log = logging.getLogger(__name__)
SAMPLE = 20_000
SUMMARY_ROWS = 2_000
SUMMARY_CATEGORIES = 50
__all__ = ["Check", "QualityReport", "summarise", "validate", "validate_frame"]


def validate_frame(config: ModelConfig, frame: pd.DataFrame, reference: pd.DataFrame | None = None) -> QualityReport:
    """Check a typed frame: a Great Expectations suite from the YAML, then leaks, class balance and drift.

    Args:
        config: The model.
        frame: What ingest gave.
        reference: Training rows of the champion, to measure drift from; nothing is measured without.

    Raises:
        DataError: A critical check failed; up to five are named.
        ConfigError: `validation.severity` names an unknown check or column.
        WorkError: Great Expectations itself failed.
    """
    check_severities(config)
    view = as_view(frame)
    repeated = pd.Series(content_hashes(view, [c for c in view.columns if c in public_columns(config)])).duplicated()
    flags = {REPEATED: repeated.to_numpy(np.float64), CROSSING: _crossing(config, view).astype(np.float64)}
    view = pd.DataFrame({**view, **flags})  # one block per type: pandas would consolidate at every later copy
    checks = run_suite(config, wanted(config, frame), view)
    if config.task == "classification" and config.target.column in frame:
        counts = frame[config.target.column].value_counts()
        checks += balance(config, {str(label): int(count) for label, count in counts.items()})
    checks += [*leaks(config, frame), *drift(config, frame, reference)]
    return report_of(config, len(frame), checks)


def summarise(config: ModelConfig, frame: pd.DataFrame) -> str:
    """Evidently's data summary as one HTML page, of a seeded sample, without personal and text columns."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataSummaryPreset

    shown = frame.sample(min(SUMMARY_ROWS, len(frame)), random_state=config.seed).reset_index(drop=True)
    public = [name for name in public_columns(config) if name in frame.columns and frame[name].notna().any()]
    kinds: dict[str, list[str]] = {"number": [], "category": [], "datetime": []}
    for name in public:
        kind = (
            "datetime" if frame[name].dtype.kind == "M" else "number" if frame[name].dtype.kind == "f" else "category"
        )
        text = name in config.columns and config.columns[name].type == "text"
        if (
            not text
            and (kind != "category" or shown[name].nunique() <= SUMMARY_CATEGORIES)
            and shown[name].notna().any()
        ):
            kinds[kind].append(name)
    definition = DataDefinition(
        numerical_columns=kinds["number"],
        categorical_columns=kinds["category"],
        datetime_columns=kinds["datetime"],
        text_columns=[],
    )
    data = Dataset.from_pandas(shown[[n for names in kinds.values() for n in names]], data_definition=definition)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        html: str = Report([DataSummaryPreset()]).run(data, None).get_html_str(as_iframe=False)
    return html


def _reference(model: str, version: int | None) -> pd.DataFrame | None:
    if version is None:
        return None
    from bentos.release import Release
    from stacks.registry import release_dir

    try:
        return Release.open(release_dir(model, version)).reference()
    except WorkError as error:
        log.warning("no drift is measured, the training rows of v%d cannot be read: %s", version, error)
        forget()
        return None


def _crossing(config: ModelConfig, frame: pd.DataFrame) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Test rows whose equal (or, split by entity, whose entity) is a training row."""
    chosen = in_test(config, frame)
    codes, _ = pd.factorize(pd.Series(content_hashes(frame, parted_by(config))))
    trained = np.zeros(codes.max(initial=0) + 1, dtype=bool)
    trained[codes[~chosen]] = True
    return chosen & trained[codes]


def parted_by(config: ModelConfig) -> list[str]:
    """The columns whose equal values must not be on both sides of the split."""
    if config.split.by == "entity":
        return [str(config.split.column)]
    return [name for name, column in config.columns.items() if column.feature and not column.personal]


def balance(config: ModelConfig, classes: Mapping[str, int]) -> Iterator[Check]:
    """How rare the rarest class is, by the rows of each."""
    name = config.target.column
    severity = severity_of(config, "balance", name)
    if severity is None or not classes:
        return
    smallest = min(classes.get(label, 0) for label in config.target.labels or classes) / sum(classes.values())
    least = config.validation.min_class
    yield Check(
        name="balance",
        column=name,
        severity=severity,
        passed=smallest >= least,
        observed=f"rarest class {smallest:.2%}",
        expected=f"at least {least:.1%}",
    )


def leaks(config: ModelConfig, frame: pd.DataFrame) -> Iterator[Check]:
    """Columns that the model may see, one by one; the target must not be found in any."""
    most = config.validation.max_leak
    figure = "R²" if config.task == "regression" else "accuracy"
    frame = frame.take(np.random.default_rng(config.seed).permutation(len(frame))[:SAMPLE])
    for name, column in config.columns.items():
        severity = severity_of(config, "leak", name)
        if severity is None or not column.feature or column.personal or column.type == "text":
            continue
        if not {name, config.target.column} <= set(frame.columns):
            continue
        score = told_alone(frame[name], frame[config.target.column], config.seed)
        yield Check(
            name="leak",
            column=name,
            severity=severity,
            passed=score < most,
            observed=f"{figure} {score:.3f} from this column alone" if score >= most else "tells little by itself",
            expected=f"{figure} below {most:g} from one column",
        )


def drift(config: ModelConfig, frame: pd.DataFrame, reference: pd.DataFrame | None) -> Iterator[Check]:
    """Distances of bounded samples; too few rows on a side say nothing, so nothing is reported then.

    Of a text the length counts, up to what a reference keeps of it.
    """
    if reference is None or min(len(frame), len(reference)) < MIN_ROWS:
        return
    method, threshold = config.monitoring.drift, config.monitoring.threshold
    old = reference.sample(min(SAMPLE, len(reference)), random_state=config.seed)
    new = frame.sample(min(SAMPLE, len(frame)), random_state=config.seed)
    for name in public_columns(config):
        severity = severity_of(config, "drift", name)
        if severity is None or name not in old.columns:
            continue
        before, now = old[name], new[name]
        if name in config.columns and config.columns[name].type == "text":
            most = REFERENCE_CHARACTERS // len(reference)
            before, now = (texts.str.len().astype(np.float64).clip(upper=most) for texts in (before, now))
        score = drift_score(method, before, now)
        yield Check(
            name="drift",
            column=name,
            severity=severity,
            passed=score < threshold,
            observed=f"{method} {score:.3f}",
            expected=f"below {threshold:g}",
        )


@step(cache_policy=cached_by(__name__))
def validate(
    config: str, raw: pd.DataFrame | Partitions, reference: int | None = None
) -> tuple[Annotated[QualityReport, "report"], Annotated[HTMLString, "summary"]]:
    """Check the raw rows, compared with the training rows of version `reference` where one is given."""
    parsed = parse_config(config)
    trained = _reference(parsed.name, reference)
    if isinstance(raw, Partitions):
        from steps.validate_parts import validate_partitions

        report, shown = validate_partitions(parsed, raw, trained)
    else:
        report, shown = validate_frame(parsed, raw, trained), raw
    log.info("data quality %.1f of 100, %d checks on %s rows", report.score, len(report.checks), f"{report.rows:,}")
    for check in report.failed():
        log.warning("%s: %s, expected %s", check.key, check.observed, check.expected)
    return report, HTMLString(summarise(parsed, shown))
