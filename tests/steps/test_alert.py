"""Alerting: what a look says becomes alerts, and every sink is told once, also after it was silent."""

import json
import logging
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.config import ModelConfig
from models.errors import ConfigError
from models.monitoring import CheckName
from stacks import alerts
from stacks.alerts import Message, read_alerts
from stacks.findings import Finding, Findings, record_findings
from stacks.ledger import Ledger
from stacks.logs import described
from steps import web
from steps.alert import Alerted, notices_of, tell
from steps.response import Response
from tests.steps.tables import make_config
from tests.steps.website import Answer, Asked, Serve

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ROOT = Path(__file__).parents[2]
TOKEN = "hunter2-token"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BACKOFF", 0.001)


def config(**alerts: Any) -> ModelConfig:
    return make_config(monitoring={"alerts": {"alerter": False, **alerts}})


def finding(check: CheckName = "drift", state: str = "found", after: timedelta = 0 * DAY, **more: Any) -> Finding:
    until = NOW + after
    plain = {"model": "tiny", "version": 3, "check": check, "since": until - 7 * DAY, "until": until, "looked": until}
    return Finding.model_validate({**plain, "state": state, "said": "size drifted", **more})


def response(decision: str = "watch", **more: Any) -> Response:
    plain = {"model": "tiny", "version": 3, "decision": decision, "why": "2 of 5 windows drifted", "budget_left": 4}
    return Response.model_validate({**plain, **more})


def look(ledger: Ledger, of: ModelConfig, *findings: Finding, answer: Response | None = None, **more: Any) -> Alerted:
    """As a monitor does: keep what was found, then tell."""
    record_findings(ledger, findings)
    now = max(each.looked for each in findings)
    return tell(of, Findings(of=findings), answer or response(), ledger=ledger, now=now, **more)


def said_of(of: ModelConfig, *findings: Finding, answer: Response) -> dict[str, tuple[bool, str, str]]:
    notices = notices_of(of, findings, answer)
    return {notice.subject: (notice.trouble, notice.said, notice.then) for notice in notices}


def test_what_the_loop_does_is_told() -> None:
    until = datetime(2026, 3, 9, tzinfo=UTC)
    for answer, then in {
        response(): "Nothing is done about it by itself yet.",
        response("retrain", checks=("drift",)): "A training starts by itself.",
        response("retrain", checks=("performance",)): "Nothing is done about it by itself yet.",
        response("rollback", checks=("drift",), to=2): "Version 2 takes over again by itself.",
        response("wait", checks=("drift",)): "A training starts when a person says so.",
        response(
            "wait", checks=("drift",), wait_until=until
        ): "A training may start by itself from 2026-03-09 00:00 UTC.",
    }.items():
        assert said_of(config(), finding(), answer=answer)["drift"] == (True, "size drifted", then)


def test_a_notice_names_severity_runbook_and_entry() -> None:
    of = config(severity={"drift": "critical"}, runbooks="https://wiki.example/runbooks/")
    checks = ("drift", "quality")
    found = notices_of(of, [finding(), finding("quality")], response("retrain", checks=("drift",), sequence=12))
    assert [notice.subject for notice in found] == list(checks)
    assert [(notice.severity, notice.entry) for notice in found] == [("critical", 12), ("warning", None)]
    assert found[0].runbook == "https://wiki.example/runbooks/drift.md"


@pytest.mark.parametrize(
    ("state", "answer", "trouble"),
    [
        ("found", response("wait", last_training="rejected"), True),
        ("found", response("wait", last_training="kept"), True),
        ("found", response("wait", last_training="failed"), True),
        ("found", response("wait", budget_left=0), True),
        ("found", response("wait", last_training="promoted"), False),
        ("held", response("watch", last_training="rejected"), False),
        ("found", response("watch", last_training="rejected"), None),
        ("found", response("wait", last_training="running"), None),
        ("found", response("wait", last_training="pending"), None),
        ("found", response("retrain", last_training="kept"), None),
    ],
)
def test_when_a_training_is_trouble(state: str, answer: Response, trouble: bool | None) -> None:
    found = said_of(config(), finding(state=state), answer=answer).get("training")
    assert (found and found[0]) == trouble


def test_a_check_that_starts_no_training_ends_no_trouble_with_it() -> None:
    found = said_of(config(), finding("quality", "held"), answer=response(last_training="kept"))
    assert "training" not in found


