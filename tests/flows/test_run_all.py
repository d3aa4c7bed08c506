"""`gauntlet run --all`: every model, one that fails or is killed stops no other, nothing is left behind."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
import yaml

from tests.flows.conftest import TOY, Invoke, Place

MODELS = ("first", "second")


@pytest.fixture
def folder(place: Place) -> Place:
    """Two models that can be trained and one whose data are not there."""
    (place.models / "toy.yaml").unlink(missing_ok=True)
    for name in MODELS:
        (place.models / f"{name}.yaml").write_text(yaml.safe_dump({**TOY, "name": name}, sort_keys=False))
    gone = {**TOY, "name": "gone", "sources": [{"name": "file", "kind": "csv", "path": "nowhere.csv"}]}
    (place.models / "gone.yaml").write_text(yaml.safe_dump(gone, sort_keys=False))
    return place


def _obey_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(place: Place, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "--all", "--json", "--set", "logging.format=json", *arguments],
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_obey_ctrl_c,
    )


def _lanes(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            found += [child] if "flows.lane" in child.cmdline() else []
    return found


def _await_step(process: "subprocess.Popen[str]", step: str) -> str:
    """Read what the lanes log until a step has started; the model it is of."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if f"Step `{step}` has started" in line:
            return str(json.loads(line)["model"])
    pytest.fail(f"{step} never started:\n{''.join(said)[-3000:]}")


def _left(place: Place, patience: float = 240) -> list[str]:
    deadline = time.monotonic() + patience
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GAUNTLET_HOME") == str(place.home):
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _flow_runs(place: Place) -> dict[str, tuple[str, bool]]:
    """State of each flow run, and whether it is a child of another one."""
    with sqlite3.connect(place.home / "prefect" / "prefect.db") as database:
        rows = database.execute("select name, state_type, parent_task_run_id from flow_run").fetchall()
    return {name: (state, parent is not None) for name, state, parent in rows}


def test_one_killed_and_one_without_data_stop_no_other(folder: Place) -> None:
    process = _start(folder, "--limit", "2")
    _await_step(process, "split")
    killed = _lanes(process)[0]
    killed.kill()
    output, said = process.communicate(timeout=800)
    assert process.returncode == 1, said[-3000:]
    report = json.loads(output.splitlines()[-1])
    results = {result["model"]: result for result in report["results"]}
    assert list(results) == ["first", "gone", "second"]
    assert "nowhere.csv" in results["gone"]["error"]
    lost = [name for name in MODELS if results[name]["error"]]
    assert len(lost) == 1, results
    assert "SIGKILL" in results[lost[0]]["error"]
    (won,) = set(MODELS) - set(lost)
    assert (results[won]["verdict"], results[won]["champion"]) == ("promoted", 1)
    assert (report["models"], report["promoted"], report["failed"]) == (3, 1, 2)
    assert _left(folder) == []
    runs = _flow_runs(folder)
    assert runs["train-all"] == ("FAILED", False)
    assert runs[f"train-{won}"] == ("COMPLETED", True)
    assert runs["train-gone"] == ("FAILED", True)
    assert runs[f"train-{lost[0]}"] == ("CRASHED", True)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_all_well_then_ctrl_c_then_kill(folder: Place, proof: Callable[[str, object, str], None]) -> None:
    (folder.models / "gone.yaml").unlink()
    done = folder.gauntlet("run", "--all")
    assert done.code == 0, done.printed[-3000:]
    assert done.json is not None and done.json["failed"] == 0
    assert folder.gauntlet("run", "--all", "--require-promotion").code == 3
    for sent, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = _start(folder, "--set", f"seed={sent}")
        _await_step(process, "tune")
        os.kill(process.pid, sent)
        process.communicate(timeout=240)
        assert process.returncode == code
        assert _left(folder) == []
    again: Any = folder.gauntlet("run", "--all")
    assert again.code == 0, again.printed[-3000:]
    assert folder.gauntlet("doctor").code == 0
    proof("gauntlet run --all, Ctrl-C and kill -9 in the middle: nothing left, the same again is well", 2, "well")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "toy", "--all"], "leave 'toy' out"),
        (["run"], "name a MODEL, or give --all"),
        (["run", "toy", "--limit", "2"], "--limit goes with --all"),
    ],
)
def test_a_model_and_all_exclude_each_other(invoke: Invoke, arguments: list[str], said: str) -> None:
    done = invoke(arguments)
    assert done.code == 2
    assert done.json is not None and said in done.json["error"]
