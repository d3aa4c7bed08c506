"""What a suspended run asked, by the ledger alone, and what it concludes; no engine is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows import approval
from flows.approval import Approval, conclude, question_of, suspended
from stacks import registry
from stacks.ledger import Ledger, open_ledger
from steps.refuse import refuse, supersede


@pytest.fixture
def ledger(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """v1 is champion; the run `r2` asks about v2."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    made = open_ledger()
    made.append("promote", "toy", 1, payload=_payload("promoted"))
    _ask(made, 2, "r2")
    return made


def _payload(decision: str, **more: Any) -> dict[str, Any]:
    return {"verdict": {"decision": decision, "reason": f"{decision} it is"}, **more}


def _ask(ledger: Ledger, version: int, run: str) -> None:
    ledger.append("pending", "toy", version, payload=_payload("pending", flow_run=run, waits_seconds=3600))


def test_a_run_finds_its_own_question_and_no_other(ledger: Ledger) -> None:
    question = question_of("toy", "r2")
    assert question is not None
    assert (question.entry.version, question.last) == (2, question.entry)
    assert question_of("toy", "r3") is None and question_of("other", "r2") is None


def test_a_run_suspends_until_the_challenger_expires(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    answer = Approval(decision="approve", why="fine")
    monkeypatch.setattr(approval, "suspend_flow_run", lambda **given: asked.update(given) or answer)
    question = question_of("toy", "r2")
    assert question is not None and suspended(question) is answer
    assert 3500 < asked["timeout"] <= 3600 and asked["key"] == "approval"


@pytest.mark.parametrize("loop_said", [False, True])
def test_what_was_decided_elsewhere_is_concluded_without_asking(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, loop_said: bool
) -> None:
    monkeypatch.setattr(approval, "suspend_flow_run", lambda **_: pytest.fail("it was decided already"))
    refuse("toy", 2, why="too few rows", actor="ada")
    if loop_said:
        ledger.append("monitor", "toy", 2, payload={"failed": 1})
    question = question_of("toy", "r2")
    assert question is not None and suspended(question) is None
    result = conclude(question, None)
    assert (result["verdict"], result["champion"], result["actor"]) == ("rejected", 1, "ada")
    assert result["reason"] == "refused by ada: too few rows"


def test_an_answer_is_done(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(approval, "promote_version", lambda *given: done.append(given) or {"verdict": "promoted"})
    monkeypatch.setattr(registry, "initialise", lambda: None)
    for name in ("repair", "repair_first"):
        monkeypatch.setattr(approval, name, lambda *given, name=name: done.append((name, given[0])))
    question = question_of("toy", "r2")
    assert question is not None
    assert conclude(question, Approval(decision="approve", why="fine", override=["ece"])) == {"verdict": "promoted"}
    assert done == [("toy", 2, "fine", ["ece"], "unverified:prefect")]
    result = conclude(question, Approval(decision="reject", why="no"))
    assert (result["verdict"], result["actor"], done[1:]) == (
        "rejected",
        "unverified:prefect",
        [("repair_first", "toy"), ("repair", "toy")],
    )


def test_a_superseded_run_is_woken_and_finds_that_it_was_decided(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[Any] = []
    monkeypatch.setattr(approval, "wake", lambda *given: woken.append(given))
    tip = ledger.tip("toy")
    _ask(ledger, 3, "r3")
    supersede(ledger, "toy", 3, "ada")
    approval.wake_superseded("toy", tip)
    assert woken == [("r2", "reject", "superseded by v3, which waits now")]
    approval.wake_superseded("toy", ledger.tip("toy"))
    assert len(woken) == 1, "those of earlier runs were told"
    question = question_of("toy", "r2")
    assert question is not None and suspended(question) is None
    assert conclude(question, None)["reason"] == "superseded by v3, which waits now"
    newest = question_of("toy", "r3")
    assert newest is not None and newest.last == newest.entry


def test_a_run_that_cannot_be_told_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(approval, "resume_flow_run", lambda run, run_input: told.append((str(run), run_input)))
    run = "5d3f0000-0000-4000-8000-000000000000"
    approval.wake(run, "approve", "fine")
    assert json.loads(json.dumps(told)) == [[run, {"decision": "approve", "why": "fine"}]]
    approval.wake("no id", "approve", "fine")
    assert "flow run no id, which waits for it, was not told" in caplog.text
