"""Ctrl-C and kill -9 at any step, then the same command again: it ends well and leaves no process behind."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil
import pytest

from stacks.ledger import Ledger
from tests.flows.conftest import Place

STEPS = ["ingest", "validate", "split", "tune", "train", "evaluate", "package", "promote", "deploy"]


def _of_home(place: Place) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GAUNTLET_HOME") == str(place.home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _left(place: Place, patience: float = 240) -> list[psutil.Process]:
    """Processes of this home that are still there after they had time to notice."""
    deadline = time.monotonic() + patience
    while (found := _of_home(place)) and time.monotonic() < deadline:
        psutil.wait_procs(found, timeout=0.5)
    return [process for process in found if process.is_running()]


def _obey_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(place: Place, step: str, sent: signal.Signals) -> None:
    """Start `gauntlet run toy`, send the signal when `step` has started, and see it end as the signal says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "toy", "--set", "logging.format=json"],
        env=place.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=_obey_ctrl_c,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if f"Step `{step}` has started" in line:
            os.kill(process.pid, sent)
            break
    else:
        pytest.fail(f"{step} never started:\n{''.join(said)[-3000:]}")
    said.append(process.stderr.read())
    code = process.wait(timeout=240)
    assert code == (130 if sent == signal.SIGINT else -signal.SIGKILL), f"at {step}: {''.join(said)[-3000:]}"


def _survives(place: Place, steps: Sequence[str], sent: signal.Signals) -> None:
    for step in steps:
        _interrupt(place, step, sent)
        assert _left(place) == []
    done = place.gauntlet("run", "toy")
    assert done.code == 0, done.printed[-3000:]
    assert done.json is not None
    assert done.json["champion"] == 1
    assert done.json["verdict"] in ("promoted", "kept")
    entries = Ledger(f"sqlite:///{place.home / 'gauntlet.db'}").history("toy")
    assert [entry.action for entry in entries].count("promote") == 1
    with sqlite3.connect(place.home / "prefect" / "prefect.db") as database:
        states = [row[0] for row in database.execute("select state_type from flow_run where state_type = 'RUNNING'")]
    assert states == [], "nobody holds a killed run for one that is under way"
    health = place.gauntlet("doctor")
    assert health.code == 0, health.printed
    assert _left(place) == []


def test_kill_in_the_middle_then_the_same_again(place: Place) -> None:
    _survives(place, ["promote"], signal.SIGKILL)


def test_ctrl_c_then_the_same_again(place: Place) -> None:
    place.write(seed=5)
    _interrupt(place, "tune", signal.SIGINT)
    assert _left(place) == []


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_every_step_survives(place: Place, sent: signal.Signals, proof: Callable[[str, object, str], None]) -> None:
    place.home.rename(place.home.with_name(f"home-before-{sent.name}"))
    place.home.mkdir()
    _survives(place, STEPS, sent)
    proof(
        f"{sent.name} at each step, then the same command: champion v1, doctor sound, no process left",
        f"{len(STEPS)} steps",
        "all survived",
    )
