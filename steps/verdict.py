"""The verdict on a challenger: the gates it must pass and what follows from them. Nothing here writes anything."""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig
from models.errors import ConfigError, bounded
from models.judgement import Floor, Improvement
from steps.behaviour import Behaved, require_behaviour
from steps.evaluate import Evaluation
from steps.fairness_gate import GAP_GATES, judge_gap, require_gaps
from steps.figures import BY_CLASS
from steps.metrics import best_value, metric_names
from steps.package import Package
from steps.paired import Paired
from steps.slice_gate import SLICE, is_slice_gate, judge_slices, require_slices
from steps.slices import slice_gap

Decision = Literal["promoted", "kept", "rejected", "pending"]
TIE = 1e-12
REASON_LIMIT = 400
SHIPPED = "models/base.yaml"
_NO_ORIGINS: Mapping[str, str] = {}
_SINGLE = ("quality_score", "test_rows", "p50_ms", "p95_ms", "size_mb")
_FIGURES = (*_SINGLE, "slice_gap")
_DRIFT = "importance_drift"
_REFERENCES: Mapping[str, str] = {"beats_dummy": "the dummy", "beats_linear": "the plain linear model"}


class Gate(BaseModel):
    """One gate and what came of it.

    Attributes:
        name: A metric's name, or `quality_score`, `beats_dummy`, `smoke_test`, `improvement`, ….
        value: What was measured; None when it could not be.
        threshold: What was asked for; None where the gate is a plain yes or no.
        margin: How far `value` lies on the good side of `threshold` (negative: on the bad side).
        blocking: Whether failing it stops the promotion; otherwise it is a warning.
        verdict: `skipped` when there was nothing to measure against.
        reason: The same in words.
        overridden: Whether a person promoted in spite of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | None
    threshold: float | None
    margin: float | None
    blocking: bool
    verdict: Literal["passed", "failed", "skipped"]
    reason: str
    overridden: bool = False


class Verdict(BaseModel):
    """What became of a challenger.

    Attributes:
        champion: The champion's version after the verdict; None when there is none.
        former: The champion it was judged against; None when there was none.
        gates: The gate table; its last row is `improvement`.
        rows: Rows that champion and challenger were compared on; neither was trained on them.
        reason: The verdict in words.
        sequence: The ledger's entry that holds this verdict; 0 before it is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    decision: Decision
    champion: int | None
    former: int | None
    gates: tuple[Gate, ...]
    rows: int
    reason: str
    sequence: int = 0


def judge(config: ModelConfig, evaluation: Evaluation, package: Package, champion: int | None) -> Verdict:
    """Judge a challenger against the gates of its YAML and against the champion.

    A failed blocking gate rejects it. A champion that it could not be compared with leaves it pending. Else it is
    promoted when it is the first, or better by what `promotion.min_improvement` asks and not by noise; on a tie the
    champion is kept.

    Args:
        config: The model's configuration.
        evaluation: What the challenger is worth, and the champion on the same rows.
        package: Its Bento and what the smoke test said.
        champion: Version of the present champion, by the ledger; None when there is none.
    """
    gates = [_smoke_gate(package), _reference_gate(config, evaluation, "beats_dummy")]
    if "beats_linear" in config.gates:
        gates.append(_reference_gate(config, evaluation, "beats_linear"))
    measured = _measured(evaluation, package)
    gates += [_behaviour_gate(behaved) for behaved in evaluation.behaviour]
    others = (*_REFERENCES, _DRIFT, *GAP_GATES)
    gates += [
        _floor_gate(name, floor, measured) if is_measured(config, name) else _no_figure(config, name, floor)
        for name, floor in config.gates.items()
        if name not in others and not is_slice_gate(name)
    ]
    gates += [_slice_gate(config, evaluation, name) for name in config.gates if is_slice_gate(name)]
    if _DRIFT in config.gates:
        gates.append(_drift_gate(config.gates[_DRIFT], evaluation))
    gates += [_gap_gate(config, evaluation, name) for name in GAP_GATES if name in config.gates]
    failed = [gate for gate in gates if gate.blocking and gate.verdict == "failed"]
    improvement, outcome, reason = _against_champion(config, evaluation, package.version, champion)
    if failed and package.version != champion:
        outcome = "rejected"
        reason = "; ".join(f"gate {gate.name} failed: {gate.reason}" for gate in failed)
    elif failed:
        reason += f", though it fails {', '.join(gate.name for gate in failed)} now"
    return Verdict(
        model=config.name,
        version=package.version,
        decision=outcome,
        champion=package.version if outcome == "promoted" else champion,
        former=champion,
        gates=(*gates, improvement),
        rows=evaluation.rows if champion is not None else 0,
        reason=bounded(reason),
    )