def test_the_life_of_an_alert(url: str, serve: Serve) -> None:
    ledger = Ledger(url)
    hook = serve(lambda asked: Answer())
    of = config(webhook=hook.url)
    first = look(ledger, of, finding(), finding("quality", "held"), answer=response("retrain", checks=("drift",)))
    assert (first.raised, first.told, first.owed, first.failed) == (("drift",), {"log": 1, "webhook": 1}, {}, {})
    assert look(ledger, of, finding(after=HOUR)).told == {}
    assert look(ledger, of, finding(state="unjudged", after=2 * HOUR)) == Alerted(model="tiny")
    assert look(ledger, of, finding(after=DAY + HOUR)).lasting == ("drift",)
    assert look(ledger, of, finding(after=DAY + 2 * HOUR, version=4)).lasting == ("drift",)
    assert look(ledger, of, finding(state="held", after=2 * DAY)).recovered == ("drift",)
    told = [json.loads(asked.body) for asked in hook.asked]
    assert [one["state"] for one in told] == ["raised", "lasting", "lasting", "recovered"]
    assert [one["version"] for one in told] == [3, 3, 4, 3]
    head, then, foot = told[0]["text"].splitlines()
    assert (head, then) == ("[warning] tiny v3: drift raised: size drifted", "A training starts by itself.")
    assert foot == "2026-03-02 04:00 UTC; runbook: docs/runbooks/drift.md"
    assert told[-1]["text"].startswith("[warning] tiny v3: drift recovered after 2 days, 0:00:00: size drifted\n")


def test_a_look_at_the_past_alerts_nobody(url: str) -> None:
    ledger, of = Ledger(url), config()
    look(ledger, of, finding(state="held"))
    replay = finding(after=-7 * DAY, looked=NOW + HOUR)
    assert look(ledger, of, replay) == Alerted(model="tiny")
    assert look(ledger, of, finding(after=DAY)).raised == ("drift",)
    assert look(ledger, of, finding(state="held", after=HOUR)) == Alerted(model="tiny")
    assert [alert.recovered for alert in read_alerts(ledger, "tiny")] == [None]


def test_an_empty_look_says_nothing_new(url: str) -> None:
    ledger = Ledger(url)
    assert tell(config(), Findings(), response(), ledger=ledger, now=NOW) == Alerted(model="tiny")


def test_a_finding_of_the_future_silences_none(url: str) -> None:
    ledger, of = Ledger(url), config()
    record_findings(ledger, [finding(state="held", after=datetime.now(UTC) + 365 * DAY - NOW)])
    assert look(ledger, of, finding(), sinks={}).raised == ("drift",)


def test_a_rollback_is_announced_once(url: str) -> None:
    ledger, of = Ledger(url), config()
    back = response("rollback", checks=("performance",), to=2, sequence=9)
    first = look(ledger, of, finding("performance"), answer=back)
    assert first.raised == ("performance", "rollback")
    again = tell(of, Findings(of=(finding("performance"),)), back, ledger=ledger, now=NOW)
    assert again == Alerted(model="tiny")
    (event,) = (alert for alert in read_alerts(ledger, "tiny") if alert.subject == "rollback")
    assert event.severity == "critical" and event.recovered == event.raised
    assert event.said.startswith("Version 2 takes over from version 3 (ledger entry 9): 2 of 5")


def test_a_silent_sink_hinders_no_other_and_is_told_later_in_order(
    url: str, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", TOKEN)
    ledger, works = Ledger(url), [False]
    hook = serve(lambda asked: Answer(status=200 if works[0] else 503))
    of = config(webhook=f"{hook.url}/${{HOOK_TOKEN}}")
    with caplog.at_level(logging.DEBUG):
        first = look(ledger, of, finding(), finding("quality"))
        assert (first.told, first.owed) == ({"log": 2}, {"webhook": 2})
        assert first.failed == {"webhook": "monitoring.alerts.webhook answers 503, after 3 attempts"}
        assert [asked.path for asked in hook.asked] == [f"/{TOKEN}"] * 3
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert any("alerts to 'webhook' failed" in text and "2 tried again" in text for text in warned)
        works[0] = True
        second = look(ledger, of, finding("quality", "held", HOUR), finding(after=HOUR))
    assert (second.told, second.owed, second.failed) == ({"log": 1, "webhook": 3}, {}, {})
    told = [json.loads(asked.body) for asked in hook.asked[3:]]
    assert [(one["subject"], one["state"]) for one in told] == [
        ("drift", "raised"),
        ("quality", "raised"),
        ("quality", "recovered"),
    ]
    assert TOKEN not in caplog.text and TOKEN not in first.model_dump_json()
    with ledger.reading() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM alerts").all()
    assert TOKEN not in str(rows)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("${NOT_SET_ANYWHERE}", "monitoring.alerts.webhook needs a variable that is not set: NOT_SET_ANYWHERE"),
        (f"http://127.0.0.1:9/{TOKEN}", "monitoring.alerts.webhook: cannot be reached, after 3 attempts"),
        (f"ftp://example.org/{TOKEN}", "monitoring.alerts.webhook is no http or https URL"),
        (f"{TOKEN}", "monitoring.alerts.webhook is no http or https URL"),
        (f"http://127.0.0.1:port/{TOKEN}", "monitoring.alerts.webhook is no URL"),
    ],
)
def test_an_address_that_leads_nowhere_is_said_without_it(url: str, address: str, reason: str) -> None:
    told = look(Ledger(url), config(webhook=address), finding())
    assert told.owed == {"webhook": 1} and told.told == {"log": 1}
    assert told.failed["webhook"].startswith(reason) and TOKEN not in told.model_dump_json()


