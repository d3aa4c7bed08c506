"""Pictures of a champion at work, all on one time axis with the champions, decisions and alerts below."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from models.monitoring import CheckName
from stacks.findings import ESTIMATED, Finding, deciding, scores
from steps.document import Picture
from steps.live import Live
from steps.live_section import largest_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_COLUMNS: Final = 25
SHOWN_METRICS: Final = 16
_SIZE: Final = (6.4, 4.4)
_SEVERITY: Final = {"critical": "#c4572e", "warning": "#d9a400", "info": "#6b7280"}
_BANDS: Final = ("#cfe0f7", "#e6dcf5", "#d5eedd", "#f7e7cf", "#e3e6eb")
_MARKS: Final = {"promote": ("^", "#14753f", "promoted"), "rollback": ("v", "#b3261e", "rolled back")}
_BLUE, _ORANGE, _GREY = "#2a78d6", "#c4572e", "#6b7280"


def trend_pictures(live: Live) -> tuple[Picture, ...]:
    """Draw whatever was measured: performance, all metrics, drift by column, shares and gaps, quality, volume."""
    drawn: tuple[tuple[str, Callable[[Live], bytes | None]], ...] = (
        (f"{live.metric}, window by window", _performance),
        ("Every metric", _metrics),
        ("Drift by column and window; a dot: the column drifted", _heat),
        ("Drift of inputs, answers, target and concept; gaps between groups", _shares),
        ("Quality of served rows", _quality),
        ("Volume", _volume),
    )
    pictures = ((title, draw(live)) for title, draw in drawn)
    return tuple(Picture(title, png) for title, png in pictures if png)


def _performance(live: Live) -> bytes | None:
    """The metric that decides with its interval, estimates apart from it, holdout and limit."""
    findings = live.of("performance")
    measured, estimated = _decided(findings, live.metric, ""), _decided(findings, live.metric, ESTIMATED)
    if not measured and not estimated:
        return None
    with _timed(live, live.metric) as (axes, png):
        if measured:
            when, values, lows, highs = _columns(measured)
            axes.fill_between(when, lows, highs, color=_BLUE, alpha=0.18, linewidth=0, label="its interval")
            axes.plot(when, values, color=_BLUE, marker="o", markersize=3.5, label="measured")
        if estimated:
            when, values, lows, highs = _columns(estimated)
            spread = np.array([values - lows, highs - values]).clip(0)
            style: dict[str, Any] = {"fmt": "D", "markersize": 4, "markerfacecolor": "white", "linewidth": 0.8}
            axes.errorbar(when, values, yerr=spread, color=_GREY, label="estimate, no labels", **style)
        for name, dashes, colour in (("holdout", "--", "#14753f"), ("limit", ":", "#b3261e")):
            when, line = _series(findings, name)
            if len(when):
                axes.step(when, line, where="mid", linestyle=dashes, color=colour, linewidth=1.2, label=name)
        found = [point for point in measured if point[0].state == "found"]
        if found:
            when, values, _, _ = _columns(found)
            axes.scatter(when, values, s=46, facecolors="none", edgecolors="#b3261e", zorder=3, label="found")
    return png.getvalue()


def _metrics(live: Live) -> bytes | None:
    """Every metric in a panel of its own, where there is more than the one that decides."""
    findings = live.of("performance")
    names = list(dict.fromkeys(name for finding in findings for name in scores(finding.figures)))
    others = [name for name in names if name != live.metric][:SHOWN_METRICS]
    if not others:
        return None
    with _timed(live, others, height=1.5 + 1.15 * len(others)) as (panels, png):
        for axes, name in zip(panels, others, strict=True):
            when, values = _series(findings, name)
            axes.plot(when, values, color=_BLUE, marker="o", markersize=3)
    return png.getvalue()


def _heat(live: Live) -> bytes | None:
    """Effects as a map: columns down, windows along; a dot where the column drifted."""
    findings = [finding for finding in live.of("drift") if finding.columns]
    if not findings:
        return None
    names = largest_columns(findings)[:SHOWN_COLUMNS]
    effects = np.array([[f.columns.get(name, np.nan) for f in findings] for name in names])
    limit = max((f.figures.get("threshold", 0.0) for f in findings), default=0.0)
    with _timed(live, "", height=1.9 + 0.24 * len(names)) as (axes, png):
        ends = [finding.until for finding in findings]
        edges = _numbers([min(findings[0].since, ends[0]), *ends])
        edges = np.maximum.accumulate(edges) + np.arange(len(edges)) * 1e-6  # windows that end together have no width
        top = max(2 * limit, float(np.nanmax(effects)))
        mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), effects, cmap="YlOrRd", vmin=0, vmax=top or 1.0)
        axes.figure.colorbar(mesh, ax=axes, label="effect", pad=0.01, aspect=30)
        middles = (edges[:-1] + edges[1:]) / 2
        marked = [
            (middles[x], y + 0.5) for y, name in enumerate(names) for x, f in enumerate(findings) if name in f.named
        ]
        if marked:
            axes.scatter(*zip(*marked, strict=True), s=9, color="black")
        axes.set_yticks(np.arange(len(names)) + 0.5, [name[:28] for name in names], fontsize=7)
        axes.invert_yaxis()
    return png.getvalue()


def _shares(live: Live) -> bytes | None:
    """What drifted as a whole, and how far groups are apart, on one scale."""
    lines: tuple[tuple[str, CheckName, str], ...] = (
        ("inputs, share", "drift", "drifted_share"),
        ("answers, share", "prediction_drift", "drifted_share"),
        ("target, effect", "performance", "target_effect"),
        ("concept, gap", "performance", "concept_gap"),
    )
    drawn = [(label, *_series(live.of(check), figure)) for label, check, figure in lines]
    gaps = list(dict.fromkeys(n for f in live.of("fairness") for n in f.figures if n.endswith("_gap")))
    drawn += [(name.replace("_", " "), *_series(live.of("fairness"), name)) for name in gaps[:SHOWN_METRICS]]
    if not any(len(when) for _, when, _ in drawn):
        return None
    with _timed(live, "share, effect or gap") as (axes, png):
        for label, when, values in drawn:
            if len(when):
                axes.plot(when, values, marker="o", markersize=3.5, label=label)
        axes.axhline(0, color=_GREY, linewidth=0.8)
    return png.getvalue()


def _quality(live: Live) -> bytes | None:
    findings = live.of("quality")
    lines = [("score", 1.0), ("completeness", 100.0), ("compliance", 100.0)]
    drawn = [(name, *_series(findings, name), scale) for name, scale in lines]
    if not any(len(when) for _, when, _, _ in drawn):
        return None
    with _timed(live, "0 to 100") as (axes, png):
        for name, when, values, scale in drawn:
            if len(when):
                axes.plot(when, values * scale, marker="o", markersize=3, label=name)
        axes.set_ylim(top=101)
    return png.getvalue()


def _volume(live: Live) -> bytes | None:
    findings = [finding for finding in live.of("quality") if "volume" in finding.figures]
    if not findings:
        return None
    with _timed(live, "rows of a window") as (axes, png):
        ends, rows = _numbers([f.until for f in findings]), [f.figures["volume"] for f in findings]
        begins = np.maximum(_numbers([f.since for f in findings]), np.concatenate([[-np.inf], ends[:-1]]))
        axes.bar(
            begins,
            rows,
            width=np.maximum(ends - begins, 0.01),
            align="edge",
            color=_BLUE,
            edgecolor="white",
            alpha=0.55,
        )
        when, usual = _series(findings, "usual_volume")
        if len(when):
            axes.plot(when, usual, color=_ORANGE, linestyle="--", label="usual")
        axes.set_ylim(bottom=0)
    return png.getvalue()


@contextmanager
def _timed(live: Live, up: str | Sequence[str], height: float = _SIZE[1]) -> "Iterator[tuple[Any, BytesIO]]":
    """Axes (a list of them for a list of names) over the time that is shown, champions below; the PNG afterwards."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    names = [up] if isinstance(up, str) else list(up)
    figure, png = Figure(figsize=(_SIZE[0], height), layout="constrained"), BytesIO()
    FigureCanvasAgg(figure)
    heights = [(height - 1.0) / len(names)] * len(names) + [0.75]
    *panels, band = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name[:30], fontsize=8)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    yield (panels[0] if isinstance(up, str) else panels), png
    _history(live, band)
    band.set_xlim(*_numbers([live.begin, live.end + (live.end - live.begin) / 60]))
    locator: Any = AutoDateLocator(maxticks=7)  # type: ignore[no-untyped-call]
    band.xaxis.set_major_locator(locator)
    band.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    for axes in [*panels, band]:
        if axes.get_legend_handles_labels()[1]:
            axes.legend(
                fontsize=7, loc="best" if axes is not band else "upper left", ncols=1 if axes is not band else 4
            )
    _legend_below(band)
    # Names of columns and metrics are text: a `$` in them begins no formula.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.savefig(png, format="png", dpi=110)


