"""Showing: the report as it stands after a look, with ZenML and among the artifacts of the champion's MLflow run."""

import html
import logging
import tempfile
from pathlib import Path
from typing import Annotated

from zenml import step
from zenml.types import HTMLString

from models.errors import GauntletError
from stacks import runs
from stacks.findings import Finding, Findings
from stacks.ledger import open_ledger
from stacks.logs import masked
from steps.alert import Alerted
from steps.facts import REPORT_PAGE
from steps.monitor import folder_of
from steps.report import report

LOG = logging.getLogger(__name__)


def show_look(finding: Finding) -> str:
    """The report of a model after a look, as a page that is kept beside what the look saw.

    What was found is on record and was told by then: a report that fails is a page that says so.

    Args:
        finding: One of the look.
    """
    try:
        page = report(finding.model)
        _log(finding, page)
    except Exception as error:
        # The text of somebody else's error may hold a value of a row.
        said = masked(str(error)) if isinstance(error, GauntletError) else type(error).__name__
        LOG.warning("%s: the report of this look failed: %s", finding.model, said)
        return f"<!doctype html><title>report</title><p>There is no report: {html.escape(said)}</p>"
    return page


def _log(finding: Finding, page: str) -> None:
    entries = [e for e in open_ledger().history(finding.model) if e.version == finding.version]
    logged = [str(e.payload["mlflow_run_id"]) for e in entries if e.payload.get("mlflow_run_id")]
    if not logged:
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / REPORT_PAGE).write_text(page, encoding="utf-8")
        runs.log_files(logged[-1], Path(folder), folder_of(finding))


@step(enable_cache=False)
def show(findings: Findings, alerts: Alerted) -> Annotated[HTMLString, "report"]:  # noqa: ARG001
    """Keep the report with its section *Live* as it is once the team was told: `alerts` is waited for."""
    return HTMLString(show_look(findings.of[0]))
