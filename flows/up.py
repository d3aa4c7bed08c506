"""`make up`: Prefect server, a worker and the MLflow UI on this clone's state, until Ctrl-C.

This process chooses ports and says where things are; a tethered one (`hold`) runs the lines of the Procfile, announces
the server, and ends with everything below it when this process ends, also by `kill -9`.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.console import err, out, quiet_tools
from flows.deployments import ALL, POOL, prefect_file, render_deployments
from models.config import model_names
from models.errors import ConfigError, GauntletError, WorkError
from stacks.home import clone_dir, home_dir, use_home
from stacks.orchestrator.announcement import AlreadyAnnounced, announce, claimed
from stacks.orchestrator.template import begin_with_template
from stacks.orchestrator.tether import tethered

PREFECT_PORT = 4200
MLFLOW_PORT = 5000
START_SECONDS = 600.0
GRACE_SECONDS = 10.0
DROPPED = ("PREFECT_API_URL", "PREFECT_UI_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_SERVER_API_PORT")


def up() -> int:
    """Start everything, say where it is, and wait; the exit code.

    Raises:
        WorkError: Something did not start, or ended by itself.
    """
    use_home()
    prefect_home = Path(os.environ["PREFECT_HOME"])
    try:
        with claimed(prefect_home):
            pass
    except AlreadyAnnounced as there:
        raise ConfigError(f"it is up already: {there}; Ctrl-C there ends it") from None
    wanted = {"PREFECT_SERVER_API_PORT": PREFECT_PORT, "MLFLOW_PORT": MLFLOW_PORT}
    prefect, mlflow = free_ports([int(os.environ.get(name, port)) for name, port in wanted.items()])
    env = services_environment(prefect, mlflow)
    err.print("Starting Prefect server, worker and MLflow UI; Ctrl-C ends them.")
    try:
        with tethered(
            [sys.executable, "-m", "flows.up", "hold", str(clone_dir() / "Procfile")],
            env=env,
            cwd=clone_dir(),
            grace=GRACE_SECONDS,
        ) as it:
            _await_start(env, it)
            out.print(f"Prefect  http://127.0.0.1:{prefect}\nMLflow   http://127.0.0.1:{mlflow}")
            out.print("In another shell, after `source .venv/bin/activate`: prefect deployment run train/<model>")
            if elsewhere := os.environ.get("PREFECT_API_URL"):
                err.print(f"PREFECT_API_URL is set in this shell, so that its tools talk to {elsewhere} instead.")
            it.wait()
            raise WorkError("one of them ended, and so did the others; the lines above say why")
    except KeyboardInterrupt:
        err.print("Ended.")
    return 0


def _await_start(env: Mapping[str, str], process: "subprocess.Popen[bytes]") -> None:
    pool, page = f"{env['PREFECT_API_URL']}/work_pools/{POOL}", f"http://127.0.0.1:{env['MLFLOW_PORT']}/health"
    answered = _await(
        lambda: _get(pool, "status") == "READY" and _get(page) is not None, lambda: process.poll() is None
    )
    if not answered:
        raise WorkError("the services did not start; the lines above say why")


def free_ports(wanted: Sequence[int]) -> list[int]:
    """For each port itself if nobody listens there, else the next free one; all different."""
    found: list[int] = []
    for port in wanted:
        while port in found or not _is_free(port):
            port += 1
        found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def services_environment(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """The environment of the lines of the Procfile: this clone's homes, this interpreter's tools, the ports."""
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    kept |= {name: str(Path(kept[name]).absolute()) for name in ("GAUNTLET_MODELS", "GAUNTLET_DATA") if kept.get(name)}
    return {
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "PREFECT_PORT": str(prefect_port),
        "MLFLOW_PORT": str(mlflow_port),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        # Else the pages are unpacked into the installed package, for one address only.
        "PREFECT_UI_STATIC_DIRECTORY": str(Path(kept["PREFECT_HOME"]) / "ui"),
        "PYTHONUNBUFFERED": "1",
    }


def hold(procfile: str) -> int:
    """Run the lines of a Procfile and announce the server, until one of them ends or a signal comes."""
    from honcho.environ import parse_procfile
    from honcho.manager import Manager

    prefect_home, url = Path(os.environ["PREFECT_HOME"]), os.environ["PREFECT_API_URL"]
    manager = Manager()
    for name, command in parse_procfile(Path(procfile).read_text()).processes.items():
        manager.add_process(name, command, env=dict(os.environ), cwd=str(clone_dir()))
    ended = threading.Event()
    with claimed(prefect_home):
        begin_with_template(prefect_home)
        herald = threading.Thread(target=_announce_when_there, args=(prefect_home, url, ended))
        herald.start()
        try:
            manager.loop()
        finally:
            ended.set()
            herald.join()
    return int(manager.returncode or 0)


def _announce_when_there(prefect_home: Path, url: str, ended: threading.Event) -> None:
    if not _await(lambda: _get(f"{url}/health") is not None, lambda: not ended.is_set()):
        return
    if not announce(prefect_home, url):
        sys.stdout.write(f"The active Prefect profile names another server; PREFECT_API_URL={url} leads to this one.\n")


def deploy() -> int:
    """Once the server answers: the work pool, and a deployment for each model of `models_dir()`."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    url = os.environ["PREFECT_API_URL"]
    if not _await(lambda: _get(f"{url}/health") is not None, lambda: True):
        raise WorkError(f"the Prefect server at {url} does not answer")
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    entries = home_dir() / "prefect.yaml"
    entries.write_text(render_deployments(prefect_file()).text, encoding="utf-8")
    command = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(entries)]
    env = {**os.environ, "ZENML_LOGGING_VERBOSITY": "ERROR"}
    done = subprocess.run(command, cwd=clone_dir(), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise WorkError(
            f"`prefect deploy --all` ended with code {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-400:]}"
        )
    told = f"train/<model>, predict/<model> and monitor/<model> for {len(model_names())} models"
    sys.stdout.write(f"deployed {told}, and train-all/{ALL}\n")
    return 0


def prepare() -> int:
    """Make what all runs share, before anything else touches it."""
    quiet_tools()
    from flows.lane import prepare as prepare_shared

    prepare_shared()
    return 0


def _await(there: Callable[[], bool], worth_it: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while worth_it() and time.monotonic() < deadline:
        if there():
            return True
        time.sleep(0.1)
    return False


def _get(url: str, key: str | None = None) -> Any:
    """What a loopback address answers, or one value of its JSON; None when it does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, ValueError, KeyError), opener.open(url, timeout=2) as answer:
        text = answer.read()
        return json.loads(text)[key] if key else text
    return None


def main(arguments: Sequence[str]) -> int:
    """Do what the first argument names; `up` without one."""
    roles: dict[str, Callable[..., int]] = {"up": up, "hold": hold, "deploy": deploy, "prepare": prepare}
    role, *rest = arguments or ["up"]
    try:
        return roles[role](*rest)
    except GauntletError as error:
        err.print(f"Error: {error}", style="red", markup=False)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