def require_gates(config: ModelConfig, origins: Mapping[str, str] = _NO_ORIGINS) -> None:
    """Refuse a gate that nothing measures, and a behavioural check that cannot be run, before anything is trained.

    Args:
        config: The model's configuration.
        origins: Which layer set each key (`models.config.Resolved`). A shipped gate that no layer of the user's touches
            is not refused: where the task has no such figure, `judge` skips it.

    Raises:
        ConfigError: The message names what there is.
    """
    require_behaviour(config)
    for name in config.gates:
        own = {origin for key, origin in origins.items() if key == "gates" or key.startswith(f"gates.{name}.")}
        if not is_measured(config, name) and own != {SHIPPED}:
            known = _names(config)
            classes = f"; by class: {'|'.join(BY_CLASS)}:CLASS" if config.task == "classification" else ""
            raise ConfigError(f"gates: nothing measures '{name}' (there is: {', '.join(known)}{classes})")
    require_gaps(config)
    require_slices(config)


def is_measured(config: ModelConfig, name: str) -> bool:
    """Whether the task has the figure that a gate is named after."""
    if name in _names(config) or is_slice_gate(name):
        return True
    figure, _, label = name.partition(":")
    labels = config.target.labels
    return figure in BY_CLASS and config.task == "classification" and (label in labels or bool(label and not labels))


def _names(config: ModelConfig) -> tuple[str, ...]:
    """The gates that the task may have, but for those of a class or of one slice."""
    return (*metric_names(config, config.target.labels), *_FIGURES, SLICE, _DRIFT, *GAP_GATES, *_REFERENCES)


def _measured(evaluation: Evaluation, package: Package) -> dict[str, float]:
    """Every figure that a gate of the YAML may name."""
    sizes = (float(evaluation.test_rows), package.p50_ms, package.p95_ms, package.size_bytes / 1e6)
    figures = {**evaluation.challenger, **dict(zip(_SINGLE, (evaluation.quality_score, *sizes), strict=True))}
    if (gap := slice_gap(evaluation.slices)) is not None:
        figures["slice_gap"] = gap
    for one in evaluation.classes:
        figures |= {f"{name}:{one.label}": value for name, value in one.figures.items()}
    return figures


def _no_figure(config: ModelConfig, name: str, floor: Floor) -> Gate:
    return _skipped_floor(name, floor, f"a {config.task} has no {name}")


def _skipped_floor(name: str, floor: Floor, reason: str) -> Gate:
    return Gate(
        name=name,
        value=None,
        threshold=floor.min if floor.min is not None else floor.max,
        margin=None,
        blocking=floor.blocking,
        verdict="skipped",
        reason=bounded(reason, REASON_LIMIT),
    )


def _gate(
    name: str,
    passed: bool,
    reason: str,
    *,
    value: float | None = None,
    threshold: float | None = None,
    margin: float | None = None,
    blocking: bool = True,
) -> Gate:
    return Gate(
        name=name,
        value=_finite(value),
        threshold=_finite(threshold),
        margin=_finite(margin),
        blocking=blocking,
        verdict="passed" if passed else "failed",
        reason=bounded(reason, REASON_LIMIT),
    )


def _smoke_gate(package: Package) -> Gate:
    passed = package.smoke == "passed"
    said = "served from its Bento, it answered its golden inputs" if passed else package.smoke
    return _gate("smoke_test", passed, said)


def _behaviour_gate(behaved: Behaved) -> Gate:
    share, asked = behaved.share, behaved.min_share
    return _gate(
        f"behaviour:{behaved.name}",
        behaved.passed,
        behaved.reason,
        value=share,
        threshold=asked,
        margin=None if share is None else share - asked,
        blocking=behaved.blocking,
    )


