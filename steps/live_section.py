"""The section *Live* of the report: how a champion does at work, and what was done about it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from models.errors import bounded
from stacks.alerts import Alert
from stacks.findings import ESTIMATED, Finding, deciding
from stacks.lifecycle import CROWNING
from steps.document import (
    Block,
    Cell,
    Links,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    Tone,
    number,
    with_interval,
)
from steps.live import Live

TITLE: Final = "Live"
MOST_WINDOWS: Final = 12
MOST_WEEKS: Final = 6
MOST_COLUMNS: Final = 15
MOST_TOLD: Final = 20
_TONES: Final[dict[str, Tone]] = {"held": "good", "found": "bad", "unjudged": "plain"}
_WORDS: Final = {"held": "held", "found": "found", "unjudged": "not judged"}
_SEVERITY: Final[dict[str, Tone]] = {"critical": "bad", "warning": "warn", "info": "plain"}
_WORST: Final[tuple[Tone, ...]] = ("bad", "warn", "good", "plain")


def live_section(model: str, live: Live | None, pictures: Sequence[Picture] | None = None) -> Section:
    """What monitoring knows of a model.

    Args:
        model: Name of the model.
        live: What is known; None where it was never monitored.
        pictures: Of the trends; None where tables are shown in their place.
    """
    if live is None:
        said = f"`gauntlet monitor {model}` looks at what it answered."
        return Section(TITLE, f"{model} was never monitored", "plain", said, (), ())
    trend: tuple[Part, ...] = (_performance(live), _drift(live), _quality(live))
    if pictures is not None:
        trend = (Part("Trends", (Pictures(tuple(pictures)),) if pictures else ()), _performance(live))
    parts = (_checks(live), *trend, _champions(live), _alerts(live), _decisions(live), _pages(live))
    return Section(TITLE, _headline(live), _tone(live), _said(live), _facts(live), parts)


def _headline(live: Live) -> str:
    found = [finding.check for finding in live.newest if finding.state == "found"]
    version = f"v{live.reigns[-1].version}" if live.reigns else "no champion"
    return f"{version}: trouble in {_listed(found)}" if found else f"{version}: no trouble found"


def _tone(live: Live) -> Tone:
    tones: set[Tone] = {_SEVERITY[alert.severity] for alert in live.alerts if alert.recovered is None}
    tones |= {"warn" if finding.state == "found" else _TONES[finding.state] for finding in live.newest}
    return next(tone for tone in _WORST if tone in tones)


def _said(live: Live) -> str:
    told = [finding.said for finding in live.newest if finding.state == "found" and finding.said]
    judged = [finding for finding in live.newest if finding.state != "unjudged"]
    if told:
        return " ".join(sentence if sentence.endswith(".") else f"{sentence}." for sentence in told)
    return f"{len(judged)} of {len(live.newest)} checks could judge their newest window."


def _facts(live: Live) -> tuple[tuple[str, str], ...]:
    newest = max(live.newest, key=lambda finding: finding.until)
    reign = live.reigns[-1] if live.reigns else None
    still_open = [alert for alert in live.alerts if alert.recovered is None]
    return (
        ("champion", f"v{reign.version}" if reign else "–"),
        ("champion since", _time(reign.since) if reign and reign.entry else "–"),
        ("newest window ends", _time(newest.until)),
        ("looked last", _time(max(finding.looked for finding in live.newest))),
        ("shown", f"{_day(live.begin)} to {_day(live.end)}"),
        ("open alerts", f"{len(still_open)}"),
    )


def _checks(live: Live) -> Part:
    rows = tuple(
        (
            Cell(finding.check.replace("_", " "), strong=finding.state == "found"),
            Cell(_WORDS[finding.state], _TONES[finding.state]),
            Cell(f"{_day(finding.since)} to {_day(finding.until)}"),
            Cell(f"v{finding.version}"),
            Cell(bounded(finding.said, 300) or "–"),
        )
        for finding in live.newest
    )
    return Part("Newest findings", (Table(("check", "state", "window", "version", "said"), rows, wide=("said",)),))


def _performance(live: Live) -> Part:
    windows = live.of("performance")[-MOST_WINDOWS:][::-1]
    if not windows:
        return Part("Performance", ())
    columns = ("window ends", "version", live.metric, "estimate", "its error", "holdout", "limit", "labels", "state")
    rows = tuple(
        (
            Cell(_day(finding.until)),
            Cell(f"v{finding.version}"),
            Cell(_figure(finding, live.metric, ""), strong=finding.state == "found"),
            Cell(_figure(finding, live.metric, ESTIMATED)),
            *(_number(finding, name) for name in ("estimate_error", "holdout", "limit", "labels")),
            Cell(_WORDS[finding.state], _TONES[finding.state]),
        )
        for finding in windows
    )
    said = (
        "Measured on the outcomes of the window; the estimate is what the model's own probabilities let expect, its "
        "error how much more that was than came true, of the rows with an outcome."
    )
    return Part("Performance", (Table(columns, rows), Text(said)))


def _figure(finding: Finding, metric: str, prefix: str) -> str:
    """The metric that decides in a window, or its estimate, with its interval."""
    name, figures = f"{prefix}{deciding(finding.figures, metric)}", finding.figures
    return with_interval(figures.get(name), {"low": figures.get(f"{name}_low"), "high": figures.get(f"{name}_high")})


def _number(finding: Finding, name: str) -> Cell:
    value = finding.figures.get(name)
    return Cell(number(int(value) if value is not None and value.is_integer() else value))


def _drift(live: Live) -> Part:
    windows = [finding for finding in live.of("drift") if finding.columns][-MOST_WEEKS:]
    if not windows:
        return Part("Drift", ())
    largest = largest_columns(windows)
    rows = []
    for name in largest[:MOST_COLUMNS]:
        told = [Cell(number(f.columns.get(name)), strong=name in f.named) for f in windows]
        rows.append((Cell(name), *told))
    blocks: list[Block] = [Table(("column", *(_day(finding.until) for finding in windows)), tuple(rows))]
    more = len(largest) - MOST_COLUMNS
    cut = f" {more:,} more columns had less." if more > 0 else ""
    blocks.append(Text(f"Effect between each window and the training reference; what drifted stands out.{cut}"))
    return Part("Drift", tuple(blocks))


def largest_columns(windows: Sequence[Finding]) -> list[str]:
    """Columns by their largest effect in any of some windows, falling."""
    effects: dict[str, float] = {}
    for finding in windows:
        for name, effect in finding.columns.items():
            effects[name] = max(effect, effects.get(name, 0.0))
    return sorted(effects, key=lambda name: (-effects[name], name))


def _quality(live: Live) -> Part:
    windows = live.of("quality")[-MOST_WINDOWS:][::-1]
    shown = ("score", "completeness", "compliance", "volume", "usual_volume")
    rows = tuple(
        (
            Cell(_day(finding.until)),
            *(_number(finding, name) for name in shown),
            Cell(_WORDS[finding.state], _TONES[finding.state]),
        )
        for finding in windows
    )
    columns = ("window ends", *(name.replace("_", " ") for name in shown), "state")
    return Part("Quality and volume", (Table(columns, rows),) if rows else ())


def _champions(live: Live) -> Part:
    entries = [entry for entry in live.entries if entry.action in CROWNING]
    rows = tuple(
        (Cell(_time(e.time)), Cell(f"v{e.version}"), Cell(e.action), Cell(e.actor), Cell(bounded(e.why, 200) or "–"))
        for e in entries[-MOST_TOLD:][::-1]
    )
    return Part("Champions", (Table(("when", "version", "action", "by", "why"), rows, wide=("why",)),) if rows else ())


def _alerts(live: Live) -> Part:
    ordered: list[Alert] = sorted(live.alerts, key=lambda a: (a.recovered is not None, -a.raised.timestamp()))
    rows = tuple(
        (
            Cell(alert.subject),
            Cell(alert.severity, _SEVERITY[alert.severity]),
            Cell(_time(alert.raised)),
            Cell(_time(alert.recovered) if alert.recovered else "open", strong=alert.recovered is None),
            Cell(bounded(alert.said, 300)),
        )
        for alert in ordered[:MOST_TOLD]
    )
    columns = ("alert", "severity", "raised", "over", "said")
    return Part("Alerts", (Table(columns, rows, wide=("said",)),) if rows else ())


def _decisions(live: Live) -> Part:
    entries = [entry for entry in live.entries if entry.action == "monitor"]
    rows = tuple(
        (
            Cell(_time(entry.time)),
            Cell(f"v{entry.version}"),
            Cell(bounded(str(entry.payload.get("decision", "–")), 40)),
            Cell(bounded(entry.why, 300) or "–"),
        )
        for entry in entries[-MOST_TOLD:][::-1]
    )
    return Part("What followed", (Table(("when", "version", "decision", "why"), rows, wide=("why",)),) if rows else ())


def _pages(live: Live) -> Part:
    return Part("Evidently's pages", (Links(live.pages),) if live.pages else ())


def _listed(checks: Sequence[str]) -> str:
    words = [check.replace("_", " ") for check in checks]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
