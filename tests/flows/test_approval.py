"""One way to become champion, on the real engines: a deployment's run that suspends, keys, a decision by hand."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from stacks.ledger import Entry, Ledger
from stacks.orchestrator.announcement import announced_url
from tests.databases import files_holding
from tests.flows.conftest import TOY, Place, toy_frame
from tests.ports import ports_of_up

PATIENCE = 600.0
ENDS = ("Completed", "Failed", "Crashed", "Cancelled")
WAITING = {"approval": {"mode": "manual", "wait": True, "expires": "2h"}}


def _await(there: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := there()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@contextmanager
def _up(place: Place, log: Path) -> Iterator[SyncPrefectClient]:
    """`make up` on the place: server, process worker, deployments; a client of the server."""
    with log.open("w") as said:
        env = place.env | ports_of_up() | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        process = subprocess.Popen([sys.executable, "-m", "flows.up"], env=env, stdout=said, stderr=said)
    try:
        assert _await(lambda: "In another shell" in log.read_text() or process.poll() is not None)
        url = announced_url(place.home / "prefect")
        assert url, log.read_text()[-3000:]
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(240)


def _tail(log: Path) -> str:
    return log.read_text()[-3000:]


def _start(client: SyncPrefectClient) -> UUID:
    deployment = client.read_deployment_by_name("train/toy")
    return client.create_flow_run_from_deployment(deployment.id).id


def _state(client: SyncPrefectClient, run: UUID) -> tuple[str, str]:
    state = client.read_flow_run(run).state
    assert state is not None
    return state.name or "", state.message or ""


def _trainings(place: Place) -> int:
    with sqlite3.connect(place.home / "mlflow" / "mlflow.db") as database:
        query = "select count(*) from runs r join tags t on t.run_uuid = r.run_uuid where t.key = 'gauntlet.model'"
        return int(database.execute(query).fetchone()[0])


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_suspended_run_is_decided_without_training_twice(
    place: Place, tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    place.write(promotion=WAITING)
    ledger = Ledger(f"sqlite:///{place.home / 'gauntlet.db'}")
    with _up(place, tmp_path / "up.log") as client:

        def suspended() -> UUID:
            run = _start(client)
            assert _await(lambda: _state(client, run)[0] in (*ENDS, "Suspended"))
            assert _state(client, run)[0] == "Suspended", (_state(client, run), _tail(tmp_path / "up.log"))
            return run

        def ended(run: UUID) -> Entry:
            """What the ledger says last, once a flow run has ended well."""
            assert _await(lambda: _state(client, run)[0] in ENDS)
            assert _state(client, run)[0] == "Completed", (_state(client, run), _tail(tmp_path / "up.log"))
            return ledger.history("toy")[-1]

        first = suspended()
        paused = client.read_flow_run(first).state
        assert paused is not None and paused.state_details.pause_timeout is not None
        (pending,) = ledger.history("toy")
        assert (pending.action, pending.payload["flow_run"]) == ("pending", str(first))
        late = paused.state_details.pause_timeout - pending.waits_until  # type: ignore[operator]
        assert abs(late.total_seconds()) < 60, "the suspension ends when the approval expires"
        trained = _trainings(place)
        client.resume_flow_run(first, run_input={"decision": "approve", "why": "it looks right"})
        last = ended(first)
        assert (last.action, last.actor, last.why) == ("promote", "unverified:prefect", "it looks right")
        assert _trainings(place) == trained, "training did not run twice"
        tasks = [task.name for task in client.read_task_runs() if task.flow_run_id == first]
        assert (tasks.count("tune"), tasks.count("promote")) == (1, 2)

        changed = toy_frame(900, seed=5)
        changed["ill"] = changed["ill"].map({"yes": "no", "no": "yes"})
        changed.to_csv(place.data / "toy.csv", index=False)
        second = suspended()
        client.resume_flow_run(second, run_input={"decision": "reject", "why": "not now"})
        last = ended(second)
        assert (last.action, last.version, last.why) == ("reject", 2, "not now")

        third = suspended()
        done = place.gauntlet("promote", "toy", "2", "--why", "now it is time")
        assert done.code == 0, done.printed[-3000:]
        last = ended(third)
        assert (last.action, last.version, last.why) == ("promote", 2, "now it is time")
        assert len([entry for entry in ledger.history("toy") if entry.action == "promote"]) == 2

        toy_frame(900, seed=6).to_csv(place.data / "toy.csv", index=False)
        fourth = suspended()
        done = place.gauntlet("promote", "toy", "1", "--override", "improvement", "--why", "the first one after all")
        assert done.code == 0, done.printed[-3000:]
        assert "was not told" not in done.printed
        last = ended(fourth)
        assert (last.action, last.version, last.payload["superseded_by"]) == ("reject", 3, 1)
        assert ledger.champion("toy") == 1
    proof("a deployment's run suspends; approved and refused in Prefect, by hand: no training twice", 3, "seen")


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
def test_four_eyes_by_two_keys_which_are_written_nowhere(
    place: Place, proof: Callable[[str, object, str], None]
) -> None:
    (place.models / "duo.yaml").write_text(
        yaml.safe_dump({**TOY, "name": "duo", "promotion": {"four_eyes": True}}, sort_keys=False)
    )
    made = [place.gauntlet("key", "add", name, "--role", "admin").json for name in ("ada", "bob")]
    ada, bob = (key["key"] for key in made if key is not None)
    trained = place.gauntlet("run", "duo", GAUNTLET_KEY=ada)
    assert trained.code == 0, trained.printed[-3000:]
    assert trained.json is not None and trained.json["verdict"] == "pending"
    own = place.gauntlet("promote", "duo", "1", "--why", "mine", GAUNTLET_KEY=ada)
    assert own.code == 1
    assert own.json is not None and "promotion.four_eyes: key:ada ran the training of v1" in own.json["error"]
    other = place.gauntlet("promote", "duo", "1", "--why", "I looked at it", GAUNTLET_KEY=bob)
    assert other.code == 0, other.printed[-3000:]
    assert other.json is not None and (other.json["champion"], other.json["actor"]) == (1, "key:bob")
    said = [done.printed.encode() for done in (trained, own, other)]
    for secret in (ada, bob):
        assert not any(secret[12:].encode() in text for text in said)
        assert files_holding(secret[12:], place.home) == []
    proof(
        "four eyes: who trained is refused, another key promotes; neither key is in any file, log or answer",
        2,
        f"seen; promoted by hand in {other.json['seconds']:.0f} s",
    )