def _floor_gate(name: str, floor: Floor, measured: Mapping[str, float]) -> Gate:
    """A gate of the YAML on one figure; one that is not there, or is no number, fails it; without slices: skipped."""
    bound = floor.min if floor.min is not None else floor.max
    assert bound is not None
    if name == "slice_gap" and name not in measured:
        return _skipped_floor(name, floor, "there is no slice that is large enough and allows the metric")
    if name not in measured:
        reason = f"{name} was not measured, or these test rows do not allow it (there is: {', '.join(measured)})"
        return _gate(name, False, reason, threshold=bound, blocking=floor.blocking)
    value = measured[name]
    if not math.isfinite(value):
        reason = f"{name} could not be computed on these test rows"
        return _gate(name, False, reason, threshold=bound, blocking=floor.blocking)
    margin = value - bound if floor.min is not None else bound - value
    asked = f"at least {_figure(bound)}" if floor.min is not None else f"at most {_figure(bound)}"
    reason = f"{_figure(value)}, {asked} is asked"
    return _gate(name, margin >= -TIE, reason, value=value, threshold=bound, margin=margin, blocking=floor.blocking)


def _drift_gate(floor: Floor, evaluation: Evaluation) -> Gate:
    """A gate on what the challenger goes by, beside the champion; skipped where there is no champion."""
    gate = _floor_gate(
        _DRIFT, floor, {} if evaluation.importance_drift is None else {_DRIFT: evaluation.importance_drift}
    )
    if evaluation.champion_version is not None:
        return gate
    return gate.model_copy(update={"verdict": "skipped", "reason": "there is no champion yet"})


def _gap_gate(config: ModelConfig, evaluation: Evaluation, name: str) -> Gate:
    """A fairness gate of the YAML, on the near end of the worst gap between groups."""
    floor = config.gates[name]
    assert floor.max is not None
    judged = judge_gap(config, evaluation.fairness, name, floor.max)
    return Gate(
        name=name,
        value=judged.value,
        threshold=floor.max,
        margin=None if judged.value is None else floor.max - judged.value,
        blocking=floor.blocking,
        verdict=judged.verdict,
        reason=bounded(judged.reason, REASON_LIMIT),
    )


def _slice_gate(config: ModelConfig, evaluation: Evaluation, name: str) -> Gate:
    """A gate of the YAML on the worst of the slices that it is named after."""
    floor = config.gates[name]
    judged = judge_slices(config, evaluation.slices, evaluation.unjudged, name, floor)
    return _gate(
        name,
        judged.passed,
        judged.reason,
        value=judged.value,
        threshold=judged.threshold,
        margin=judged.margin,
        blocking=floor.blocking,
    )


def _reference_gate(config: ModelConfig, evaluation: Evaluation, name: str) -> Gate:
    """Better than a simple model on the test rows: by any amount, or by the `min` that the YAML gives."""
    floor = config.gates.get(name)
    blocking = name == "beats_dummy" or floor is None or floor.blocking
    reference = evaluation.dummy if name == "beats_dummy" else evaluation.linear
    value = evaluation.challenger.get(evaluation.metric, math.nan)
    if not (math.isfinite(value) and math.isfinite(reference)):
        reason = f"{evaluation.metric} could not be computed on these test rows"
        return _gate(name, False, reason, value=value, threshold=reference, blocking=blocking)
    sign = 1 if evaluation.greater_is_better else -1
    asked = (floor.min or 0.0) if floor else 0.0
    gain = sign * (value - reference)
    passed = gain >= asked - TIE if asked else gain > TIE
    reason = f"{evaluation.metric} {_figure(value)}, {_REFERENCES[name]} has {_figure(reference)}"
    threshold = reference + sign * asked
    return _gate(name, passed, reason, value=value, threshold=threshold, margin=gain - asked, blocking=blocking)


