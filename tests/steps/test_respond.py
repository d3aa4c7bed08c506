"""What follows from findings: the decision table, cooldown, budget and the ledger's entries, on both engines."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.config import ModelConfig
from models.errors import ConfigError, WorkError
from stacks.findings import Finding, Findings, record_findings
from stacks.ledger import Entry, Ledger, open_ledger
from steps.respond import LOOP, decide, note_failure, respond_to
from steps.response import Response
from steps.trainings import reference, trainings_of
from steps.trouble import count_windows
from tests.steps.arena import config_of, say, start_script

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
DAY = timedelta(days=1)
WEEK = 7 * DAY
RACER = """
import sys
from datetime import datetime

from stacks.findings import Findings, read_findings
from stacks.ledger import open_ledger
from steps.respond import respond_to
from tests.steps.arena import config_of

print("ready", flush=True)
for line in sys.stdin:
    now = datetime.fromisoformat(line.strip())
    findings = Findings(of=read_findings(open_ledger(), "wine", until=now))
    print(respond_to(config_of(), findings, now).model_dump_json(), flush=True)
"""


def found(ends: datetime = NOW, state: str = "found", check: str = "drift", days: float = 7, **more: Any) -> Finding:
    plain = {"model": "wine", "version": 1, "check": check, "since": ends - days * DAY, "until": ends, "looked": ends}
    told = {"said": "ash drifted, 0.31 of the columns", "figures": {"rows": 512.0}, "named": ("ash", "hue")}
    return Finding.model_validate({**plain, "state": state, **told, **more})


def weeks(states: str, ends: datetime = NOW, **more: Any) -> list[Finding]:
    """A finding a week, the newest last: f found, h held, u unjudged."""
    words = {"f": "found", "h": "held", "u": "unjudged"}
    return [found(ends - n * WEEK, words[letter], **more) for n, letter in enumerate(reversed(states))][::-1]


def watched(monitoring: Any = None, **changes: Any) -> ModelConfig:
    return config_of(monitoring=monitoring or {}, **changes)


@pytest.fixture
def ledger(url: str, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """One champion."""
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    made = open_ledger()
    made.append("promote", "wine", 1, why="first")
    return made


def look(findings: list[Finding], now: datetime = NOW, config: ModelConfig | None = None, run: str = "") -> Response:
    """Keep the findings of a look and respond to them."""
    record_findings(open_ledger(), findings)
    return respond_to(config or watched(), Findings(of=tuple(findings)), now, run)


def ended(ledger: Ledger, response: Response, action: Any, version: int = 2, **payload: Any) -> Entry:
    """The verdict of the training that a decision started."""
    assert response.sequence is not None
    why = f"{response.why} {reference(response.sequence)}"
    verdict = {"verdict": {"decision": action, "reason": "v1 stays: it is as good"}}
    return ledger.append(action, "wine", version, why=why, actor=LOOP, payload={**verdict, **payload})


def decisions(ledger: Ledger) -> list[str]:
    return [e.payload["decision"] for e in ledger.history("wine") if "decision" in e.payload]


@pytest.mark.parametrize(
    ("states", "decision"),
    [
        ("hhhhh", "watch"),
        ("hhhhf", "watch"),
        ("ffffh", "watch"),
        ("hhhff", "retrain"),
        ("fhhhf", "retrain"),
        ("fhhhhf", "watch"),
        ("fuuuuuuf", "retrain"),
        ("ffu", "retrain"),
        ("ffuu", "retrain"),
        ("ffuuu", "watch"),
        ("u", "watch"),
        ("", "watch"),
    ],
)
def test_two_of_the_last_five_windows_and_the_newest(ledger: Ledger, states: str, decision: str) -> None:
    response = look(weeks(states))
    assert response.decision == decision
    assert (response.checks, response.reasons) == ((("drift",), ("drift",)) if decision == "retrain" else ((), ()))
    if decision == "retrain":
        assert response.why.startswith("drift: found in 2 of the last ")
        assert "ash drifted, 0.31 of the columns (hue)" in response.why
        assert response.budget_left == 3


def test_only_the_checks_that_are_named_start_a_training(ledger: Ledger) -> None:
    assert look(weeks("fffff", check="quality")).decision == "watch"
    config = watched({"retrain": {"checks": ["quality"], "found": 3, "windows": 3}})
    assert look([], config=config).checks == ("quality",)


def test_a_column_that_drifts_alone_is_told_and_not_trained_for(ledger: Ledger) -> None:
    alone = weeks("fffff", figures={"drifted_share": 0.1, "drifted": 0.0})
    response = look(alone)
    assert (response.decision, "drift: nothing to train for in the last 5 windows" in response.why) == ("watch", True)
    assert look(weeks("ff", NOW + 14 * DAY, figures={"drifted": 1.0}), NOW + 14 * DAY).decision == "retrain"


def test_windows_that_share_more_than_half_of_their_time_count_once(ledger: Ledger) -> None:
    daily = [found(NOW - n * DAY) for n in reversed(range(4))]
    response = look(daily)
    assert (response.decision, "found in the one window that there is" in response.why) == ("watch", True)
    assert look([found(NOW - 4 * DAY)]).decision == "retrain", "three of seven days are shared"


def test_windows_that_were_widened_to_the_same_rows_count_once() -> None:
    """A bad week in five: each of the windows after it was widened back to it."""
    widened = [found(NOW - n * WEEK, begin=NOW - 4 * WEEK) for n in reversed(range(3))]
    (drift,) = (each for each in count_windows(watched(), widened, NOW) if each.check == "drift")
    assert (len(drift.windows), drift.is_trouble) == (1, False)
    (drift,) = (each for each in count_windows(watched(), weeks("fff"), NOW) if each.check == "drift")
    assert (len(drift.windows), drift.is_trouble) == (3, True)


def test_a_short_look_stands_for_no_week() -> None:
    short = [found(NOW + timedelta(hours=1), "held", days=0.5)]
    now = NOW + timedelta(hours=1)
    (drift,) = (each for each in count_windows(watched(), weeks("fff") + short, now) if each.check == "drift")
    assert (len(drift.windows), drift.is_trouble) == (3, True)
    (drift,) = (each for each in count_windows(watched(), short, now) if each.check == "drift")
    assert len(drift.windows) == 1, "where there is no other it is all that is known"


def test_of_windows_that_are_one_the_newest_counts(ledger: Ledger) -> None:
    """Somebody looked again an hour later, and it was gone."""
    assert look([*weeks("fff"), found(NOW, "held", days=6.9)]).decision == "watch"


def test_findings_of_another_champion_do_not_count(ledger: Ledger) -> None:
    assert look(weeks("fffff", version=2)).decision == "watch"
    ledger.append("promote", "wine", 2)
    assert look([]).decision == "retrain"


def test_what_was_found_before_a_champion_came_back_is_over(ledger: Ledger) -> None:
    back = NOW + 8 * WEEK
    record_findings(ledger, weeks("ff"))
    response = look([found(back, "held", "quality", days=1)], back)
    assert (response.decision, response.reasons) == ("watch", ())
    assert "drift: found in 2 of the last 2 windows, and none was judged since 2026-03-02" in response.why
    assert look([found(back)], back).decision == "retrain"


def test_a_clock_that_was_set_back_leaves_the_future_out(ledger: Ledger) -> None:
    record_findings(ledger, weeks("hhhffff"))
    response = look([], now=NOW - 3 * WEEK)
    assert response.decision == "watch"
    assert "3 findings end after now and were left out; was a clock set back?" in response.why


def test_from_a_look_at_the_past_nothing_follows(ledger: Ledger) -> None:
    look(weeks("hhhh"))
    ends = NOW - 4 * WEEK
    response = look(weeks("ff", ends, looked=NOW + DAY), now=ends)
    assert (response.decision, response.reasons, response.sequence) == ("watch", ("past",), None)
    assert "at the past, windows to 2026-03-02 04:00 UTC were looked at" in response.why


def test_weeks_that_are_gone_over_later_are_decided_as_they_came(ledger: Ledger) -> None:
    """All looks are of today, their windows end a week after the other."""
    told = []
    for week in range(4):
        ends = NOW + week * WEEK
        response = look([found(ends, looked=NOW + 52 * WEEK)], ends)
        told.append(response.decision)
        if response.decision == "retrain":
            ended(ledger, response, "keep")
    assert told == ["watch", "retrain", "wait", "retrain"]


def test_a_model_without_champion_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    with pytest.raises(WorkError, match="'wine' has no champion, so nothing is watched"):
        look(weeks("ff"))


def test_an_entry_is_written_when_something_changed_and_then_only(ledger: Ledger) -> None:
    assert ledger.state("wine", 1) == "production"
    first = look(weeks("hh"))
    assert (first.sequence, ledger.state("wine", 1)) == (2, "monitoring")
    assert look(weeks("h", NOW + WEEK), NOW + WEEK).sequence is None
    started = look(weeks("ff", NOW + 3 * WEEK), NOW + 3 * WEEK)
    assert (started.decision, started.sequence) == ("retrain", 3)
    held = [look([], NOW + 3 * WEEK + hour * timedelta(hours=1)) for hour in (1, 2)]
    assert [(r.decision, r.sequence, r.reasons) for r in held] == [
        ("wait", 4, ("drift", "running")),
        ("wait", None, ("drift", "running")),
    ]
    assert decisions(ledger) == ["watch", "retrain", "wait"]
    entry = ledger.history("wine")[2]
    assert (entry.action, entry.version, entry.actor, entry.why) == ("monitor", 1, LOOP, started.why)
    payload = json.loads(json.dumps(entry.payload))
    assert payload | {"findings": []} == {
        "decision": "retrain",
        "checks": ["drift"],
        "reasons": ["drift"],
        "findings": [],
        "rescored": {},
        "cooldown_factor": 1,
        "wait_until": None,
        "budget_left": 3,
        "to": None,
        "moment": (NOW + 3 * WEEK).isoformat(),
        "run": "",
    }
    kept = [(f["check"], f["state"], f["until"][:10], f["figures"]) for f in payload["findings"]]
    assert kept[0] == ("drift", "found", "2026-03-23", {"rows": 512.0}) and len(kept) == 5


def test_a_new_champion_gets_an_entry_of_its_own(ledger: Ledger) -> None:
    look(weeks("h"))
    ledger.append("promote", "wine", 2)
    assert ledger.state("wine", 2) == "production"
    assert look([]).sequence == 4
    assert ledger.state("wine", 2) == "monitoring"


@pytest.mark.parametrize("action", ["keep", "reject", "failed"])
def test_the_cooldown_doubles_while_trainings_do_not_help_to_eight_times(ledger: Ledger, action: str) -> None:
    config, now = watched({"retrain": {"budget": 9}}), NOW
    for factor in (1, 2, 4, 8, 8):
        response = look(weeks("ff", now), now, config)
        assert (response.decision, response.cooldown_factor) == ("retrain", factor)
        if action == "failed":
            note_failure(response, "WorkError: the disk is full")
        else:
            ended(ledger, response, action)
        after = min(2 * factor, 8)
        waiting = look([], now + DAY, config)
        assert (waiting.decision, waiting.reasons) == ("wait", ("drift", "cooldown"))
        assert (waiting.cooldown_factor, waiting.wait_until) == (after, now + after * WEEK)
        assert waiting.last_training == {"keep": "kept", "reject": "rejected"}.get(action, "failed")
        now += after * WEEK
        assert look([], now - timedelta(seconds=1), config).decision == "wait"


def test_a_training_that_helped_starts_anew(ledger: Ledger) -> None:
    first = look(weeks("ff"))
    ended(ledger, first, "keep")
    second = look([], NOW + 2 * WEEK)
    assert (second.decision, second.cooldown_factor) == ("retrain", 2)
    ended(ledger, second, "promote", 3)
    now = NOW + 2 * WEEK + 6 * DAY
    waits = look(weeks("ff", now, version=3), now)
    assert (waits.decision, waits.cooldown_factor, waits.last_training) == ("wait", 1, "promoted")
    assert waits.wait_until == NOW + 3 * WEEK
    assert look([], NOW + 3 * WEEK).decision == "retrain"


def test_a_promotion_that_was_taken_back_did_not_help(ledger: Ledger) -> None:
    ended(ledger, look(weeks("ff")), "promote")
    ledger.append("rollback", "wine", 1, payload={"from": 2})
    waits = look([], NOW + WEEK)
    assert (waits.decision, waits.cooldown_factor, waits.wait_until) == ("wait", 2, NOW + 2 * WEEK)


def test_the_budget_of_thirty_days(ledger: Ledger) -> None:
    config, now = watched({"retrain": {"budget": 2, "cooldown": "1h"}}), NOW
    for left in (1, 0):
        response = look(weeks("ff", now), now, config)
        assert (response.decision, response.budget_left) == ("retrain", left)
        ended(ledger, response, "keep")
        now += DAY
    waits = look([], now, config)
    assert (waits.reasons, waits.budget_left, waits.wait_until) == (("drift", "budget"), 0, NOW + 30 * DAY)
    assert "the budget of 2 trainings in 30 days is spent" in waits.why
    assert look([], NOW + 30 * DAY, config).decision == "retrain"


def test_a_training_without_a_verdict_runs_for_a_day_and_has_failed_then(ledger: Ledger) -> None:
    look(weeks("ff"))
    running = look([], NOW + 23 * timedelta(hours=1))
    assert (running.last_training, running.reasons, running.wait_until) == ("running", ("drift", "running"), NOW + DAY)
    failed = look([], NOW + DAY)
    assert (failed.last_training, failed.cooldown_factor, failed.reasons) == ("failed", 2, ("drift", "cooldown"))
    assert "the training of entry 2 ended as failed (no verdict came within 24 hours)" in failed.why


def test_a_challenger_that_waits_for_a_person_is_waited_for(ledger: Ledger) -> None:
    response = look(weeks("ff"))
    ended(ledger, response, "pending")
    waits = look([], NOW + 8 * WEEK)
    assert (waits.decision, waits.wait_until, waits.last_training) == ("wait", None, "pending")
    assert waits.reasons == ("drift", "pending") and "v2 waits for a person" in waits.why
    ledger.append("reject", "wine", 2, why="not now", payload={"verdict": {"decision": "rejected", "reason": "no"}})
    assert look([], NOW + 8 * WEEK).last_training == "rejected"
    assert decisions(ledger)[-1] == "retrain"


def test_a_challenger_whose_approval_expired_did_not_help(ledger: Ledger) -> None:
    ended(ledger, look(weeks("ff")), "pending", waits_seconds=3600)
    (training,) = trainings_of(ledger.history("wine"), datetime.now(UTC) + DAY)
    assert training.outcome == "rejected" and "nobody decided until" in training.said


def test_switched_off_it_says_the_trouble_and_does_nothing(ledger: Ledger) -> None:
    response = look(weeks("ff"), config=watched({"retrain": {"active": False}}))
    assert (response.decision, response.checks, response.reasons) == ("watch", ("drift",), ("drift", "inactive"))
    assert response.why.startswith("no training starts by itself: monitoring.retrain.active is off; drift: found in 2")


def test_asked_twice_for_the_same_run_it_is_decided_once(ledger: Ledger) -> None:
    first = look(weeks("ff"), run="run-1")
    again = respond_to(watched(), Findings(), NOW, "run-1")
    assert (first.decision, again) == ("retrain", first)
    assert respond_to(watched(), Findings(), NOW, "run-2").decision == "wait"


def test_a_wrong_key_decides_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_KEY", "gk_aaaaaaaa_" + "b" * 43)
    with pytest.raises(ConfigError, match="there is no such key"):
        look(weeks("ff"))
    assert len(ledger.history("wine")) == 1


def test_deciding_writes_nothing(ledger: Ledger) -> None:
    entries = ledger.history("wine")
    assert decide(watched(), weeks("ff"), entries, NOW).decision == "retrain"
    assert ledger.history("wine") == entries


def test_what_is_said_is_bounded(ledger: Ledger) -> None:
    long = weeks("fffff", said="x" * 900, named=tuple(f"column {n}" * 20 for n in range(40)))
    response = look(long)
    assert response.decision == "retrain" and len(response.why) <= 1_200


def _told(racer: Any) -> str:
    """What a racer decided: its next line of JSON."""
    line = next(line for line in racer.stdout if line.startswith("{"))
    return Response.model_validate_json(line).decision


@pytest.fixture
def racers(ledger: Ledger, tmp_path: Path) -> Iterator[list[Any]]:
    processes = [start_script(tmp_path, RACER) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def _race(racers: list[Any], now: datetime) -> list[str]:
    for racer in racers:
        say(racer, now.isoformat())
    return sorted(map(_told, racers))


def test_two_monitors_at_once_start_one_training(ledger: Ledger, racers: list[Any]) -> None:
    record_findings(ledger, weeks("ff"))
    assert _race(racers, NOW) == ["retrain", "wait"]
    assert decisions(ledger) == ["retrain", "wait"]


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_two_monitors_at_once_fifty_times(
    ledger: Ledger, racers: list[Any], proof: Callable[[str, object, str], None]
) -> None:
    tries = 50
    for trial in range(tries):
        now = NOW + 40 * trial * DAY
        ledger.append("promote", "wine", trial + 2)
        record_findings(ledger, weeks("ff", now, version=trial + 2))
        assert _race(racers, now) == ["retrain", "wait"]
    proof(f"two looks at once start one training ({ledger.shown.partition(':')[0]})", tries, "one each time")
