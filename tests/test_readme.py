"""Every command of the README, run in a fresh clone as its reader would."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.ports import free_port, ports_of_up

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GATE = ("make help", "make check", "make test", "make prove", "make bench")
SERVERS = {"bentoml serve wine:latest": 3000, "mlflow ui": 5000, "prefect server start": 4200}
FOLLOWING = "GAUNTLET_SERVE=wine GAUNTLET_WORKERS=2 bentoml serve bentos.service:Gauntlet --port 3000"
Proof = Callable[[str, object, str], None]


def _commands() -> list[str]:
    """Commands of all bash blocks in order, continued lines joined, comments off."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, re.S):
        lines = re.sub(r"\n\s+", " ", block).strip().splitlines()
        found += [re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines]
    return found


def _env() -> dict[str, str]:
    tools = ("GAUNTLET_", "PREFECT_", "ZENML_", "MLFLOW_", "BENTOML_", "VIRTUAL_ENV", "COV_", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(tools)}


def _run(clone: Path, command: str, **variables: str) -> str:
    activate = "" if command.startswith("make") else "source .venv/bin/activate && "
    env = {**_env(), **variables}
    done = subprocess.run(
        ["bash", "-c", activate + command], cwd=clone, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@contextmanager
def _up(clone: Path) -> Iterator[None]:
    """`make up`, from the first address it prints until standard input of its tether closes."""
    line = "source .venv/bin/activate && exec python -m stacks.orchestrator.tether -- make up"
    up = subprocess.Popen(
        ["bash", "-c", line],
        cwd=clone,
        env=_env() | ports_of_up(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert up.stdin is not None and up.stdout is not None
    try:
        said = list(takewhile(lambda line: "prefect deployment run" not in line, up.stdout))
        assert any(line.startswith("Prefect  http://127.0.0.1:") for line in said), said
        yield
    finally:
        up.stdin.close()
        up.stdout.close()
        up.wait(timeout=240)


def _two_models(clone: Path) -> dict[str, str]:
    """A folder with two of the clone's models: all of them would take minutes."""
    folder = clone / "two"
    folder.mkdir()
    for name in ("wine", "churn"):
        shutil.copy(clone / "models" / f"{name}.yaml", folder)
    return {"GAUNTLET_MODELS": str(folder)}


@contextmanager
def _served(clone: Path, command: str, path: str) -> Iterator[int]:
    """Start a server of the README on a free port, tethered to this process; ready when `path` answers."""
    port = free_port()
    line = f"source .venv/bin/activate && exec python -m stacks.orchestrator.tether -- env {command} --port {port}"
    server = subprocess.Popen(
        ["bash", "-c", line],
        cwd=clone,
        env=_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, f"{command} ended with {server.returncode}"
                assert time.monotonic() < deadline, f"{command} does not answer"
                time.sleep(0.2)
        yield port
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=60)


def test_no_command_is_forgotten() -> None:
    known = (*GATE, *SERVERS, FOLLOWING, "make run", "make up", "source", "gauntlet", "prefect", "zenml", "curl")
    assert [command for command in _commands() if not command.startswith(known)] == []
    for command in SERVERS:
        assert f"`{command}`" in README


def test_the_gate_exists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(command in listed for command in GATE)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "gauntlet"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    draw = np.random.default_rng(1)
    spent = draw.gamma(2, 50, 400).round(2)
    plan = draw.choice(["basic", "plus"], 400)
    left = np.where(spent + draw.normal(0, 25, 400) + 20 * (plan == "plus") > 100, "no", "yes")
    pd.DataFrame({"id": range(400), "spent": spent, "plan": plan, "left": left}).to_csv(
        folder / "customers.csv", index=False
    )
    return folder


@pytest.mark.prove
@pytest.mark.timeout(1500)
def test_every_command_works_in_a_fresh_clone(clone: Path, proof: Proof) -> None:
    started = time.monotonic()
    first = _run(clone, "make run")
    seconds = time.monotonic() - started
    assert "promoted" in first and "it answered" in first
    proof(
        "`make run` on a fresh clone promotes wine and gets a real answer", 1, f"{seconds:.0f} s on the gate's machine"
    )
    second = _run(clone, "make run")
    assert "kept: v1 stays" in second
    ran = 1
    for command in _commands():
        if command.startswith(("source", *GATE, *SERVERS)) or command in ("make run", "make up"):
            continue
        if command.startswith("prefect deployment run"):
            with _up(clone):
                _run(clone, command)
        elif command.startswith("gauntlet run --all"):
            assert "churn" in _run(clone, command, **_two_models(clone))
        elif command == FOLLOWING:
            with _served(clone, command.removesuffix(" --port 3000"), "/readyz") as port:
                health = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read())
            assert (health["model"], health["version"], health["log"]) == ("wine", 1, "ok")
        elif command.startswith("curl"):
            with _served(clone, "bentoml serve wine:latest", "/readyz") as port:
                answer = json.loads(_run(clone, command.replace("localhost:3000", f"127.0.0.1:{port}")))
            assert (answer["model"], answer["version"], answer["prediction"]) == ("wine", 1, "class_0")
        elif command.startswith("gauntlet rollback"):
            with pytest.raises(AssertionError, match="nothing to roll back to"):
                _run(clone, command)
        else:
            _run(clone, command)
        ran += 1
    proof(
        "every command of the README runs in that clone",
        ran,
        "all exit 0 (rollback of a sole champion: exit 1, in words)",
    )


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_the_front_doors_show_this_clones_state(clone: Path, proof: Proof) -> None:
    if not (clone / ".gauntlet").exists():
        _run(clone, "make run")
    with _served(clone, "mlflow ui", "/health") as port:
        query = f"http://127.0.0.1:{port}/api/2.0/mlflow/registered-models/get?name=wine"
        model = json.loads(urllib.request.urlopen(query).read())["registered_model"]
        assert {alias["alias"] for alias in model["aliases"]} >= {"champion", "production"}
    with _served(clone, "prefect server start", "/api/health") as port:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/flow_runs/filter", b"{}", {"content-type": "application/json"}
        )
        runs = json.loads(urllib.request.urlopen(asked).read())
        assert {run["state_type"] for run in runs if run["start_time"]} == {"COMPLETED"}, "others are yet to come"
    assert "local" in _run(clone, "zenml stack set local && zenml stack describe")
    code = (
        "import pandas, json, mlflow, sys; from sklearn.datasets import load_wine;"
        "frame = load_wine(as_frame=True).data;"
        "print(json.dumps(mlflow.pyfunc.load_model('models:/wine@champion').predict(frame)['prediction'].tolist()))"
    )
    said = _run(clone, f"python -W ignore -c {shlex.quote(code)}")
    assert len(json.loads(said[said.index("[") :].splitlines()[0])) == 178
    proof("`mlflow ui`, `prefect server start`, `zenml stack set local`, pyfunc show the clone's state", 4, "all")


@pytest.mark.skipif(sys.platform != "linux", reason="hides interpreters by an empty PATH")
def test_without_a_usable_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    fake = tmp_path / "python3.14"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / ".ci" / "install"), str(tmp_path / "venv"), str(fake)], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Python 3.11, 3.12 or 3.13" in line
    assert not (tmp_path / "venv").exists()