@pytest.mark.parametrize("sink", ["webhook", "alertmanager"])
def test_a_password_in_an_address_is_refused(sink: str) -> None:
    for address in (f"http://me:{TOKEN}@example.org/", f"http://example.org/?token={TOKEN}"):
        with pytest.raises(ConfigError, match=f"monitoring.alerts.{sink} holds a password or key") as raised:
            config(**{sink: address})
        assert TOKEN not in str(raised.value)
    assert config(**{sink: "http://me:${PASSWORD}@example.org/?token=${TOKEN}"})


@pytest.mark.parametrize("status", [301, 400, 404])
def test_an_answer_that_trying_again_does_not_change_is_asked_for_once(url: str, serve: Serve, status: int) -> None:
    hook = serve(lambda asked: Answer(status=status, headers={"Location": "http://127.0.0.1:9/"}))
    told = look(Ledger(url), config(webhook=f"{hook.url}/{TOKEN}"), finding())
    assert len(hook.asked) == 1 and f"answers {status}" in told.failed["webhook"]


def test_an_error_of_somebody_else_s_code_is_named_without_its_text(url: str) -> None:
    def sink(message: Message) -> None:
        raise RuntimeError(f"https://chat.example/{TOKEN}")

    told = look(Ledger(url), config(), finding(), sinks={"alerter": sink})
    assert told.failed == {"alerter": "RuntimeError"}


def test_a_sink_that_the_yaml_no_longer_names_is_owed_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(url)
    assert look(ledger, config(webhook="http://127.0.0.1:9/"), finding()).owed == {"webhook": 1}
    assert look(ledger, config(), finding(after=HOUR)).owed == {}
    assert "1 alert messages to 'webhook' are dropped" in caplog.text


def test_the_log_has_level_and_fields(url: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger, of = Ledger(url), config(severity={"quality": "info"})
    with caplog.at_level(logging.INFO):
        look(ledger, of, finding("performance"), finding(), finding("quality"))
        look(ledger, of, finding("performance", "held", HOUR))
    lines = [described(record) for record in caplog.records if hasattr(record, "alert")]
    assert [(line["level"], line["alert"]["subject"], line["alert"]["state"]) for line in lines] == [
        ("CRITICAL", "performance", "raised"),
        ("WARNING", "drift", "raised"),
        ("INFO", "quality", "raised"),
        ("INFO", "performance", "recovered"),
    ]
    assert lines[0]["alert"]["runbook"] == "docs/runbooks/performance.md"


CHILD = """
import sys
from tests.steps.test_alert import Findings, Ledger, NOW, config, finding, response, tell
ledger, of = Ledger(sys.argv[1]), config(webhook=sys.argv[2])
ledger.tip("tiny")
print("ready", flush=True)
sys.stdin.readline()
print(tell(of, Findings(of=(finding(), finding("quality"))), response(), ledger=ledger, now=NOW).model_dump_json())
"""


def test_what_a_killed_process_was_telling_is_told_by_a_later_one(
    url: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[str]] = []

    def kill(asked: Asked) -> Answer:
        if len(hook.asked) == 1:
            children[0].kill()
        return Answer()

    hook = serve(kill)
    children.append(start(url, hook.url))
    go(children[0])
    assert children[0].wait(timeout=60) == -signal.SIGKILL
    ledger, of = Ledger(url), config(webhook=hook.url)
    early = tell(of, Findings(), response(), ledger=ledger, now=NOW)
    assert (early.told["webhook"], early.owed) == (1, {"webhook": 1})
    later = time.time() + alerts.LEASE + 1
    monkeypatch.setattr(alerts.time, "time", lambda: later)
    late = tell(of, Findings(), response(), ledger=ledger, now=NOW)
    assert (late.raised, late.told["webhook"], late.owed) == ((), 1, {})
    subjects = [json.loads(asked.body)["subject"] for asked in hook.asked]
    assert subjects == ["drift", "quality", "drift"]


def start(url: str, hook: str) -> "subprocess.Popen[str]":
    """A process that tells when it is let `go`."""
    command = [sys.executable, "-c", CHILD, url, hook]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and "ready\n" in child.stdout
    return child


def go(child: "subprocess.Popen[str]") -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def test_two_monitors_at_once_raise_one_alert_and_tell_it_once(url: str, serve: Serve) -> None:
    hook = serve(lambda asked: Answer())
    children = [start(url, hook.url) for _ in range(3)]
    for child in children:
        go(child)
    answers = [Alerted.model_validate_json(child.communicate(timeout=60)[0].splitlines()[-1]) for child in children]
    assert sorted(subject for answer in answers for subject in answer.raised) == ["drift", "quality"]
    assert sorted(json.loads(asked.body)["subject"] for asked in hook.asked) == ["drift", "quality"]
    assert [alert.subject for alert in read_alerts(Ledger(url), "tiny")] == ["drift", "quality"]
