"""What a suspended run asked, by the ledger alone, what it concludes, and who wakes it; of engines Prefect alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_sync
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import approval, wake
from flows.approval import Approval, conclude, question_of, suspended
from flows.run import use_prefect
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


def _ask(ledger: Ledger, version: int, run: str) -> int:
    payload = _payload("pending", flow_run=run, waits_seconds=3600)
    return ledger.append("pending", "toy", version, payload=payload).sequence


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
    monkeypatch.setattr(wake, "wake", lambda *given: woken.append(given))
    newest = _ask(ledger, 3, "r3")
    supersede(ledger, "toy", 3, newest, "ada")
    wake.wake_superseded("toy", 3, newest)
    assert woken == [("r2", "reject", "superseded by v3, which waits now")]
    question = question_of("toy", "r2")
    assert question is not None and suspended(question) is None
    assert conclude(question, None)["reason"] == "superseded by v3, which waits now"
    asked = question_of("toy", "r3")
    assert asked is not None and asked.last == asked.entry


def test_each_decision_wakes_whom_it_superseded_and_nobody_else_s(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals by people, those of another decision and those of earlier releases, which name nobody, wake nobody."""
    woken: list[Any] = []
    monkeypatch.setattr(wake, "wake", lambda run, *_: woken.append(run))
    tip = ledger.tip("toy")
    ledger.append("reject", "toy", 2, why="superseded by v3, which waits now", payload=_payload("rejected"))
    _ask(ledger, 2, "r2 again")
    refuse("toy", 2, why="no", actor="ada")
    _ask(ledger, 2, "r2 once more")
    promoted = ledger.append("promote", "toy", 3, payload=_payload("promoted")).sequence
    supersede(ledger, "toy", 3, promoted, "ada")
    supersede(ledger, "toy", 3, promoted, "ada")
    _ask(ledger, 2, "r2 at last")
    later = _ask(ledger, 4, "r4")
    supersede(ledger, "toy", 4, later, "eve")
    wake.wake_superseded("toy", 3, promoted)
    assert woken == ["r2 once more"]
    wake.wake_superseded("toy", 4, later)
    assert woken == ["r2 once more", "r2 at last"]
    wake.wake_superseded("toy", 1, tip)
    assert len(woken) == 2
    assert ledger.verify() == []


def test_a_run_that_cannot_be_told_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(wake, "resume_flow_run", lambda run, run_input: told.append((str(run), run_input)))
    run = "5d3f0000-0000-4000-8000-000000000000"
    wake.wake(run, "approve", "fine")
    assert json.loads(json.dumps(told)) == [[run, {"decision": "approve", "why": "fine"}]]
    wake.wake("no id", "approve", "fine")
    assert "flow run no id, which waits for it, was not told" in caplog.text


def test_on_a_real_server_a_superseded_run_is_resumed_once_and_without_it_the_decision_stands(
    ledger: Ledger, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment's run suspends by the real question; what decides is in a flow run of its own, as a promotion is."""

    refuse("toy", 2, actor="ada")

    @flow(name="asks")
    def asks() -> Any:
        run = str(flow_run.id)
        if question_of("toy", run) is None:
            _ask(ledger, 3, run)
        question = question_of("toy", run)
        assert question is not None
        return conclude(question, suspended(question))["reason"]

    @flow(name="decides")
    def decides(version: int) -> None:
        entry = ledger.append("promote", "toy", version, payload=_payload("promoted"))
        supersede(ledger, "toy", version, entry.sequence, "ada")
        wake.wake_superseded("toy", version, entry.sequence)

    with use_prefect(home), get_client(sync_client=True) as client:
        deployed = client.create_deployment(flow_id=client.create_flow(asks), name="toy")
        run = client.create_flow_run_from_deployment(deployed).id

        def state() -> str:
            found = client.read_flow_run(run).state
            assert found is not None
            return str(found.name)

        with pytest.raises(Pause):
            run_flow_sync(asks, flow_run=client.read_flow_run(run))
        assert state() == "Suspended"
        decides(4)
        assert state() == "Resuming"
        said = run_flow_sync(asks, flow_run=client.read_flow_run(run))
        assert (state(), said) == ("Completed", "superseded by v4, which is champion now")
        assert "was not told" not in caplog.text
        decides(5)
        assert state() == "Completed" and "was not told" not in caplog.text, "it is not woken again"
    _ask(ledger, 6, str(run))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        entry = ledger.append("promote", "toy", 7, payload=_payload("promoted"))
        supersede(ledger, "toy", 7, entry.sequence, "ada")
        wake.wake_superseded("toy", 7, entry.sequence)
    assert f"decided; flow run {run}, which waits for it, was not told" in caplog.text
    assert (ledger.champion("toy"), ledger.history("toy")[-1].payload["superseded_by"]) == (7, 7)
