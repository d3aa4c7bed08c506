"""The fairness gates: the near end of the worst gap between groups, against what the YAML allows."""

from dataclasses import dataclass
from typing import Final, Literal

from models.config import ModelConfig
from models.errors import ConfigError
from steps.cells import RATES
from steps.fairness_report import FairnessReport, Gap

GAP_GATES: Final = tuple(f"{rate}_gap" for rate in ("tpr", *(rate for rate in RATES if rate != "tpr")))
_TIE = 1e-12


@dataclass(frozen=True)
class GapVerdict:
    """What a fairness gate says.

    Attributes:
        value: The near end of the worst gap; None where no gap was judged.
        verdict: `skipped` where there is nothing to judge.
        reason: Column, groups, rates and rows.
    """

    value: float | None
    verdict: Literal["passed", "failed", "skipped"]
    reason: str


def judge_gap(config: ModelConfig, report: FairnessReport | None, gate: str, allowed: float) -> GapVerdict:
    """Judge the worst gap of one rate, over all columns and crossings, on the near end of its interval.

    Args:
        config: The model.
        report: Its fairness on the test rows.
        gate: One of `GAP_GATES`.
        allowed: Largest gap that is allowed.
    """
    if not config.sensitive_names():
        return GapVerdict(None, "skipped", "no column is `sensitive: true`")
    if config.task == "regression":
        return GapVerdict(None, "skipped", "a regression selects nobody; its evaluation shows mean errors by group")
    if report is None:
        return GapVerdict(None, "failed", "fairness was not measured; evaluate the model again")
    rate = gate.removesuffix("_gap")
    worst = report.worst(rate)
    if worst is None:
        reason = f"no two groups of at least {report.min_rows} test rows have a {_words(rate)} to compare"
        return GapVerdict(None, "skipped", reason)
    reason = _reason(report, worst, allowed)
    passed = worst.low <= allowed + _TIE
    if passed and (left := sum(grouping.unjudged for grouping in report.groupings)):
        reason = f"{left} groups of at least {report.min_rows} rows are too many to be judged; {reason}"
        return GapVerdict(worst.low, "failed", reason)
    return GapVerdict(worst.low, "passed" if passed else "failed", reason)


def require_gaps(config: ModelConfig) -> None:
    """Refuse a fairness gate that asks for a gap to be large.

    Raises:
        ConfigError: It gives `min`.
    """
    for name in GAP_GATES:
        if name in config.gates and config.gates[name].max is None:
            raise ConfigError(f"gates.{name}: give max, the largest gap that is allowed")


def _reason(report: FairnessReport, gap: Gap, allowed: float) -> str:
    sides = [f"{side.group} {side.rate:.2f} of {side.of} ({side.rows} rows)" for side in (gap.higher, gap.lower)]
    ends = f"{gap.value:.2f} ({gap.low:.2f} to {gap.high:.2f} at {report.confidence:.0%})"
    beyond = sum(grouping.beyond for grouping in report.groupings)
    return (
        f"{_words(gap.rate)} of '{gap.positive}' by {' × '.join(gap.columns)}: {' and '.join(sides)}; gap {ends}, "
        f"a near end of at most {allowed:g} is asked"
        + (f" ({beyond} smaller groups are not compared)" if beyond else "")
    )


def _words(rate: str) -> str:
    return {"tpr": "true positive rate", "fpr": "false positive rate"}.get(rate, rate.replace("_", " "))
