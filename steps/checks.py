"""The checks of monitoring: each looks at a window of what a champion answered and says whether there is trouble.

Inputs of all versions count for quality and drift, as rows come whoever answers them; only the champion's own answers
count for performance, prediction drift and fairness. A window in which nothing was answered is not judged, though it
could be widened to older rows: these were judged when they came.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from pydantic import BaseModel

from bentos import predictions
from bentos.release import told
from models.config import ModelConfig
from models.monitoring import CheckName
from models.section import length
from stacks.findings import State
from steps.champion import Champion
from steps.dataset_drift import ColumnDrift, DatasetDrift, dataset_drift
from steps.drift import distance
from steps.fairness import measure_fairness
from steps.fairness_gate import GAP_GATES, GapVerdict, judge_gap
from steps.fairness_report import FairnessReport
from steps.performance import Performance, window_performance
from steps.prediction_drift import prediction_drift, target_drift
from steps.served_quality import ServedQuality, served_quality
from steps.window import SHADOW, Labelled, Window, read_labels

EARLIER: Final = 8
LEAST_EARLIER: Final = 3
NAMED: Final = 5
AGAIN: Final = "a champion trained from now on has them"


@dataclass(frozen=True)
class Checked:
    """What a check says of a window.

    Attributes:
        state: As in `stacks.findings.Finding`.
        said: The same in words.
        figures: By name; those that are not finite are left out of the finding.
        columns: A figure of each column.
        named: What was found.
        detail: All that was measured; None where nothing was.
    """

    state: State
    said: str
    figures: Mapping[str, float | None] = field(default_factory=dict)
    columns: Mapping[str, float] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    detail: BaseModel | None = None


@dataclass(frozen=True)
class Scene:
    """What a check looks at.

    Attributes:
        champion: The champion.
        window: What was answered, by any version.
        now: The moment up to which outcomes count.
        url: Of the prediction log, as `stacks.ledger.Ledger` takes it.
    """

    champion: Champion
    window: Window
    now: datetime
    url: str

    @cached_property
    def own(self) -> Window:
        """What the champion answered."""
        return self.window.take(self.window.of_version(self.champion.version))

    @cached_property
    def labelled(self) -> Labelled:
        """Those of the champion's answers whose outcome is known."""
        return read_labels(self.url, self.champion.release.schema, self.own, self.now)


def check_performance(scene: Scene) -> Checked:
    """Performance of the labelled answers beside the holdout's, its estimate, concept drift and drift of the target."""
    champion, own = scene.champion, scene.own
    if not _fresh(own):
        return _unanswered(scene, own)
    metric, schema = champion.config.metric, champion.release.schema
    if metric not in champion.metrics:
        return Checked("unjudged", f"the {metric} of v{champion.version} on its test rows is not known: {AGAIN}")
    labels = scene.labelled
    found = window_performance(
        champion.config, schema, own.scores, labels, champion.metrics[metric], champion.holdout_gap
    )
    target = target_drift(champion.config, champion.release.reference()[schema.target], labels.truth)
    drifted = found.concept is not None and found.concept.drifted
    state: State = "unjudged" if found.state == "too_few_labels" else "held"
    named = ((metric,) if found.state == "degraded" else ()) + (("concept drift",) if drifted else ())
    return Checked(
        state="found" if named else state,
        said=_noted(_performance_said(champion, found, target), own),
        figures={**_performance_figures(found), **_label_figures(labels), **_target_figures(target)},
        named=named,
        detail=found,
    )


