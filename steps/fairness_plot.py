"""The picture of a model's fairness: rates of every group with their intervals."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import bounded
from steps.fairness_report import FairnessReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 40
_TITLES = {"selection_rate": "selection rate", "tpr": "TPR", "fpr": "FPR", "mean_error": "mean error"}


def fairness_plot(path: Path, report: FairnessReport) -> None:
    """Draw the rates of the first 40 groups, one panel for each rate; groups that are not judged are grey.

    Args:
        path: File to write.
        report: What was measured.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(grouping, group) for grouping in report.groupings for group in grouping.groups][:SHOWN]
    rates = list(dict.fromkeys(rate for _, group in rows for rate in group.rates))
    figure = Figure(figsize=(3.2 + 2.2 * len(rates), 1.6 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(rates)), sharey=True, squeeze=False)[0]
    names = [f"{' × '.join(grouping.columns)}: {group.name} ({group.rows})" for grouping, group in rows]
    panels[0].set_yticks(range(len(rows)), [bounded(name, 60) for name in names], fontsize=8)
    for axes, rate in zip(panels, rates, strict=False):
        _draw(axes, rate, [(place, group) for place, (_, group) in enumerate(rows) if rate in group.rates])
    panels[0].invert_yaxis()
    of = f" of '{bounded(report.positive, 40)}'" if report.positive else ""
    figure.suptitle(
        f"Rates{of} by group (test rows), {report.confidence:.0%} intervals; grey: too few rows", fontsize=10
    )
    figure.savefig(path, dpi=100)


def _draw(axes: "Axes", rate: str, groups: list[tuple[int, Any]]) -> None:
    for place, group in groups:
        found, colour = group.rates[rate], "tab:blue" if group.judged else "lightgrey"
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
        axes.plot(found.value, place, marker="o", markersize=4, color=colour)
    axes.set_title(_TITLES.get(rate, rate), fontsize=9)
    if rate != "mean_error":
        axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
