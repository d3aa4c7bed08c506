"""The step on a real stack with an alerter: told once, never cached, and no secret is kept anywhere."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from zenml import pipeline
from zenml.client import Client
from zenml.enums import StackComponentType

import stacks.stack_file as stack_file
from stacks.alerts import owing, read_alerts
from stacks.findings import Finding, Findings, record_findings
from stacks.ledger import open_ledger
from stacks.orchestrator.flow_run import prefect_api
from stacks.stack_file import apply, ensure_active
from steps import web
from steps.alert import Alerted, alert
from steps.caching import parameter
from steps.response import Response
from tests.databases import files_holding
from tests.stacks.pipelines import last_run
from tests.steps.tables import make_config
from tests.steps.website import Answer, Serve

TOKEN = "hunter2-token"
NAME = "alerted"
NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def told(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that the active stack's alerter writes to."""
    ensure_active()
    client = Client()
    before = client.active_stack_model.id
    folder = tmp_path_factory.mktemp("stacks")
    told = folder / "there" / "told.txt"
    client.create_flavor("tests.steps.alerters.FileAlerterFlavor", StackComponentType.ALERTER)
    wanted = {
        "orchestrator": {"flavor": "prefect"},
        "artifact_store": {"flavor": "local"},
        "alerter": {"flavor": "file", "config": {"path": str(told)}},
    }
    (folder / "alerting.yaml").write_text(yaml.safe_dump(wanted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_file, "stacks_dir", lambda: folder)
        apply("alerting")
    client.activate_stack("alerting")
    with prefect_api():
        yield told
    client.activate_stack(before)


@pipeline(name="alerting_alone")
def alone(config: str, findings: Findings, response: Response) -> None:
    alert(config=config, findings=findings, response=response)


def look(config: str, state: str, after: timedelta) -> Alerted:
    """One run of a pipeline with the step alone; what it hands on."""
    until = NOW + after
    facts = {"model": NAME, "version": 3, "check": "drift", "since": until - timedelta(days=7), "until": until}
    finding = Finding.model_validate({**facts, "looked": until, "state": state, "said": "size drifted"})
    record_findings(open_ledger(), [finding])
    response = Response(model=NAME, version=3, decision="watch", why="one window", budget_left=4)
    alone(config=config, findings=Findings(of=(finding,)), response=response)
    loaded = last_run("alerting_alone").steps["alert"].outputs["alerts"][0].load()
    assert isinstance(loaded, Alerted)
    return loaded


@pytest.mark.timeout(300)
def test_the_alerter_of_the_stack_is_told_and_a_hook_s_token_is_kept_nowhere(
    told: Path, home: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", TOKEN)
    monkeypatch.setattr(web, "BACKOFF", 0.001)
    works = [False]
    hook = serve(lambda asked: Answer(status=200 if works[0] else 503))
    config = make_config(name=NAME, monitoring={"alerts": {"webhook": f"{hook.url}/${{HOOK_TOKEN}}"}})
    text = parameter(config.model_dump(mode="json"))
    with caplog.at_level(logging.DEBUG):
        first = look(text, "found", timedelta())
        assert (first.raised, first.told, first.owed) == (("drift",), {"log": 1}, {"webhook": 1, "alerter": 1})
        assert first.failed["alerter"].startswith("the alerter of the active stack did not take the message")
        told.parent.mkdir()
        works[0] = True
        second = look(text, "found", timedelta(hours=1))
        assert (second.raised, second.told, second.failed) == ((), {"webhook": 1, "alerter": 1}, {})
        third = look(text, "held", timedelta(days=2))
    assert third.recovered == ("drift",) and owing(open_ledger(), NAME) == {}
    heads = [line for line in told.read_text().splitlines() if line.startswith("[")]
    assert heads == [
        f"[warning] {NAME} v3: drift raised: size drifted",
        f"[warning] {NAME} v3: drift recovered after 2 days, 0:00:00: size drifted",
    ]
    assert [json.loads(asked.body)["state"] for asked in hook.asked[3:]] == ["raised", "recovered"]
    assert [record.recovered for record in read_alerts(open_ledger(), NAME)] == [NOW + timedelta(days=2)]
    assert {asked.path for asked in hook.asked} == {f"/{TOKEN}"}
    assert TOKEN not in caplog.text and files_holding(TOKEN, home) == []