def check_quality(scene: Scene) -> Checked:
    """Data quality of the rows beside training's, volume beside that of earlier windows, and silence."""
    config, window = scene.champion.config, scene.window
    if not window.rows:
        return _unanswered(scene, window)
    limits = config.monitoring.quality
    volumes = _earlier_volumes(scene)
    found = served_quality(config, window, scene.champion.release.reference_summary, volumes)
    fresh = _fresh(window)
    troubles = {}
    if fresh and found.score is not None and found.score < limits.min_score:
        failed = f"; failed: {_some(found.failed)}" if found.failed else ""
        troubles["score"] = f"quality score {found.score:g}, {limits.min_score:g} is asked{failed}"
    if limits.volume is not None and found.volume_ratio is not None:
        low, high = limits.volume
        if not low <= found.volume_ratio <= high:
            usual = f"{found.volume:,} rows, {found.usual_volume:,.0f} are usual"
            troubles["volume"] = f"{usual} ({found.volume_ratio:.2f} times; {low:g} to {high:g} is asked)"
    silence = length(limits.silence) if limits.silence else None
    if silence and found.hours_since_last is not None and timedelta(hours=found.hours_since_last) > silence:
        troubles["silence"] = f"no answer for {found.hours_since_last:.1f} hours, {limits.silence} is allowed"
    if not fresh and not troubles:
        return replace(_unanswered(scene, window), figures=_quality_figures(found, window), detail=found)
    kept = f"quality score {found.score:g}, {len(found.failed)} of its checks failed, {found.volume:,} rows"
    return Checked(
        state="found" if troubles else "held",
        said=_noted("; ".join(troubles.values()) or kept, window),
        figures=_quality_figures(found, window),
        columns={column.column: column.completeness for column in found.columns},
        named=(*troubles, *(found.failed if "score" in troubles else ())),
        detail=found,
    )


def check_drift(scene: Scene) -> Checked:
    """Drift of the inputs from the training reference, column by column."""
    champion, window = scene.champion, scene.window
    if not _fresh(window):
        return _unanswered(scene, window)
    found = dataset_drift(
        champion.config,
        champion.release.reference(),
        window.inputs,
        importance=champion.weights or None,
        unread=window.unread,
        exact=champion.release.reference_summary["columns"],
    )
    return _drifted(found, window, "columns", champion.config)


def check_prediction_drift(scene: Scene) -> Checked:
    """Drift of what the champion says from what it said to its test rows."""
    champion, own = scene.champion, scene.own
    if not _fresh(own):
        return _unanswered(scene, own)
    if champion.holdout is None:
        return Checked("unjudged", f"the answers of v{champion.version} to its test rows were not kept: {AGAIN}")
    reference = champion.holdout.scores.astype(np.float64)
    found = prediction_drift(champion.config, champion.release.schema, reference, own.scores)
    return _drifted(found, own, "figures of its answers", None)


def check_fairness(scene: Scene) -> Checked:
    """Gaps between groups of the labelled answers, beside the model's own fairness gates."""
    config, own, schema = scene.champion.config, scene.own, scene.champion.release.schema
    if not config.sensitive_names():
        return Checked("unjudged", "no column is `sensitive: true`")
    if not _fresh(own):
        return _unanswered(scene, own)
    seen, unseen = _seen_groups(config, own.inputs)
    if not seen.sensitive_names():
        return Checked("unjudged", f"{_some(unseen)}: no feature of the model, so its values are not in the log")
    labels = scene.labelled
    figures = _label_figures(labels)
    if len(labels.rows) < config.monitoring.min_labels:
        return Checked("unjudged", _noted(_few_labels(config, len(labels.rows), own.rows), own), figures)
    frame = own.inputs.iloc[labels.rows].reset_index(drop=True).assign(**{schema.target: labels.truth})
    report = measure_fairness(seen, schema.labels, frame, told(schema, own.scores[labels.rows]))
    judged = {gate: judge_gap(seen, report, gate, config.gates[gate].max or 0.0) for gate in _gap_gates(config)}
    failed = tuple(gate for gate, verdict in judged.items() if verdict.verdict == "failed")
    state: State = "held" if any(verdict.verdict == "passed" for verdict in judged.values()) else "unjudged"
    lacking = f"; {_some(unseen)}: not in the log" if unseen else ""
    return Checked(
        state="found" if failed else state,
        said=_noted(_fairness_said(config, judged, len(labels.rows)) + lacking, own),
        figures={**figures, **(report.figures() if report else {})},
        columns=_gaps_by_column(report),
        named=failed,
        detail=report,
    )


CHECK: Final[Mapping[CheckName, Callable[[Scene], Checked]]] = {
    "performance": check_performance,
    "quality": check_quality,
    "drift": check_drift,
    "prediction_drift": check_prediction_drift,
    "fairness": check_fairness,
}


def finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    """The figures that are numbers."""
    return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}


def _fresh(window: Window) -> bool:
    """Whether any of its rows is of the span that was asked for."""
    return window.rows > window.widened


