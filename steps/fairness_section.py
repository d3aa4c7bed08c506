"""Fairness as card and report show it: the worst gaps first, then every group's rates."""

from collections.abc import Mapping, Sequence
from typing import Any

from steps.document import Block, Bullets, Cell, Part, Table, Text, number, with_interval
from steps.fairness_report import FairnessReport, Gap, Group, PlainModel, Side, badness

_WORDS: Mapping[str, str] = {
    "selection_rate": "selection rate",
    "tpr": "true positive rate",
    "fpr": "false positive rate",
    "precision": "precision",
    "mean_error": "mean error",
}


def fairness_part(found: Mapping[str, Any] | None) -> Part:
    """What was measured between groups of the sensitive columns; empty where nothing was.

    Args:
        found: The evaluation's `fairness`, as JSON holds it.
    """
    if not found:
        return Part("Fairness", ())
    report = FairnessReport.model_validate(found)
    blocks: list[Block] = [Text(_about(report))]
    if report.gaps:
        blocks.append(_gaps(report.gaps))
    blocks += [_groups(report)] if report.groupings else []
    if report.plain:
        blocks += _plain(report.plain)
    if report.notes:
        blocks.append(Bullets(report.notes))
    return Part("Fairness", tuple(blocks))


def _about(report: FairnessReport) -> str:
    """How the rates were found; a regression's mean errors have no resamples."""
    share, few = number(100 * report.confidence), f"Groups under {report.min_rows} rows are not judged."
    if not report.resamples:
        return f"Mean errors on the test rows, with {share} % intervals by the normal distribution. {few}"
    of = f" of '{report.positive}'" if report.positive else ""
    return (
        f"Rates{of} on the test rows. Intervals hold {share} % of {report.resamples:,} resamples; those of gaps hold "
        f"for all groups together. {few}"
    )


def _gaps(gaps: Sequence[Gap]) -> Table:
    rows = [
        (
            Cell(_WORDS.get(gap.rate, gap.rate)),
            Cell(" and ".join(gap.columns)),
            Cell(_side(gap.higher)),
            Cell(_side(gap.lower)),
            Cell(with_interval(gap.value, {"low": gap.low, "high": gap.high})),
        )
        for gap in sorted(gaps, key=badness, reverse=True)
    ]
    return Table(("gap in", "by", "higher", "lower", "gap"), tuple(rows))


def _side(side: Side) -> str:
    return f"{side.group}: {number(side.rate)} of {side.of:,}"


def _groups(report: FairnessReport) -> Table:
    groups = [(grouping.columns, group) for grouping in report.groupings for group in grouping.groups]
    rates = tuple(dict.fromkeys(rate for _, group in groups for rate in group.rates))
    rows = tuple((Cell(" and ".join(columns)), *_group(group, rates)) for columns, group in groups)
    return Table(("by", "group", "rows", *(_WORDS.get(rate, rate) for rate in rates)), rows)


def _group(group: Group, rates: Sequence[str]) -> tuple[Cell, ...]:
    shown = [group.rates.get(rate) for rate in rates]
    told = [Cell(with_interval(rate.value, rate.model_dump()) if rate else "–") for rate in shown]
    return (Cell(group.name), Cell(f"{group.rows:,}" if group.judged else f"{group.rows:,}, not judged"), *told)


def _plain(plain: PlainModel) -> list[Block]:
    said = f"Without weights the same model has {number(plain.metric)}, with them {number(plain.reweighed)}; its gaps:"
    return [Text(said), _gaps(plain.gaps)]
