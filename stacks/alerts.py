"""Alerts: what a team is told about a model, once, and what a sink has still to take, in the ledger's database.

A message is written in the transaction that changes its alert, owed to every sink, and struck out when a sink took it:
what a crash or a silent sink held up is told at the next look. Who hands a message over claims it first, so that of two
who look at once one tells it.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict

from models.errors import bounded
from models.monitoring import CheckName, Severity
from stacks.findings import present
from stacks.ledger import Ledger, canonical

Subject = Literal[CheckName, "training", "rollback"]
State = Literal["raised", "lasting", "recovered"]
SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)
# What happens at a moment, and is never over.
EVENTS: Final = frozenset({"rollback"})
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
# Longer than any sink may take; after it, who claimed a message is taken for dead.
LEASE: Final = 600.0
_SAID: Final = 500
TABLE: Final = sa.Table(
    "alerts",
    sa.MetaData(),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("model", sa.Text),
    sa.Column("subject", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("severity", sa.Text),
    sa.Column("said", sa.Text),
    sa.Column("raised", sa.Float(53)),
    sa.Column("told", sa.Float(53)),
    sa.Column("times", sa.Integer),
    sa.Column("recovered", sa.Float(53)),
    sa.Column("owed", sa.Text),
)


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Notice(_Fact):
    """What one look says of one subject.

    Attributes:
        subject: What it is about.
        version: The champion that was looked at.
        severity: How serious trouble with it is.
        trouble: Whether there is any; without it an alert recovers.
        said: What was found; no value of a row. Cut at 500 characters.
        then: What the loop does about it.
        runbook: Where it is written what a person does about it.
        entry: The ledger's entry of the decision.
    """

    subject: Subject
    version: int
    severity: Severity
    trouble: bool
    said: str = ""
    then: str = ""
    runbook: str = ""
    entry: int | None = None


class Message(_Fact):
    """What a sink is told of an alert.

    Attributes:
        model: Name of the model.
        version: The champion that it is about.
        subject: A check, `training` or `rollback`.
        severity: How serious it is.
        state: `raised`: it is new; `lasting`: it was told before; `recovered`: it is over.
        said: What was found.
        then: What the loop does about it; of an alert that is over, what is seen now.
        at: When this was so, UTC.
        raised: Since when it has been so.
        runbook: Where it is written what a person does about it.
        entry: The ledger's entry of the decision.
        was: The severity that the message before had, where it was another one.
    """

    model: str
    version: int
    subject: Subject
    severity: Severity
    state: State
    said: str
    then: str
    at: AwareDatetime
    raised: AwareDatetime
    runbook: str
    entry: int | None = None
    was: Severity | None = None

    @property
    def summary(self) -> str:
        """One line: which model, what about it, and what was found."""
        lasted = ""
        if self.state != "raised":
            lasted = f" {'after' if self.state == 'recovered' else 'for'} {max(self.at - self.raised, timedelta())}"
        found = f": {self.said}" if self.said else ""
        return f"{self.model} v{self.version}: {self.subject.replace('_', ' ')} {self.state}{lasted}{found}"

    @property
    def text(self) -> str:
        """All of it in a few lines, for people."""
        entry = "" if self.entry is None else f", ledger entry {self.entry}"
        when = f"{self.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC{entry}; runbook: {self.runbook}"
        return "\n".join(filter(None, [f"[{self.severity}] {self.summary}", self.then, when]))


class Alert(_Fact):
    """One row of the table: an alert from its beginning to its end.

    Attributes:
        sequence: In the order of their beginnings.
        model: Name of the model.
        subject: What it is about.
        version: The champion that it was last told about.
        severity: How serious it was then.
        said: What had been found then.
        raised: When it began, UTC.
        told: When a message of trouble was last written.
        times: How many such messages there were.
        recovered: When it was over; None while it lasts. An event is over as it begins.
        owed: The sinks that have not taken all messages yet.
    """

    sequence: int
    model: str
    subject: Subject
    version: int
    severity: Severity
    said: str
    raised: AwareDatetime
    told: AwareDatetime | None
    times: int
    recovered: AwareDatetime | None
    owed: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """Messages of one alert that this process hands to one sink, and nobody else meanwhile, the oldest first."""

    sequence: int
    sink: str
    messages: tuple[Message, ...]


def set_alerts(
    ledger: Ledger, model: str, notices: Sequence[Notice], *, sinks: Collection[str], repeat: timedelta, now: datetime
) -> tuple[Message, ...]:
    """Change a model's alerts to what a look says; durable when this returns, all or none.

    There is one open alert of a model and a subject, whoever looks at once. A look from before an alert's last change
    changes nothing of it (one that is dated in the future is no such change), but what happened is always told.

    Args:
        ledger: Whose database is written to.
        model: Name of the model.
        notices: What the look says, one of each subject.
        sinks: Who is owed the messages.
        repeat: After how long an alert that lasts is told again; more severe, or of another version, it is at once.
        now: When the look was.

    Returns:
        What is new, to be told.

    Raises:
        WorkError: The database cannot be used.
    """
    with ledger.writing() as connection:
        found = [_set(connection, model, notice, sinks, repeat, now) for notice in notices]
    return tuple(message for message in found if message is not None)


def claim(ledger: Ledger, model: str, sinks: Collection[str]) -> Claim | None:
    """Take over the oldest messages of a model that one of these sinks is owed and that nobody hands over now.

    Args:
        ledger: Whose database is written to.
        model: Name of the model.
        sinks: Who may be told.

    Returns:
        What is to be told and `settle`d, within `LEASE` seconds; None where nothing is owed.

    Raises:
        WorkError: The database cannot be used.
    """
    with ledger.writing() as connection:
        clock = time.time()
        free = [
            Claim(row.sequence, sink, tuple(map(Message.model_validate, slot["messages"])))
            for row in connection.execute(_owing(model))
            for sink, slot in json.loads(row.owed).items()
            # Another machine's clock may be ahead, and a claim from far ahead is one of before a clock was set back.
            if sink in sinks and abs(clock - (slot["claimed"] or 0)) >= LEASE
        ]
        if not free:
            return None
        oldest = min(free, key=lambda one: (one.messages[0].at, one.sequence))
        owed = _owed(connection, oldest.sequence)
        owed[oldest.sink]["claimed"] = clock
        _update(connection, oldest.sequence, owed=canonical(owed))
    return oldest


def settle(ledger: Ledger, claimed: Claim, taken: Collection[Message]) -> None:
    """Strike out what a sink took, and give up the claim on what it did not take.

    Raises:
        WorkError: The database cannot be used.
    """
    done = [_json(message) for message in taken]
    with ledger.writing() as connection:
        owed = _owed(connection, claimed.sequence)
        left = [message for message in owed.get(claimed.sink, _slot())["messages"] if message not in done]
        owed.pop(claimed.sink, None)
        if left:
            owed[claimed.sink] = _slot(left)
        _update(connection, claimed.sequence, owed=canonical(owed))


def cancel(ledger: Ledger, model: str, sinks: Collection[str]) -> dict[str, int]:
    """Strike out what is owed to others than these sinks; how many messages that were, by sink.

    Raises:
        WorkError: The database cannot be used.
    """
    gone: dict[str, int] = {}
    with ledger.writing() as connection:
        for row in connection.execute(_owing(model)).all():
            owed = json.loads(row.owed)
            kept = {sink: slot for sink, slot in owed.items() if sink in sinks}
            for sink in owed.keys() - kept.keys():
                gone[sink] = gone.get(sink, 0) + len(owed[sink]["messages"])
            if kept != owed:
                _update(connection, row.sequence, owed=canonical(kept))
    return gone


def owing(ledger: Ledger, model: str) -> dict[str, int]:
    """How many messages each sink has not taken yet.

    Raises:
        WorkError: The database cannot be used.
    """
    count: dict[str, int] = {}
    with ledger.reading() as connection:
        for row in connection.execute(_owing(model)):
            for sink, slot in json.loads(row.owed).items():
                count[sink] = count.get(sink, 0) + len(slot["messages"])
    return dict(sorted(count.items()))


def read_alerts(
    ledger: Ledger, model: str, *, since: datetime | None = None, until: datetime | None = None
) -> tuple[Alert, ...]:
    """A model's alerts, in the order of their beginnings.

    Args:
        ledger: Whose database is read; it is not changed.
        model: Name of the model.
        since: Those that lasted until after it, or still do.
        until: Those that began at it or before.

    Raises:
        WorkError: The database cannot be used.
    """
    query = sa.select(TABLE).where(TABLE.c.model == model).order_by(TABLE.c.raised, TABLE.c.sequence)
    if since is not None:
        query = query.where(sa.or_(TABLE.c.recovered.is_(None), TABLE.c.recovered > since.timestamp()))
    if until is not None:
        query = query.where(TABLE.c.raised <= until.timestamp())
    with ledger.peeking() as connection:
        if connection is None or not sa.inspect(connection).has_table(TABLE.name):
            return ()
        return tuple(_alert(row) for row in connection.execute(query))


def count_open(ledger: Ledger) -> dict[str, dict[Severity, int]]:
    """How many alerts are open, by model and severity: one query for any number of models.

    Raises:
        WorkError: The database cannot be used.
    """
    query = sa.select(TABLE.c.model, TABLE.c.severity, sa.func.count()).where(TABLE.c.recovered.is_(None))
    found: dict[str, dict[Severity, int]] = {}
    with ledger.peeking() as connection:
        if connection is None or not sa.inspect(connection).has_table(TABLE.name):
            return found
        for model, severity, count in connection.execute(query.group_by(TABLE.c.model, TABLE.c.severity)):
            found.setdefault(model, {})[severity] = count
    return found


def _set(
    connection: sa.Connection, model: str, notice: Notice, sinks: Collection[str], repeat: timedelta, now: datetime
) -> Message | None:
    query = sa.select(TABLE).where(TABLE.c.model == model, TABLE.c.subject == notice.subject)
    last = connection.execute(query.order_by(TABLE.c.sequence.desc()).limit(1)).first()
    if notice.subject in EVENTS:
        # The step that tells it may be tried again.
        return None if last and last.said == _line(notice.said) else _raise(connection, model, notice, sinks, now)
    at = now.timestamp()
    if last and at < max(map(_passed, (last.raised, last.told, last.recovered))):
        return None
    if last is None or last.recovered is not None:
        return _raise(connection, model, notice, sinks, now) if notice.trouble else None
    if not notice.trouble:
        message = _message(model, notice, "recovered", now, last)
        _write(connection, last, message, sinks, recovered=at)
        return message
    worse = SEVERITIES.index(notice.severity) > SEVERITIES.index(last.severity)
    if not worse and notice.version == last.version and at < _passed(last.told) + repeat.total_seconds():
        return None
    message = _message(model, notice, "lasting", now, last)
    news = {"version": notice.version, "severity": notice.severity, "said": message.said}
    _write(connection, last, message, sinks, **news, told=at, times=last.times + 1)
    return message


def _passed(moment: float | None) -> float:
    """A moment, or long ago where there is none or its clock ran ahead."""
    return moment if moment is not None and moment <= present().timestamp() else 0.0


def _raise(
    connection: sa.Connection, model: str, notice: Notice, sinks: Collection[str], now: datetime
) -> Message | None:
    message = _message(model, notice, "raised", now, None)
    at = now.timestamp()
    facts = {"model": model, "subject": notice.subject, "version": notice.version, "severity": notice.severity}
    times = {"raised": at, "told": at, "times": 1, "recovered": at if notice.subject in EVENTS else None}
    connection.execute(
        TABLE.insert().values(**facts, **times, said=message.said, owed=canonical(_with({}, sinks, message)))
    )
    return message


def _message(model: str, notice: Notice, state: State, now: datetime, last: sa.Row[Any] | None) -> Message:
    said, then, severity, was = _line(notice.said), _line(notice.then), notice.severity, None
    if last is not None and state == "recovered":
        said, then, severity = last.said, said, last.severity
    elif last is not None and last.severity != severity:
        was = last.severity
    return Message(
        model=model,
        version=notice.version,
        subject=notice.subject,
        severity=severity,
        state=state,
        said=said,
        then=then,
        at=now,
        raised=now if last is None else datetime.fromtimestamp(last.raised, UTC),
        runbook=notice.runbook,
        entry=notice.entry,
        was=was,
    )


def _write(
    connection: sa.Connection, last: sa.Row[Any], message: Message, sinks: Collection[str], **values: Any
) -> None:
    owed = _with(json.loads(last.owed), sinks, message)
    _update(connection, last.sequence, **values, owed=canonical(owed))


def _with(owed: Mapping[str, Any], sinks: Collection[str], message: Message) -> dict[str, Any]:
    """What is owed with one message more: in the place of one about the same trouble that a sink has not taken yet."""
    added = dict(owed)
    for sink in sinks:
        slot = added.get(sink, _slot())
        waiting, new = list(slot["messages"]), message
        if waiting and waiting[-1]["state"] != "recovered" and message.state != "recovered":
            old = Message.model_validate(waiting.pop())
            new = message.model_copy(update={"state": old.state, "was": message.was or old.was})
        added[sink] = {**slot, "messages": [*waiting, _json(new)]}
    return added


def _slot(messages: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"claimed": None, "messages": list(messages)}


def _json(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json")


def _line(text: str) -> str:
    """One bounded line that both engines store and that forges no line of a log."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return bounded(" ".join(plain.split()), _SAID)


def _owing(model: str) -> sa.Select[Any]:
    query = sa.select(TABLE.c.sequence, TABLE.c.owed).where(TABLE.c.model == model, TABLE.c.owed != "{}")
    return query.order_by(TABLE.c.sequence)


def _owed(connection: sa.Connection, sequence: int) -> dict[str, Any]:
    query = sa.select(TABLE.c.owed).where(TABLE.c.sequence == sequence)
    found: dict[str, Any] = json.loads(connection.scalar(query) or "{}")
    return found


def _update(connection: sa.Connection, sequence: int, **values: Any) -> None:
    connection.execute(TABLE.update().where(TABLE.c.sequence == sequence).values(**values))


def _alert(row: sa.Row[Any]) -> Alert:
    facts = dict(row._mapping)
    for name in ("raised", "told", "recovered"):
        facts[name] = None if facts[name] is None else datetime.fromtimestamp(facts[name], UTC)
    return Alert.model_validate({**facts, "owed": tuple(sorted(json.loads(row.owed)))})