def _unanswered(scene: Scene, window: Window) -> Checked:
    """Why there is nothing to judge: `window` holds all rows, or the champion's."""
    whole = scene.window
    later = tuple(note for note in whole.notes() if "dated in the future" in note)
    if window is not whole and _fresh(whole):
        others = whole.rows - whole.widened
        said = f"v{scene.champion.version} answered nothing; {others:,} rows were answered by other versions"
    elif window.rows:
        said = f"nothing was answered; the newest answer is of {_minute(window.at[-1])}"
    else:
        said = "nothing was answered"
    return Checked("unjudged", "; ".join((said, *later)), {"rows": 0.0, "later": float(whole.later)})


def _noted(said: str, window: Window) -> str:
    return "; ".join((said, *window.notes()))


def _minute(at: Any) -> str:
    return f"{at.astype('datetime64[ms]').item().replace(tzinfo=UTC):%Y-%m-%d %H:%M} UTC"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")


def _few_labels(config: ModelConfig, labels: int, answers: int) -> str:
    return f"{labels:,} of {answers:,} answers have an outcome, {config.monitoring.min_labels:,} are needed"


def _performance_said(champion: Champion, found: Performance, target: DatasetDrift) -> str:
    metric, parts = found.metric, []
    if found.value is not None and found.low is not None and found.high is not None:
        ends = f"{metric} {found.value:.4g} ({found.low:.4g} to {found.high:.4g}) on {found.labels:,} labels"
        parts.append(f"{ends}; {found.holdout:.4g} on the holdout, degraded from {found.limit:.4g} on")
        if found.state == "uncertain":
            parts.append("chance leaves open whether it is")
    elif found.labels >= champion.config.monitoring.min_labels:
        parts.append(
            f"{metric} cannot be judged on these {found.labels:,} labels: of one class alone, or the own metric fails"
        )
    else:
        parts.append(_few_labels(champion.config, found.labels, found.answers))
    if found.state == "too_few_labels" and found.expected is not None:
        ends = f"{found.expected.low:.4g} to {found.expected.high:.4g}"
        parts.append(f"estimated {metric} {found.expected.value:.4g} ({ends}), which no label stands behind")
    if found.concept is not None and found.concept.drifted:
        gap = f"{found.concept.gap:.4g} ({found.concept.low:.4g} to {found.concept.high:.4g})"
        parts.append(f"concept drift: {metric} is {gap} worse than the scores expect")
    if target.drifted_columns:
        parts.append(f"the target drifted ({_effect(target.columns[0]):.3f})")
    elif not target.judged and target.rows:
        parts.append(f"drift of the target is not judged: {target.reason}")
    if found.contradicted:
        parts.append(f"{found.contradicted:,} labels were told in two ways, the first counts")
    return "; ".join(parts)


def _performance_figures(found: Performance) -> dict[str, float | None]:
    metric, expected, concept = found.metric, found.expected, found.concept
    return {
        **found.figures,
        metric: found.value,
        f"{metric}_low": found.low,
        f"{metric}_high": found.high,
        "holdout": found.holdout,
        "limit": found.limit,
        "answers": float(found.answers),
        "coverage": found.coverage,
        f"estimated_{metric}": expected.value if expected else None,
        f"estimated_{metric}_low": expected.low if expected else None,
        f"estimated_{metric}_high": expected.high if expected else None,
        "estimate_error": found.estimate_error.error if found.estimate_error else None,
        "concept_gap": concept.gap if concept else None,
        "concept_gap_low": concept.low if concept else None,
        "concept_gap_high": concept.high if concept else None,
        "concept_drifted": float(concept.drifted) if concept else None,
    }


def _label_figures(labels: Labelled) -> dict[str, float | None]:
    return {
        "labels": float(len(labels.rows)),
        "contradicted": float(labels.contradicted),
        "later_labels": float(labels.later),
        "unfit_labels": float(labels.unfit),
    }


def _target_figures(target: DatasetDrift) -> dict[str, float | None]:
    if not target.judged:
        return {}
    return {"target_effect": _effect(target.columns[0]), "target_drifted": float(target.columns[0].drifted)}


def _earlier_volumes(scene: Scene) -> tuple[int, ...]:
    """Rows of the windows before this one, back to the first with any; none where fewer than three had any."""
    window, model = scene.window, scene.champion.config.name
    span = window.until - window.since
    ends = [window.until - place * span for place in range(1, EARLIER + 1)]
    counts = [predictions.count(scene.url, model, end - span, end, without=SHADOW) for end in ends]
    used = [place for place, count in enumerate(counts) if count]
    return tuple(counts[: used[-1] + 1]) if len(used) >= LEAST_EARLIER else ()


