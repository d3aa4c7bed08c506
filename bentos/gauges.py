"""Gauges of what monitoring found, read from the database by a thread of each worker and told as they were read.

They are the same in every worker, so they are not added up as those of `bentos.metrics` are; and series come and go
with columns and champions, which those in files that workers share cannot. So each worker tells its own reading. While
the database is away the last reading stays, and the age of its findings grows.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bentos.summary import MOST_COLUMNS, PATIENCE, worst_columns
from models.errors import GauntletError
from models.monitoring import CheckName, Severity
from stacks.alerts import SEVERITIES, count_open
from stacks.findings import ESTIMATED, Finding, State, deciding, newest_findings, scores
from stacks.ledger import Ledger, database_url

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

log = logging.getLogger("gauntlet.metrics")

EVERY_SECONDS: Final = 15.0
STATES: Final[Mapping[State, int]] = {"held": 0, "found": 1, "unjudged": -1}
_OF: Final = ("model", "version")
_BY_METRIC, _BY_CHECK = (*_OF, "metric"), (*_OF, "check")
_ROWS: Final[Mapping[CheckName, str]] = {
    "performance": "answers",
    "quality": "volume",
    "drift": "rows",
    "prediction_drift": "rows",
    "fairness": "labels",
}
"""Which figure of a check counts the rows of its window."""


@dataclass(frozen=True)
class Reading:
    """What the database said.

    Attributes:
        findings: The newest of each check of each model.
        alerts: How many are open, by model and severity.
    """

    findings: tuple[Finding, ...] = ()
    alerts: Mapping[str, Mapping[Severity, int]] = field(default_factory=dict)


def read(ledger: Ledger, models: Collection[str]) -> Reading:
    """Read what the gauges tell of some models.

    Raises:
        WorkError: The database cannot be used.
    """
    still_open = count_open(ledger)
    alerts = {model: {each: still_open.get(model, {}).get(each, 0) for each in SEVERITIES} for model in models}
    return Reading(newest_findings(ledger, models), alerts)


@dataclass(frozen=True)
class Gauge:
    """One gauge: its name, what it says, the names of its labels, and its series: their values and a figure."""

    name: str
    said: str
    labels: tuple[str, ...]
    series: Sequence[tuple[tuple[str, ...], float]]


class Gauges:
    """The gauges of one worker; whoever registers it with prometheus_client has them collected."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Know nothing yet.

        Args:
            clock: Unix time, for ages.
        """
        self.reading = Reading()
        self._clock = clock
        self._fault = ""

    def look(self, models: Collection[str]) -> None:
        """Read the database once; where it cannot be used, what was read before stays and its age grows."""
        fault = ""
        try:
            self.reading = read(Ledger(database_url(), patience=PATIENCE), models)
        except Exception as error:  # whatever it is: this thread must not end
            fault = str(error) if isinstance(error, GauntletError) else type(error).__name__
        if fault and fault != self._fault:
            log.error("what monitoring found cannot be read: %s; asking again every %.0f s", fault, EVERY_SECONDS)
        self._fault = fault

    def watch(self, models: Callable[[], Collection[str]], ended: threading.Event) -> None:
        """Read now and every 15 seconds, in a thread of its own, until the process ends."""

        def follow() -> None:
            while True:
                self.look(models())
                if ended.wait(EVERY_SECONDS):
                    return

        threading.Thread(target=follow, name="gauntlet-gauges", daemon=True).start()

    def collect(self) -> "Iterator[GaugeMetricFamily]":
        """What was read last, and how old it is by now."""
        from prometheus_client.core import GaugeMetricFamily

        for gauge in gauges_of(self.reading, self._clock()):
            family = GaugeMetricFamily(gauge.name, gauge.said, labels=gauge.labels)
            for labels, value in gauge.series:
                family.add_metric(labels, value)
            yield family

    def page(self) -> bytes:
        """What these gauges add to `/metrics`."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


def gauges_of(reading: Reading, now: float) -> Iterator[Gauge]:
    """The gauges that tell of a reading at a time, in Unix seconds."""
    by_check: dict[CheckName, list[Finding]] = {check: [] for check in _ROWS}
    for finding in reading.findings:
        by_check[finding.check].append(finding)
    yield from _drift(by_check["drift"])
    yield from _performance(by_check["performance"])
    yield _figure("gauntlet_labels", "Outcomes in the newest window.", by_check["performance"], "labels")
    said = "Training's quality score, 0 to 100, of served rows."
    yield _figure("gauntlet_quality_score", said, by_check["quality"], "score")
    yield from _checks(reading.findings, now)
    counts = [((model, severity), n) for model, each in reading.alerts.items() for severity, n in each.items()]
    yield Gauge("gauntlet_open_alerts", "Alerts that are not over.", ("model", "severity"), counts)


def _drift(findings: Collection[Finding]) -> Iterator[Gauge]:
    yield _figure("gauntlet_drift_share", "Share of the columns, weighted, that drifted.", findings, "drifted_share")
    effects = [((*_who(f), column), effect) for f in findings for column, effect in worst_columns(f).items()]
    said = f"Effect between a column's window and the reference; the {MOST_COLUMNS} largest."
    yield Gauge("gauntlet_column_drift", said, (*_OF, "column"), effects)


def _performance(findings: Collection[Finding]) -> Iterator[Gauge]:
    measured = [((*_who(f), metric), value) for f in findings for metric, value in scores(f.figures).items()]
    yield Gauge("gauntlet_performance", "A metric on the outcomes of the newest window.", _BY_METRIC, measured)
    of_deciding = {
        "low": ("{}_low", "Lower end of the interval of the metric that decides."),
        "high": ("{}_high", "Upper end of the interval of the metric that decides."),
        "estimate": (ESTIMATED + "{}", "What the model's own probabilities let expect of the metric that decides."),
        "holdout": ("holdout", "The metric that decides, on the test rows of training."),
        "limit": ("limit", "From where on the metric that decides is found."),
    }
    named = [(f, metric) for f in findings if (metric := deciding(f.figures))]
    for end, (figure, said) in of_deciding.items():
        told = [((*_who(f), metric), f.figures.get(figure.format(metric))) for f, metric in named]
        yield Gauge(
            f"gauntlet_performance_{end}", said, _BY_METRIC, [(who, value) for who, value in told if value is not None]
        )


def _checks(findings: Collection[Finding], now: float) -> Iterator[Gauge]:
    labelled = [((*_who(finding), finding.check), finding) for finding in findings]
    rows = [(who, f.figures[_ROWS[f.check]]) for who, f in labelled if _ROWS[f.check] in f.figures]
    states = [(who, float(STATES[f.state])) for who, f in labelled]
    ages = [(who, now - f.looked.timestamp()) for who, f in labelled]
    yield Gauge("gauntlet_window_rows", "Rows of the newest window of a check.", _BY_CHECK, rows)
    yield Gauge("gauntlet_finding_state", "0: held; 1: found; -1: not judged.", _BY_CHECK, states)
    yield Gauge("gauntlet_finding_age_seconds", "Since a check looked last.", _BY_CHECK, ages)


def _figure(name: str, said: str, findings: Collection[Finding], figure: str) -> Gauge:
    return Gauge(name, said, _OF, [(_who(f), f.figures[figure]) for f in findings if figure in f.figures])


def _who(finding: Finding) -> tuple[str, str]:
    return finding.model, str(finding.version)
