"""What is known of a champion at work: findings, alerts, champions and decisions of the last half year."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from models.monitoring import CheckName
from stacks import runs
from stacks.alerts import Alert, read_alerts
from stacks.findings import Finding, newest_findings, read_findings
from stacks.ledger import Entry, Ledger
from stacks.lifecycle import CROWNING
from steps.document import Link
from steps.facts import DRIFT_PAGE, MONITORING_FOLDER

SPAN: Final = timedelta(weeks=26)
MOST_PAGES: Final = 8
_LATE: Final = timedelta(days=14)


@dataclass(frozen=True)
class Reign:
    """A champion's time.

    Attributes:
        version: The champion.
        since: From when.
        until: Up to when, or to the end of what is shown.
        entry: The entry of the ledger that began it, where that lies in the time that is shown.
    """

    version: int
    since: datetime
    until: datetime
    entry: Entry | None


@dataclass(frozen=True)
class Live:
    """A model at work.

    Attributes:
        model: Name of the model.
        metric: The metric that decides.
        findings: Of the last 26 weeks up to the newest window, by the end of their windows.
        newest: Of each check the newest.
        begin: Begin of the time that is shown.
        end: Its end.
        reigns: The champions in that time.
        entries: All of the model's entries in that time.
        alerts: Those that were open in that time.
        pages: Evidently's pages.
    """

    model: str
    metric: str
    findings: tuple[Finding, ...]
    newest: tuple[Finding, ...]
    begin: datetime
    end: datetime
    reigns: tuple[Reign, ...]
    entries: tuple[Entry, ...]
    alerts: tuple[Alert, ...]
    pages: tuple[Link, ...]

    def of(self, *checks: CheckName) -> tuple[Finding, ...]:
        """The findings of some checks."""
        return tuple(finding for finding in self.findings if finding.check in checks)


def gather(ledger: Ledger, model: str, metric: str) -> Live | None:
    """Gather what is known of a model at work.

    Args:
        ledger: Whose database is read.
        model: Name of the model.
        metric: The metric that decides.

    Returns:
        None where it was never monitored.

    Raises:
        WorkError: The database cannot be used, or MLflow cannot be asked.
    """
    newest = newest_findings(ledger, [model])
    if not newest:
        return None
    last = max(finding.until for finding in newest)
    findings = read_findings(ledger, model, since=last - SPAN, until=last)
    begin = max(min(finding.since for finding in findings), last - SPAN)
    # A check looks a little after its window: what followed from it belongs on the page.
    looked = max(finding.looked for finding in newest)
    end = looked if last <= looked <= last + _LATE else last
    history = ledger.history(model)
    return Live(
        model=model,
        metric=metric,
        findings=findings,
        newest=newest,
        begin=begin,
        end=end,
        reigns=reigns_of(history, findings, begin, end),
        entries=tuple(entry for entry in history if begin <= entry.time <= end + _LATE),
        alerts=read_alerts(ledger, model, since=begin),
        pages=_pages(history, newest),
    )


def reigns_of(
    history: Sequence[Entry], findings: Sequence[Finding], begin: datetime, end: datetime
) -> tuple[Reign, ...]:
    """The champions of a time by the ledger.

    Where the ledger had none by its end, as for windows of times before there was one, those that findings name.
    """
    crowns = [entry for entry in history if entry.action in CROWNING and entry.version is not None]
    crowned = [(entry.time, int(entry.version or 0), entry) for entry in crowns if entry.time <= end]
    begun: list[tuple[datetime, int, Entry | None]] = [*crowned]
    if not begun:
        for finding in findings:
            if not begun or begun[-1][1] != finding.version:
                begun.append((finding.since, finding.version, None))
    ends = [*(at for at, _, _ in begun[1:]), end][: len(begun)]
    return tuple(
        Reign(version, max(since, begin), until, entry if since >= begin else None)
        for (since, version, entry), until in zip(begun, ends, strict=True)
        if until > begin
    )


def _pages(history: Sequence[Entry], newest: Sequence[Finding]) -> tuple[Link, ...]:
    """Evidently's newest pages: they lie among the artifacts of the champion's run."""
    version = max(newest, key=lambda finding: finding.until).version
    logged = [e.payload["mlflow_run_id"] for e in history if e.version == version and e.payload.get("mlflow_run_id")]
    if not logged:
        return ()
    run_id = str(logged[-1])
    paths = runs.list_files(run_id, MONITORING_FOLDER, DRIFT_PAGE, MOST_PAGES)
    return tuple(Link(path, f"v{version}, MLflow run {run_id}", runs.address_of(run_id, path)) for path in paths[::-1])
