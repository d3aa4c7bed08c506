"""A model that was watched for some weeks: findings, ledger entries and alerts in a real database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from models.monitoring import CheckName
from stacks.findings import Finding, State, record_findings
from stacks.ledger import Ledger

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
WEEK = timedelta(days=7)


def finding(weeks_ago: int, check: CheckName, state: State = "held", **more: Any) -> Finding:
    """What a check saw in the week that ended so many weeks before `NOW`."""
    until = NOW - weeks_ago * WEEK
    moments = {"since": until - WEEK, "until": until, "looked": until + timedelta(minutes=5)}
    return Finding(**{"model": "wine", "version": 2, "check": check, "state": state, **moments, **more})


def findings(model: str = "wine", weeks: int = 8, metric: str = "accuracy") -> list[Finding]:
    """Weeks in which `ash` drifts more and more, and the metric falls below its limit in the newest one."""
    written = []
    for ago in reversed(range(weeks)):
        worse = (weeks - ago) / weeks
        value, same = 0.95 - 0.2 * worse, {"model": model, "version": 1 if ago >= weeks // 2 else 2}
        figures = {metric: value, f"{metric}_low": value - 0.04, f"{metric}_high": value + 0.04, "f1": value - 0.05}
        estimate = {f"estimated_{metric}{end}": value + add for end, add in (("", 0.02), ("_low", 0), ("_high", 0.05))}
        lines = {"labels": 300.0, "answers": 400.0, "coverage": 0.75, "holdout": 0.93, "limit": 0.8}
        quality = {"score": 98 - 10 * worse, "completeness": 0.99, "compliance": 0.97, "outliers": 0.01}
        volume = {"volume": 400.0 + 10 * ago, "usual_volume": 420.0, "volume_ratio": 0.95, "hours_since_last": 0.5}
        drifted = ago < 2
        written += [
            finding(ago, "performance", "found" if value < 0.8 else "held", figures=figures | estimate | lines, **same),
            finding(ago, "quality", figures=quality | volume, columns={"ash": 0.99, "hue": 1.0}, **same),
            finding(
                ago,
                "drift",
                "found" if drifted else "held",
                said="1 of 2 columns drifted" if drifted else "",
                figures={"rows": 400.0, "drifted_share": 0.5 if drifted else 0.0, "threshold": 0.1},
                columns={"ash": 0.3 * worse, "hue": 0.02},
                named=("ash",) if drifted else (),
                **same,
            ),
        ]
    written.append(finding(0, "prediction_drift", "unjudged", said="too few rows", model=model, version=2))
    written.append(finding(0, "fairness", figures={"tpr_gap": 0.08}, model=model, version=2))
    return written


def alert(ledger: Ledger, subject: str, *, model: str = "wine", severity: str = "critical", **moments: float) -> None:
    """Write a row of the table of alerts; moments are weeks before `NOW`."""
    at = {name: (NOW - weeks * WEEK).timestamp() for name, weeks in moments.items()}
    row = {"model": model, "subject": subject, "version": 2, "severity": severity, "said": f"{subject} is found"}
    row |= {"raised": None, "told": at.get("raised"), "recovered": None, "times": 1, "owed": "[]", **at}
    columns = [sa.column(name) for name in row]
    with ledger.writing() as connection:
        connection.execute(sa.insert(sa.table("alerts", *columns)).values(row))


def watched(ledger: Ledger, model: str = "wine", metric: str = "accuracy") -> None:
    """Two champions, eight weeks of findings, an alert that is open and one that is over."""
    for version, why in ((1, "the first"), (2, "it is better")):
        ledger.append("promote", model, version, why=why, actor="ada")
    record_findings(ledger, findings(model, metric=metric))
    alert(ledger, "performance", model=model, raised=1)
    alert(ledger, "drift", model=model, severity="warning", raised=3, recovered=2)