def _against_champion(
    config: ModelConfig, evaluation: Evaluation, version: int, champion: int | None
) -> tuple[Gate, Decision, str]:
    """The improvement gate, and the decision as far as the champion is concerned."""
    asked = config.promotion.min_improvement
    if champion is None:
        return _skipped(asked, "there is no champion yet"), "promoted", f"v{version} is the first champion"
    if version == champion:
        reason = "this Release is the champion (same data, same score)"
        return _skipped(asked, reason), "kept", f"v{champion} stays: {reason}"
    if why_not := _incomparable(evaluation, champion):
        return _skipped(asked, why_not), "pending", f"v{version} waits for a person: {why_not}"
    gate = _improvement_gate(asked, evaluation, champion)
    if gate.verdict == "passed":
        return gate, "promoted", f"v{version} is better than v{champion}: {gate.reason}"
    return gate, "kept", f"v{champion} stays: {gate.reason}"


def _skipped(asked: Improvement, reason: str) -> Gate:
    return Gate(
        name="improvement",
        value=None,
        threshold=asked.value,
        margin=None,
        blocking=True,
        verdict="skipped",
        reason=bounded(reason, REASON_LIMIT),
    )


def _incomparable(evaluation: Evaluation, champion: int) -> str:
    """Why challenger and champion cannot be compared; empty when they can."""
    if evaluation.champion_version != champion:
        other = evaluation.champion_version
        then = "there was no champion" if other is None else f"v{other} was champion"
        return f"v{champion} is champion now, but {then} when it was evaluated"
    notes = f" ({'; '.join(evaluation.notes)})" if evaluation.notes else ""
    if evaluation.champion is None or evaluation.challenger_compared is None or evaluation.rows == 0:
        return f"v{champion} could not be compared with it on rows that neither was trained on{notes}"
    figures = (evaluation.champion, evaluation.challenger_compared)
    if not all(math.isfinite(metrics.get(evaluation.metric, math.nan)) for metrics in figures):
        return f"{evaluation.metric} could not be computed on the {evaluation.rows} rows compared{notes}"
    if evaluation.paired is None:
        return f"there is no interval for the difference on the {evaluation.rows} rows compared{notes}"
    return ""


def _improvement_gate(asked: Improvement, evaluation: Evaluation, champion: int) -> Gate:
    """How much better the challenger is on the compared rows, in the metric's units or as share of the error.

    That much is asked, and that the lower bound of the paired difference is above zero: a difference that noise may
    have made promotes a challenger that is no better in at most 2.5 % of the cases.
    """
    paired, figures = evaluation.paired, evaluation.champion
    assert figures is not None and evaluation.challenger_compared is not None and paired is not None
    metric = evaluation.metric
    old, new = figures[metric], evaluation.challenger_compared[metric]
    gain = paired.estimate
    error = abs(best_value(metric) - old)
    rows = f"{evaluation.rows} rows that neither was trained on"
    both = f"{metric} {_figure(new)}, v{champion} has {_figure(old)}, on {rows}"
    value: float | None = gain
    if asked.of == "error":
        value = gain / error if error > TIE else None
    if abs(gain) <= TIE:
        reason = f"{metric} is {_figure(old)} for both on {rows}"
        return _gate("improvement", False, reason, value=0.0, threshold=asked.value, margin=-asked.value)
    if value is None:
        reason = f"{both}; there was no error left to reduce"
        return _gate("improvement", False, reason, value=gain, threshold=asked.value)
    share = f" of v{champion}'s error" if asked.of == "error" else ""
    reason = f"{both}: {_change(value, asked.of)}{share}, at least {_change(asked.value, asked.of)} is asked"
    enough = gain > 0 and value >= asked.value - TIE
    certain = paired.low > TIE
    passed = enough and certain
    reason += f"; {_certainty(paired, certain)}"
    return _gate("improvement", passed, reason, value=value, threshold=asked.value, margin=value - asked.value)


def _certainty(paired: Paired, certain: bool) -> str:
    """What the paired bootstrap and McNemar's test say, in words."""
    bound = f"the difference is at least {paired.low:+.4f} with 97.5 % confidence"
    said = bound if certain else f"{bound}, so it may be noise"
    return said if paired.mcnemar_p is None else f"{said} (McNemar's p {paired.mcnemar_p:.2g})"


def _change(value: float, of: str) -> str:
    return f"{value:+.1%}" if of == "error" else f"{value:+.4f}"


def _figure(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 1e4 else f"{value:.6g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
