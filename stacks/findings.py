"""Findings: what the checks of monitoring saw, window by window, in the ledger's database."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict

from models.monitoring import CheckName
from stacks.ledger import Ledger, canonical

State = Literal["held", "found", "unjudged"]
TABLE: Final = sa.Table(
    "findings",
    sa.MetaData(),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("model", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("check_name", sa.Text),
    sa.Column("since", sa.Float(53)),
    sa.Column("until", sa.Float(53)),
    sa.Column("looked", sa.Float(53)),
    sa.Column("state", sa.Text),
    sa.Column("facts", sa.Text),
)
_CHECKS: Final = get_args(CheckName)
# By how much the clocks of machines that share a database may differ; what is dated later was written by a wrong one.
CLOCKS_DIFFER: Final = timedelta(minutes=5)
ESTIMATED: Final = "estimated_"
# Counts, lines, and what is known of concept and target: everything of performance that is no metric.
_NO_METRIC: Final = frozenset(
    (
        *("answers", "coverage", "labels", "later_labels", "unfit_labels", "contradicted", "rows", "later"),
        *("holdout", "limit", "estimate_error"),
        *("concept_gap", "concept_drifted", "target_effect", "target_drifted"),
    )
)
_FACTS: Final = ("said", "figures", "columns", "named", "run", "begin")


class Finding(BaseModel):
    """What one check saw in one window. It holds no row and no value of a personal column.

    Attributes:
        model: Name of the model.
        version: The champion that was looked at.
        check: Which check.
        since: Begin of the window that was asked for, UTC.
        until: Its end.
        looked: When that was.
        state: `found`: trouble; `held`: none; `unjudged`: too little to say.
        said: One sentence: what was found, or why nothing could be judged.
        figures: Figures of the whole window by name, such as `roc_auc`, `roc_auc_low`, `labels`, `rows`, `score`.
        columns: A figure of each column: its effect (drift), its completeness (quality).
        named: What was found: columns, classes, groups or checks.
        run: The ZenML run that looked; "" outside of one.
        begin: When the first row of the window was answered, where it was widened; else `since`. None where that is
            not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    check: CheckName
    since: AwareDatetime
    until: AwareDatetime
    looked: AwareDatetime
    state: State
    said: str = ""
    figures: dict[str, float] = {}
    columns: dict[str, float] = {}
    named: tuple[str, ...] = ()
    run: str = ""
    begin: AwareDatetime | None = None


class Findings(BaseModel):
    """The findings of one look, in the order of its checks: the artifact that steps hand on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: tuple[Finding, ...] = ()


def record_findings(ledger: Ledger, findings: Sequence[Finding]) -> None:
    """Keep findings; durable when this returns, all or none.

    Raises:
        WorkError: The database cannot be used.
        ValueError: A figure is not finite; leave it out, and say so in `said`.
    """
    rows = [_row(finding) for finding in findings]
    if rows:
        with ledger.writing() as connection:
            connection.execute(TABLE.insert(), rows)


def read_findings(
    ledger: Ledger,
    model: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    version: int | None = None,
    checks: Collection[CheckName] = (),
) -> tuple[Finding, ...]:
    """A model's findings by the end of their windows, the oldest first; of equal ends the first that was written.

    Args:
        ledger: Whose database is read; it is not changed.
        model: Name of the model.
        since: Windows that end after it.
        until: Windows that end at it or before.
        version: Of this champion only.
        checks: Of these checks only; of all when empty.

    Raises:
        WorkError: The database cannot be used.
    """
    query = sa.select(TABLE).where(TABLE.c.model == model).order_by(TABLE.c.until, TABLE.c.sequence)
    if since is not None:
        query = query.where(TABLE.c.until > since.timestamp())
    if until is not None:
        query = query.where(TABLE.c.until <= until.timestamp())
    if version is not None:
        query = query.where(TABLE.c.version == version)
    if checks:
        query = query.where(TABLE.c.check_name.in_(sorted(checks)))
    with ledger.peeking() as connection:
        if connection is None or not sa.inspect(connection).has_table(TABLE.name):
            return ()
        return tuple(_finding(row) for row in connection.execute(query))


def present() -> datetime:
    """The latest moment that anything may be dated at: this one, and by how much another machine's clock may be ahead.

    A look by a clock that ran ahead must not stand for the newest one until the time that it had has come.
    """
    return datetime.now(UTC) + CLOCKS_DIFFER


def newest_findings(ledger: Ledger, models: Collection[str]) -> tuple[Finding, ...]:
    """Of each check of each model the finding whose window ended last; one query for any number of models.

    What is dated in the future is left out.

    Returns:
        By model, checks in their order.

    Raises:
        WorkError: The database cannot be used.
    """
    newest_first = (TABLE.c.until.desc(), TABLE.c.sequence.desc())
    place = sa.func.row_number().over(partition_by=(TABLE.c.model, TABLE.c.check_name), order_by=newest_first)
    past = TABLE.c.until <= present().timestamp()
    placed = sa.select(TABLE.c.sequence, place.label("place")).where(TABLE.c.model.in_(models), past).subquery()
    newest = sa.select(placed.c.sequence).where(placed.c.place == 1)
    query = sa.select(TABLE).where(TABLE.c.sequence.in_(newest))
    with ledger.peeking() as connection:
        if connection is None or not models or not sa.inspect(connection).has_table(TABLE.name):
            return ()
        found = [_finding(row) for row in connection.execute(query)]
    return tuple(sorted(found, key=lambda finding: (finding.model, _CHECKS.index(finding.check))))


def deciding(figures: Mapping[str, float], usual: str = "") -> str | None:
    """Which of the figures of performance decides: the one that was measured with an interval.

    Where there were too few labels, the one that was estimated; None where there is neither.

    Args:
        figures: Of one finding.
        usual: The metric that decides now; it is the one where the figures have it.
    """
    if usual and (usual in figures or f"{ESTIMATED}{usual}" in figures):
        return usual
    ends = [name.removesuffix("_low") for name in figures if name.endswith("_low")]
    measured = [name for name in ends if not name.startswith(ESTIMATED) and name not in _NO_METRIC]
    estimated = [name.removeprefix(ESTIMATED) for name in ends if name.startswith(ESTIMATED)]
    return next(iter([*measured, *estimated]), None)


def scores(figures: Mapping[str, float]) -> dict[str, float]:
    """The metrics among the figures of performance: neither ends nor estimates, counts nor lines."""
    aside = (ESTIMATED, "_low", "_high")
    return {
        name: value
        for name, value in figures.items()
        if name not in _NO_METRIC and not name.startswith(aside[0]) and not name.endswith(aside[1:])
    }


def _row(finding: Finding) -> dict[str, Any]:
    moments = {name: getattr(finding, name).timestamp() for name in ("since", "until", "looked")}
    facts = canonical(finding.model_dump(mode="json", include=set(_FACTS)))
    plain = {"model": finding.model, "version": finding.version, "check_name": finding.check, "state": finding.state}
    return {**plain, **moments, "facts": facts}


def _finding(row: sa.Row[Any]) -> Finding:
    moments = {name: datetime.fromtimestamp(row._mapping[name], UTC) for name in ("since", "until", "looked")}
    plain = {"model": row.model, "version": row.version, "check": row.check_name, "state": row.state}
    return Finding.model_validate({**plain, **moments, **json.loads(row.facts)})