def _history(live: Live, band: "Axes") -> None:
    """Champions as a band, promotions, rollbacks and decisions as marks on it, alerts as lines from begin to end."""
    band.set_ylim(0, 2)
    band.set_yticks([0.5, 1.5], ["alerts", "champion"], fontsize=7)
    colours = {version: _BANDS[i % len(_BANDS)] for i, version in enumerate(sorted({r.version for r in live.reigns}))}
    for reign in live.reigns:
        since, until = _numbers([reign.since, reign.until])
        band.barh(1.5, until - since, left=since, height=0.8, color=colours[reign.version], edgecolor="white")
        band.text((since + until) / 2, 1.5, f"v{reign.version}", ha="center", va="center", fontsize=7, clip_on=True)
    told: set[str] = set()
    for entry in live.entries:
        if entry.action in _MARKS:
            marker, colour, label = _MARKS[entry.action]
            at = _numbers([entry.time])
            band.plot(
                at, [1.5], marker, color=colour, markersize=6, label=None if label in told else label, linestyle=""
            )
            told.add(label)
    for alert in live.alerts:
        begin, end = _numbers([alert.raised, alert.recovered or live.end])
        severity, colour = alert.severity, _SEVERITY[alert.severity]
        named = None if severity in told else severity
        band.plot([begin, max(begin, end)], [0.5, 0.5], color=colour, marker="|", linewidth=4, alpha=0.8, label=named)
        told.add(alert.severity)


