"""Monitoring: a champion looked at, check by check, in windows of what was answered."""

import html
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel
from zenml import get_step_context, step
from zenml.types import HTMLString

from models.errors import GauntletError, bounded
from models.monitoring import CheckName
from models.section import length
from stacks import runs
from stacks.findings import Finding, Findings, read_findings, record_findings
from stacks.ledger import Ledger, database_url, open_ledger
from stacks.logs import masked
from steps.caching import parse_config
from steps.champion import Champion, champion_of
from steps.checks import CHECK, Checked, Scene, finite
from steps.drift_page import drift_page
from steps.facts import DRIFT_PAGE, MONITORING_FOLDER
from steps.watch import Watch
from steps.window import Window, read_window

LOG = logging.getLogger(__name__)
SAID_LIMIT: Final = 1_000


@dataclass(frozen=True)
class Looked:
    """What was seen.

    Attributes:
        findings: One of each check.
        details: All that a check measured, by its name.
        page: Evidently's page of the inputs; "" where drift was not measured.
    """

    findings: tuple[Finding, ...]
    details: Mapping[CheckName, BaseModel] = field(default_factory=dict)
    page: str = ""


def run_checks(champion: Champion, watch: Watch, url: str, run: str = "") -> Looked:
    """Look at a champion, without writing anything. A check that fails is not judged, and says why.

    Args:
        champion: See `steps.champion.champion_of`.
        watch: What is asked.
        url: Of the prediction log and the outcomes, as `stacks.ledger.Ledger` takes it.
        run: The ZenML run that looks.
    """
    looked = datetime.now(UTC)
    until = watch.at or looked
    windows: dict[timedelta, Window] = {}
    findings: list[Finding] = []
    details: dict[CheckName, BaseModel] = {}
    page = ""
    for check in watch.checks:
        span = length(watch.window or champion.config.monitoring.checks.of(check).window)
        checked = _checked(champion, check, windows, span, until, url)
        if checked.detail is not None:
            details[check] = checked.detail
        if check == "drift" and checked.state != "unjudged":
            page = _page(champion, windows[span])
        window = windows.get(span)
        findings.append(
            Finding(
                model=champion.config.name,
                version=champion.version,
                check=check,
                since=until - span,
                until=until,
                begin=window.begin if window else None,
                looked=looked,
                state=checked.state,
                said=bounded(checked.said, SAID_LIMIT),
                figures=finite(checked.figures),
                columns=finite(checked.columns),
                named=checked.named,
                run=run,
            )
        )
    return Looked(tuple(findings), details, page)


def _checked(
    champion: Champion, check: CheckName, windows: dict[timedelta, Window], span: timedelta, until: datetime, url: str
) -> Checked:
    """What a check says; one that fails is not judged, and the others are."""
    try:
        if span not in windows:
            least, version = champion.config.monitoring.min_rows, champion.version
            windows[span] = read_window(url, champion.release.schema, until, span, least, version=version)
        return CHECK[check](Scene(champion, windows[span], until, url))
    except Exception as error:
        # The text of somebody else's error may hold a value of a row.
        said = str(error) if isinstance(error, GauntletError) else type(error).__name__
        LOG.warning("%s: the check %s failed: %s", champion.config.name, check, masked(said))
        return Checked("unjudged", f"the check failed: {masked(said)}")


def keep(looked: Looked, champion: Champion, ledger: Ledger) -> tuple[Finding, ...]:
    """Write findings to the ledger's database, and them with all details to the champion's MLflow run.

    A step that is tried again has written some already: those of its run are kept as they are.

    Returns:
        The findings as they are kept.

    Raises:
        WorkError: The database or MLflow cannot be used.
    """
    known = _known(looked, ledger)
    record_findings(ledger, [finding for finding in looked.findings if finding.check not in known])
    log_look(looked, champion)
    return tuple(known.get(finding.check, finding) for finding in looked.findings)


def _known(looked: Looked, ledger: Ledger) -> dict[CheckName, Finding]:
    """The findings that the same run has written already."""
    if not looked.findings or not looked.findings[0].run:
        return {}
    first = looked.findings[0]
    recent = read_findings(ledger, first.model, since=first.until - timedelta(days=1))
    return {finding.check: finding for finding in recent if finding.run == first.run}


def log_look(looked: Looked, champion: Champion) -> None:
    """Add what was seen to the artifacts of the champion's MLflow run, in the folder of this look.

    Raises:
        WorkError: MLflow refused.
    """
    if not looked.findings:
        return
    if not champion.run_id:
        LOG.warning("MLflow has no run of v%d any more: its findings are in the database only", champion.version)
        return
    with tempfile.TemporaryDirectory() as folder:
        for finding in looked.findings:
            path = Path(folder) / f"{finding.check}.json"
            path.write_text(finding.model_dump_json(indent=2), encoding="utf-8")
        for check, detail in looked.details.items():
            path = Path(folder) / f"{check}_detail.json"
            path.write_text(detail.model_dump_json(indent=2), encoding="utf-8")
        if looked.page:
            (Path(folder) / DRIFT_PAGE).write_text(looked.page, encoding="utf-8")
        runs.log_files(champion.run_id, Path(folder), folder_of(looked.findings[0]))


def folder_of(finding: Finding) -> str:
    """Where among a run's artifacts a look lies: by the day that its windows end on and the time of looking."""
    return f"{MONITORING_FOLDER}/{finding.until:%Y-%m-%d}/{finding.looked:%H-%M-%S.%f}"


def _page(champion: Champion, window: Window) -> str:
    try:
        page = drift_page(champion.config, champion.release.reference(), window.inputs)
    except Exception as error:
        LOG.warning("%s: Evidently's page failed: %s", champion.config.name, type(error).__name__)
        return ""
    return page.html if page else ""


def _nothing(looked: Looked) -> str:
    """A page for when Evidently has none: what was said of drift."""
    said = [f"{finding.check}: {finding.said}" for finding in looked.findings if finding.check == "drift"]
    text = html.escape(said[0] if said else "drift of the inputs was not asked for")
    return f"<!doctype html><title>drift</title><p>Nothing to show: {text}</p>"


@step(enable_cache=False)
def monitor(config: str, asked: str) -> tuple[Annotated[Findings, "findings"], Annotated[HTMLString, "drift_page"]]:
    """Look at the champion of this moment and keep what is found; `asked` is a `parameter` of a `Watch`."""
    ledger = open_ledger()
    champion = champion_of(parse_config(config), ledger)
    run = str(get_step_context().pipeline_run.id)
    looked = run_checks(champion, Watch.model_validate_json(asked), database_url(), run)
    findings = keep(looked, champion, ledger)
    for finding in findings:
        LOG.info("%s v%d, %s: %s", finding.model, finding.version, finding.check, finding.state)
    return Findings(of=findings), HTMLString(looked.page or _nothing(looked))
