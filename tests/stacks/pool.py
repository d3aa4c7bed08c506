"""A Prefect server of its own and a worker of a process pool, as tests of submitted runs need them."""

import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.workers.process import ProcessWorker
from zenml.client import Client
from zenml.enums import StackComponentType

from stacks.orchestrator.template import begin_with_template
from stacks.orchestrator.tether import tethered
from stacks.stack_file import ensure_active
from tests.ports import free_port

POOL = "test-pool"
PATIENCE = 240.0


def awaited(there: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What a condition gives once it gives something; looked at four times a second."""
    deadline = time.monotonic() + patience
    while not (found := there()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.25)
    return found


class Services:
    """The server and the worker; both can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._processes: dict[str, ExitStack] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Of both, and of a process that runs a pipeline."""
        return {
            **os.environ,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
            "ZENML_LOGGING_VERBOSITY": "WARN",
        }

    def start_server(self) -> None:
        (self.folder / "prefect").mkdir(exist_ok=True)
        begin_with_template(self.folder / "prefect")
        self._start("server", "server", "start", "--port", str(self.port))
        awaited(self._healthy, "the server")

    def stop_server(self) -> None:
        self._kill("server")

    def start_worker(self) -> None:
        self._start("worker", "worker", "start", "--pool", POOL, "--type", "process")

    def kill_worker(self) -> None:
        """End the worker and all that it started, by SIGKILL."""
        self._kill("worker")

    def log(self, name: str) -> str:
        """What the server or the worker wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("prefect")), *arguments]
        with (self.folder / f"{name}.log").open("ab") as log, ExitStack() as stack:
            holder = stack.enter_context(
                tethered(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, grace=1)
            )
            stack.callback(_kill_descendants, holder.pid)
            self._processes[name] = stack.pop_all()

    def _kill(self, name: str) -> None:
        if stack := self._processes.pop(name, None):
            stack.close()

    def _healthy(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
        except OSError:
            return False
        return True


def _kill_descendants(process: int) -> None:
    with suppress(psutil.NoSuchProcess):
        everyone = psutil.Process(process).children(recursive=True)
        for each in everyone:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        psutil.wait_procs(everyone, timeout=30)


@contextmanager
def services(folder: Path) -> Iterator[Services]:
    """A server with the pool, this process's Prefect talking to it; the worker is the caller's to start."""
    there = Services(folder)
    there.start_server()
    try:
        with temporary_settings({PREFECT_API_URL: there.url, PREFECT_UI_URL: there.url.removesuffix("/api")}):
            template = ProcessWorker.get_default_base_job_template()
            with get_client(sync_client=True) as client:
                client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
            yield there
    finally:
        there.kill_worker()
        there.stop_server()


def add_stack(name: str, **configuration: Any) -> None:
    """Add a stack that is as `local`, but for the configuration of our orchestrator."""
    ensure_active()
    client = Client()
    kind = StackComponentType.ORCHESTRATOR
    components: Any = {each: parts[0].id for each, parts in client.get_stack("local").components.items()}
    client.create_stack_component(name, "prefect", kind, configuration)
    client.create_stack(name, components | {kind: name})