def _legend_below(band: "Axes") -> None:
    """The band's legend has no room inside it."""
    if legend := band.get_legend():
        legend.remove()
        band.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=5, frameon=False)


_Point = tuple[Finding, float, float, float]


def _decided(findings: Sequence[Finding], metric: str, prefix: str) -> list[_Point]:
    """Windows with the metric that decides, or its estimate, and the ends of its interval."""
    points = []
    for finding in findings:
        name, figures = f"{prefix}{deciding(finding.figures, metric)}", finding.figures
        if (value := figures.get(name)) is not None:
            points.append((finding, value, figures.get(f"{name}_low", value), figures.get(f"{name}_high", value)))
    return points


def _columns(points: Sequence[_Point]) -> tuple[Any, Any, Any, Any]:
    when = _numbers([finding.until for finding, _, _, _ in points])
    return when, *(np.array([point[place] for point in points]) for place in (1, 2, 3))


def _series(findings: Sequence[Finding], name: str) -> tuple[Any, Any]:
    """When windows ended and a figure of theirs, where they have it."""
    known = [(finding.until, finding.figures[name]) for finding in findings if name in finding.figures]
    return _numbers([when for when, _ in known]), np.array([value for _, value in known])


def _numbers(moments: Sequence[datetime]) -> Any:
    """Moments as matplotlib's axes count them, in days."""
    from matplotlib.dates import date2num

    return np.asarray(date2num(list(moments)), dtype=float)  # type: ignore[no-untyped-call]
