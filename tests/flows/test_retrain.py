"""What was decided is done, on the real engines: a training here, one by deployment, one that fails."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from stacks.home import clone_dir
from stacks.ledger import Ledger
from steps.respond import LOOP
from steps.trainings import trainings_of
from tests.flows.conftest import Place, toy_frame
from tests.flows.looking import NOW, WEEK
from tests.flows.test_approval import _await, _up


def _looked(place: Place, *weeks: int) -> list[dict[str, Any]]:
    """What looks in some weeks came to, in a process of their own."""
    command = [sys.executable, "-m", "tests.flows.looking", "toy", *map(str, weeks)]
    done = subprocess.run(command, env=place.env, cwd=clone_dir(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][-len(weeks) :]


def _ledger(place: Place) -> Ledger:
    return Ledger(f"sqlite:///{place.home / 'gauntlet.db'}")


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
def test_without_a_worker_it_trains_here_and_what_fails_is_written(place: Place) -> None:
    first = place.gauntlet("run", "toy")
    assert first.code == 0, first.printed[-3000:]
    (told,) = _looked(place, 0)
    assert told["response"]["decision"] == "retrain", told
    sequence = told["response"]["sequence"]
    assert (told["done"]["started"], told["done"]["verdict"], told["done"]["champion"]) == ("in process", "kept", 1)
    last = _ledger(place).history("toy")[-1]
    assert (last.action, last.actor) == ("keep", LOOP)
    assert last.why.startswith("drift: found in 2 of the last 2 windows")
    assert last.why.endswith(f"(monitor entry {sequence})")
    assert _ledger(place).state("toy", 1) == "monitoring"

    (place.data / "toy.csv").rename(place.data / "away.csv")
    failed, waits = _looked(place, 2, 3)
    assert failed["kind"] == "WorkError"
    assert failed["error"].startswith(f"the training of 'toy' (monitor entry {sequence + 2}) failed: "), failed
    *_, decision, note, _waiting = _ledger(place).history("toy")
    assert (decision.payload["decision"], decision.payload["cooldown_factor"]) == ("retrain", 2)
    assert (note.action, note.payload, note.actor) == ("monitor", {"failed": decision.sequence}, LOOP)

    assert waits["done"] == {"model": "toy", "decision": "wait"}
    assert (waits["response"]["last_training"], waits["response"]["cooldown_factor"]) == ("failed", 4)
    command = [sys.executable, "-m", "flows", "history", "toy"]
    shown = subprocess.run(command, env=place.env | {"COLUMNS": "300"}, capture_output=True, text=True).stdout
    assert "retrain, cooldown x2, 2 trainings left" in shown, shown
    assert "wait until 2026-04-13 04:00, cooldown x4, 2 trainings left" in shown


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_with_a_worker_the_deployment_is_started_once(
    place: Place, tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    if not (place.data / "toy.csv").exists():
        toy_frame().to_csv(place.data / "toy.csv", index=False)
    ledger = _ledger(place)
    if not ledger.champion("toy"):
        assert place.gauntlet("run", "toy").code == 0
    week = 20
    with _up(place, tmp_path / "up.log") as client:
        (told,) = _looked(place, week)
        assert told["done"]["started"] == "deployment", told
        run = told["done"]["flow_run"]

        def outcome() -> str | None:
            training = trainings_of(ledger.history("toy"), NOW + week * WEEK + timedelta(hours=1))[-1]
            return None if training.outcome == "running" else training.outcome

        assert _await(outcome) == "kept", (tmp_path / "up.log").read_text()[-3000:]
        started = client.read_flow_run(run)
        assert started.parent_task_run_id is None and started.parameters["actor"] == LOOP
        last = ledger.history("toy")[-1]
        assert (last.actor, last.why.endswith(f"(monitor entry {told['response']['sequence']})")) == (LOOP, True)
        (again,) = _looked(place, week + 1)
        assert (again["response"]["decision"], again["response"]["last_training"]) == ("wait", "kept")
    proof("the loop's decision starts `train/<model>` on a real worker; the next look waits", 1, "seen")