def _quality_figures(found: ServedQuality, window: Window) -> dict[str, float | None]:
    return {
        "score": found.score,
        "rows": float(found.rows),
        "volume": float(found.volume),
        "usual_volume": found.usual_volume,
        "volume_ratio": found.volume_ratio,
        "hours_since_last": found.hours_since_last,
        "completeness": found.completeness,
        "compliance": found.compliance,
        "untyped": float(window.untyped),
        "later": float(window.later),
    }


def _drifted(found: DatasetDrift, window: Window, what: str, config: ModelConfig | None) -> Checked:
    """The finding of a comparison; `config` says from which share on a data set as a whole has drifted."""
    if not found.judged:
        return Checked("unjudged", _noted(found.reason, window), {"rows": float(found.rows)}, detail=found)
    moved = sorted((column for column in found.columns if column.drifted), key=lambda c: -_effect(c))
    figures: dict[str, float | None] = {
        "rows": float(found.rows),
        "columns": float(len(found.columns)),
        "drifted_columns": float(len(moved)),
        "drifted_share": found.drifted_share,
        "threshold": found.threshold,
        "later": float(window.later),
    }
    if config is not None:
        figures["drifted"] = float(found.drifted)
    return Checked(
        state="found" if moved else "held",
        said=_noted("; ".join(_drift_said(found, moved, what, config)), window),
        figures=figures,
        columns={column.column: _effect(column) for column in found.columns if column.state != "unread"},
        named=tuple(column.column for column in moved),
        detail=found,
    )


def _drift_said(
    found: DatasetDrift, moved: Sequence[ColumnDrift], what: str, config: ModelConfig | None
) -> Sequence[str]:
    told = [f"{len(moved)} of {len(found.columns)} {what} drifted{': ' if moved else ''}"]
    told[0] += _some([f"{c.column} ({'vanished' if c.state == 'vanished' else f'{_effect(c):.3f}'})" for c in moved])
    if config is not None and moved:
        beside = f"weighted share {found.drifted_share:.2f} of {config.monitoring.drifted_share:g}"
        told.append(f"the data set as a whole {'drifted' if found.drifted else 'did not'} ({beside})")
    if fresh := [c for c in found.columns if c.new_categories]:
        shares = [f"{c.column} ({c.new_categories} in {c.new_share:.1%} of its values)" for c in fresh]
        told.append(f"new categories: {_some(shares)}")
    return told


def _effect(column: ColumnDrift) -> float:
    """The larger of a column's effects; of one that vanished that of missing everywhere."""
    if column.state == "vanished":
        kept = np.array([1 - column.reference_missing, column.reference_missing])
        return float(distance("jensenshannon", kept, np.array([0.0, 1.0])))
    return max((found.effect for found in (column.values, column.missing) if found is not None), default=0.0)


def _seen_groups(config: ModelConfig, inputs: pd.DataFrame) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration with those sensitive columns only that logged rows hold, and the names of the others."""
    there = set(inputs.columns)
    unseen = tuple(
        name
        for name in config.sensitive_names()
        if not (name in there or (name in config.derived and there.issuperset(config.derived[name].inputs)))
    )
    changed = {
        part: {
            name: value.model_copy(update={"sensitive": value.sensitive and name not in unseen})
            for name, value in getattr(config, part).items()
        }
        for part in ("columns", "derived")
    }
    return config.model_copy(update=changed), unseen


def _gap_gates(config: ModelConfig) -> tuple[str, ...]:
    return tuple(gate for gate in GAP_GATES if gate in config.gates)


def _fairness_said(config: ModelConfig, judged: Mapping[str, GapVerdict], labels: int) -> str:
    if not judged:
        return "no fairness gate is set (gates: tpr_gap, …), so no gap is judged"
    kinds = {gate: "blocking" if config.gates[gate].blocking else "warning" for gate in judged}
    told = [f"{gate} {v.verdict} ({kinds[gate]}): {v.reason}" for gate, v in judged.items()]
    return "; ".join((f"{labels:,} labels", *told)).replace("test rows", "labelled rows")


def _gaps_by_column(report: FairnessReport | None) -> dict[str, float]:
    """Of each sensitive column the widest gap of any rate."""
    widest: dict[str, float] = {}
    for gap in report.gaps if report else ():
        if len(gap.columns) == 1:
            widest[gap.columns[0]] = max(gap.value, widest.get(gap.columns[0], 0.0))
    return widest
