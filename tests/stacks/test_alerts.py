"""Alerts: one of a subject at a time, told once, repeated, over, and owed until it is taken; on both engines."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stacks import alerts
from stacks.alerts import Claim, Message, Notice, cancel, claim, owing, read_alerts, set_alerts, settle
from stacks.ledger import Ledger

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def notice(trouble: bool = True, **more: Any) -> Notice:
    plain = {"subject": "drift", "version": 3, "severity": "warning", "said": "ash drifted", "runbook": "r/drift.md"}
    return Notice.model_validate({**plain, "trouble": trouble, **more})


def look(ledger: Ledger, after: timedelta, *notices: Notice, sinks: tuple[str, ...] = ("log",)) -> list[str]:
    """States of the messages of one look."""
    found = set_alerts(ledger, "wine", notices, sinks=sinks, repeat=DAY, now=NOW + after)
    return [message.state for message in found]


def take(ledger: Ledger, sinks: tuple[str, ...] = ("log",)) -> list[tuple[str, Message]]:
    """All that is owed to these sinks, in the order in which it is handed over; all of it is taken."""
    taken = []
    while claimed := claim(ledger, "wine", sinks):
        taken += [(claimed.sink, message) for message in claimed.messages]
        settle(ledger, claimed, claimed.messages)
    return taken


def test_an_alert_is_raised_repeated_and_over(url: str) -> None:
    ledger = Ledger(url)
    assert look(ledger, 0 * DAY, notice(trouble=False)) == []
    assert look(ledger, HOUR, notice()) == ["raised"]
    assert look(ledger, DAY, notice(said="ash drifted more")) == []
    assert look(ledger, DAY + HOUR, notice(said="ash and hue drifted")) == ["lasting"]
    (lasts,) = read_alerts(ledger, "wine")
    assert (lasts.said, lasts.times, lasts.recovered) == ("ash and hue drifted", 2, None)
    assert (lasts.raised, lasts.told) == (NOW + HOUR, NOW + DAY + HOUR)
    assert look(ledger, 3 * DAY, notice(trouble=False, said="nothing drifts")) == ["recovered"]
    assert look(ledger, 4 * DAY, notice(trouble=False)) == []
    (over,) = read_alerts(ledger, "wine")
    assert over.recovered == NOW + 3 * DAY
    assert look(ledger, 5 * DAY, notice()) == ["raised"]
    assert [alert.recovered is None for alert in read_alerts(ledger, "wine")] == [False, True]


def test_a_clock_that_ran_ahead_silences_nothing(url: str) -> None:
    ledger = Ledger(url)
    ahead = datetime.now(UTC) + 365 * DAY - NOW
    assert look(ledger, ahead, notice()) == ["raised"]
    assert look(ledger, HOUR, notice()) == ["lasting"], "it is told again, as of now"
    assert look(ledger, 2 * HOUR, notice()) == []
    assert look(ledger, 3 * HOUR, notice(trouble=False)) == ["recovered"]
    assert look(ledger, ahead, notice()) == ["raised"]
    assert look(ledger, ahead, notice(trouble=False)) == ["recovered"]
    assert look(ledger, 4 * HOUR, notice()) == ["raised"]


def test_a_recovery_tells_what_it_was_and_how_long(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice())
    look(ledger, 2 * DAY + HOUR, notice(trouble=False, said="nothing drifts"))
    *_, (_, message) = take(ledger)
    assert message.summary == "wine v3: drift recovered after 2 days, 1:00:00: ash drifted"
    assert message.then == "nothing drifts"
    assert message.text.splitlines()[-1] == "2026-03-04 05:00 UTC; runbook: r/drift.md"


def test_what_is_more_severe_or_of_another_version_is_told_at_once(url: str) -> None:
    ledger = Ledger(url)
    assert look(ledger, 0 * DAY, notice()) == ["raised"]
    assert look(ledger, HOUR, notice(severity="critical")) == ["lasting"]
    assert look(ledger, 2 * HOUR, notice(severity="warning")) == []
    assert look(ledger, 3 * HOUR, notice(severity="critical", version=4)) == ["lasting"]
    (alert,) = read_alerts(ledger, "wine")
    assert (alert.severity, alert.version, alert.times) == ("critical", 4, 3)


def test_subjects_and_models_do_not_touch_each_other(url: str) -> None:
    ledger = Ledger(url)
    assert look(ledger, 0 * DAY, notice(), notice(subject="quality")) == ["raised", "raised"]
    set_alerts(ledger, "other", [notice()], sinks=["log"], repeat=DAY, now=NOW)
    assert look(ledger, HOUR, notice(trouble=False)) == ["recovered"]
    assert [(a.subject, a.recovered is None) for a in read_alerts(ledger, "wine")] == [
        ("drift", False),
        ("quality", True),
    ]
    assert owing(ledger, "other") == {"log": 1}


def test_a_look_from_before_changes_nothing(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, DAY, notice())
    assert look(ledger, HOUR, notice(trouble=False)) == []
    assert look(ledger, HOUR, notice(severity="critical")) == []
    look(ledger, 3 * DAY, notice(trouble=False))
    assert look(ledger, 2 * DAY, notice()) == []
    (alert,) = read_alerts(ledger, "wine")
    assert (alert.severity, alert.recovered) == ("warning", NOW + 3 * DAY)


def test_an_event_is_told_once_and_does_not_last(url: str) -> None:
    ledger = Ledger(url)
    event = notice(subject="rollback", severity="critical", said="version 2 takes over (ledger entry 9)")
    assert look(ledger, DAY, event) == ["raised"]
    assert look(ledger, DAY, event) == []
    later = event.model_copy(update={"said": "version 1 takes over (ledger entry 12)"})
    assert look(ledger, HOUR, later) == ["raised"], "what happened is told, whatever the clock says"
    assert all(alert.recovered == alert.raised for alert in read_alerts(ledger, "wine"))


def test_what_was_not_taken_stays_owed_and_comes_in_order(url: str) -> None:
    ledger = Ledger(url)
    both = ("log", "webhook")
    look(ledger, 0 * DAY, notice(), sinks=both)
    look(ledger, HOUR, notice(subject="quality"), sinks=both)
    assert len(take(ledger)) == 2
    look(ledger, 2 * DAY, notice(said="ash drifted more"), sinks=both)
    look(ledger, 3 * DAY, notice(trouble=False), sinks=both)
    assert owing(ledger, "wine") == {"log": 2, "webhook": 3}
    told = [(message.subject, message.state, message.said) for _, message in take(ledger, ("webhook",))]
    assert told == [
        ("quality", "raised", "ash drifted"),
        ("drift", "raised", "ash drifted more"),
        ("drift", "recovered", "ash drifted more"),
    ]
    assert "webhook" not in owing(ledger, "wine")


def test_of_two_that_hand_over_one_has_a_message(url: str) -> None:
    ledger, other = Ledger(url), Ledger(url)
    look(ledger, 0 * DAY, notice())
    first = claim(ledger, "wine", ["log"])
    assert first is not None and claim(other, "wine", ["log"]) is None
    settle(ledger, first, ())
    second = claim(other, "wine", ["log"])
    assert second == first
    settle(other, second, second.messages)
    assert claim(ledger, "wine", ["log"]) is None and owing(ledger, "wine") == {}


def test_what_a_dead_process_or_a_clock_from_the_future_claimed_is_claimed_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice())
    clock = [1_000_000.0]
    monkeypatch.setattr(alerts.time, "time", lambda: clock[0])
    assert claim(ledger, "wine", ["log"]) is not None
    clock[0] += alerts.LEASE - 1
    assert claim(ledger, "wine", ["log"]) is None
    clock[0] += 2
    assert claim(ledger, "wine", ["log"]) is not None
    clock[0] -= 86_400
    assert claim(ledger, "wine", ["log"]) is not None


def test_what_comes_while_a_message_is_on_its_way_is_kept(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice())
    underway = claim(ledger, "wine", ["log"])
    assert isinstance(underway, Claim)
    look(ledger, DAY, notice(trouble=False))
    assert claim(ledger, "wine", ["log"]) is None
    settle(ledger, underway, underway.messages)
    assert [message.state for _, message in take(ledger)] == ["recovered"]


def test_what_is_owed_to_a_sink_that_is_gone_is_dropped(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice(), notice(subject="quality"), sinks=("log", "webhook"))
    assert cancel(ledger, "wine", {"log"}) == {"webhook": 2}
    assert owing(ledger, "wine") == {"log": 2}
    assert cancel(ledger, "wine", {"log"}) == {}


def test_a_severity_that_rose_unheard_is_remembered(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice())
    take(ledger)
    look(ledger, HOUR, notice(severity="critical"))
    look(ledger, 3 * DAY, notice(severity="critical"))
    ((_, message),) = take(ledger)
    assert (message.severity, message.was, message.at) == ("critical", "warning", NOW + 3 * DAY)


def test_what_is_said_is_one_bounded_line(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice(said="a\x00b\nlevel=ok \ud800" + "x" * 5_000))
    (alert,) = read_alerts(ledger, "wine")
    assert alert.said.startswith("a b level=ok x") and len(alert.said) <= 500


def test_alerts_are_read_by_when_they_lasted(url: str) -> None:
    ledger = Ledger(url)
    assert read_alerts(ledger, "wine") == ()
    look(ledger, 0 * DAY, notice())
    look(ledger, 2 * DAY, notice(trouble=False), notice(subject="quality"))
    subjects = [
        [alert.subject for alert in read_alerts(ledger, "wine", **span)]
        for span in ({"since": NOW + DAY}, {"since": NOW + 2 * DAY}, {"until": NOW + DAY})
    ]
    assert subjects == [["drift", "quality"], ["quality"], ["drift"]]


def test_the_row_says_what_is_owed_as_json(url: str) -> None:
    ledger = Ledger(url)
    look(ledger, 0 * DAY, notice(), sinks=("log", "webhook"))
    with ledger.reading() as connection:
        owed = json.loads(connection.exec_driver_sql("SELECT owed FROM alerts").scalar_one())
    assert sorted(owed) == ["log", "webhook"] and owed["log"]["messages"][0]["state"] == "raised"
