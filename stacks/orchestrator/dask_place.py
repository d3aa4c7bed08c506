"""Dask workers as the place of steps: the caller's side. Each step is one Dask task, in a process of its own there.

Dask runs a task again when its worker is lost. A step is not: its task finds its ticket gone (`dask_step`), and the
step has failed with the reason, to be retried only if it has retries in ZenML.
"""

import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from distributed import Client, Future, Queue, Security
from distributed.scheduler import KilledWorker

from stacks.orchestrator.dask_cluster import LocalDask, local_cluster, shares
from stacks.orchestrator.dask_step import BATCHES, LISTEN_SECONDS, TICKET, commands_of, messages_of, run_step, warm_up
from stacks.orchestrator.demand import in_words, listed, unmet
from stacks.orchestrator.place import PlaceError
from stacks.orchestrator.pool import Wanted

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
ANSWER_SECONDS = 30.0
FIRST_LOOK_SECONDS = 0.3
KILL_SECONDS = 10.0
COMPARED = ("python", "zenml", "dask", "distributed")
HOW_LOST = {
    "handle-worker-cleanup": "its connection to the scheduler ended, as when its process is killed or memory runs out",
    "worker-ttl": "the scheduler had not heard of it for too long",
}


class DaskPlace:
    """Workers of a Dask scheduler, or of a cluster of this machine that is kept for this process."""

    def __init__(
        self, wanted: Wanted, demands: Mapping[str, Mapping[str, float]], address: str | None, workers: int
    ) -> None:
        """Name what a run needs.

        Args:
            wanted: What its steps import.
            demands: For each step the Dask resources that it needs.
            address: Of the scheduler; None for a cluster of this machine.
            workers: How many workers that cluster has.
        """
        self._wanted = wanted
        self._demands = {name: {**each} for name, each in demands.items()}
        self._address = address
        self._workers = workers
        self._local: LocalDask | None = None
        self._used = contextlib.ExitStack()
        self._client: Client | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "DaskPlace":
        """See that every step can run here; a given scheduler has to answer, this machine's cluster only begins.

        Raises:
            PlaceError: No worker can ever run some step, or the scheduler does not answer.
        """
        if self._address is None:
            self._refuse(unmet(self._demands, {"each worker": shares(self._workers)}), {})
            self._local = self._used.enter_context(local_cluster(self._workers))
            return self
        try:
            self._look_at_workers(self._connected())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the scheduler; this machine's cluster stays warm for the next run."""
        self._disconnect()
        self._used.close()

    def start(self, job: Mapping[str, Any]) -> "DaskProcess":
        """Give a step to Dask, to be run by a worker that has what the step needs.

        Raises:
            PlaceError: The scheduler does not answer.
        """
        client = self._connected()
        wanted: dict[str, Any] = {"components": self._wanted.components, "sources": self._wanted.sources}
        told = dict(job)
        if self._address is None:
            wanted = asdict(self._wanted)
            told |= {"folder": self._wanted.folder, "arguments": sys.argv}
        return DaskProcess(client, told, wanted, self._demands[job["step"]])

    def _connected(self) -> Client:
        """A client of the scheduler; a new one when the former has lost it."""
        with self._lock:
            if self._client is None or self._client.status != "running":
                self._disconnect()
                self._client = self._connect()
            return self._client

    def _disconnect(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=5)

    def _connect(self) -> Client:
        security = None
        if self._address is None:
            if self._local is None or not self._local.alive():
                self._local = self._used.enter_context(local_cluster(self._workers))
            address, secrets = self._local.address()
            security = Security(**secrets)
        else:
            address = self._address
        try:
            client = _client(address, security)
        except OSError as error:
            raise PlaceError(
                f"the Dask scheduler {address} could not be reached within {CONNECT_SECONDS:g} seconds: "
                f"{str(error)[:300]}. Start it (`dask scheduler`), or change dask_scheduler of the orchestrator; one "
                "that speaks TLS is named tls://..., and its certificates are set by DASK_DISTRIBUTED__COMM__TLS__..."
            ) from None
        if self._local is not None:
            client.sync(client._run, warm_up, asdict(self._wanted), on_error="return", callback_timeout=ANSWER_SECONDS)
        return client

    def _look_at_workers(self, client: Client) -> None:
        """Refuse what no worker can run; tell of versions that differ."""
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            logger.warning("The Dask scheduler %s has no worker yet: steps wait for one.", self._address)
            return
        offers = {address: worker["resources"] for address, worker in workers.items()}
        self._refuse(unmet(self._demands, offers), offers)
        own, *others = _versions(client)
        for name in COMPARED:
            differing = {address: found[name] for address, found in others if found.get(name) != own[1].get(name)}
            if differing:
                shown = ", ".join(f"{version} on {address}" for address, version in list(differing.items())[:3])
                logger.warning("Dask workers with another version of %s than %s here: %s.", name, own[1][name], shown)

    def _refuse(self, missing: Mapping[str, Mapping[str, float]], offers: Mapping[str, Mapping[str, float]]) -> None:
        if not missing:
            return
        needed = f"no Dask worker has the resources that a step needs ({listed(missing)})."
        if self._address is None:
            raise PlaceError(
                f"{needed} This machine's are shared by {self._workers} workers (max_parallel), each with "
                f"{in_words(shares(self._workers))}: lower max_parallel or what the steps ask for, or set "
                "dask_scheduler to one with larger workers; GPUs only such workers can offer"
            )
        example = in_words(next(iter(missing.values())))
        raise PlaceError(
            f"{needed} Workers of {self._address} offer: {listed(offers)}. Start workers that have them: "
            f'dask worker {self._address} --resources "{example}"'
        )


class DaskProcess:
    """A step that Dask has, from its submission to the news of its end."""

    def __init__(
        self, client: Client, job: Mapping[str, Any], wanted: Mapping[str, Any], resources: Mapping[str, float]
    ) -> None:
        self._client = client
        self._scheduler = client.scheduler.address
        self._worker: str | None = None
        self._place = ""
        self._withdrawn = False
        self._deadline: float | None = None
        key = f"{job['step']}-{uuid4().hex}"
        try:
            self._commands = Queue(commands_of(key), client=client)
            self._messages = Queue(messages_of(key), client=client, maxsize=BATCHES)
            self._commands.put(TICKET)
            self._future: Future[None] = client.submit(
                run_step, dict(job), dict(wanted), key=key, pure=False, retries=0, resources=dict(resources) or None
            )
        except (OSError, RuntimeError) as error:
            raise self._gone(error) from None

    def signal(self, number: int) -> None:
        """Send a signal to the step's process; one that has not started is taken back and never will."""
        if number == signal.SIGKILL:
            self._deadline = time.monotonic() + KILL_SECONDS
        try:
            if TICKET in self._commands.get(batch=True, callback_timeout=ANSWER_SECONDS):
                self._withdrawn = True
                self._future.cancel()
            elif not self._withdrawn:
                self._commands.put(number, callback_timeout=ANSWER_SECONDS)
        except (OSError, RuntimeError) as error:
            logger.warning("A step on Dask could not be sent signal %s: %r", number, error)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the step's process sends, as it comes; see `StepProcess`.

        Raises:
            PlaceError: The worker or the scheduler is lost, or the step was taken back before it started.
        """
        absent = 0
        patience = FIRST_LOOK_SECONDS
        try:
            while True:
                over = self._future.done()
                batch = self._received(0 if over else patience)
                for message in batch or ():
                    yield self._noted(message)
                    if message["kind"] == "exit":
                        return
                if batch is None:
                    absent = 0 if self._busy() else absent + 1
                    if over or absent > 2 or self._withdrawn or time.monotonic() > (self._deadline or float("inf")):
                        raise self._lost()
                    if self._worker is None and patience == FIRST_LOOK_SECONDS:
                        yield {"kind": "waits", "for": "a Dask worker that is free"}
                patience = LISTEN_SECONDS
        except (OSError, RuntimeError) as error:
            if isinstance(error, PlaceError):
                raise
            raise self._gone(error) from None
        finally:
            self._leave()

    def _received(self, seconds: float) -> list[dict[str, Any]] | None:
        try:
            batch: list[dict[str, Any]] = json.loads(
                self._messages.get(timeout=seconds, callback_timeout=seconds + ANSWER_SECONDS)
            )
        except TimeoutError:
            return None
        return batch

    def _noted(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["kind"] == "place":
            self._worker, self._place = message["address"], f"{message['name']}, process {message['pid']}"
        return dict(message)

    def _busy(self) -> bool:
        """Whether the worker that has started the step still has it."""
        if self._worker is None:
            return True
        try:
            return self._future.key in self._client.processing([self._worker])[self._worker]
        except KeyError:
            return False

    def _lost(self) -> PlaceError:
        """Why no more will come from the step."""
        if self._withdrawn:
            return PlaceError("it was taken back while it waited for a Dask worker")
        error = self._future.exception(timeout=ANSWER_SECONDS) if self._future.status == "error" else None
        if self._worker is not None:
            return PlaceError(f"{self._place}, was lost: {self._how(self._worker)}")
        if isinstance(error, KilledWorker):
            return PlaceError(f"Dask worker {error.last_worker.address} was lost before it started the step")
        if error is not None:
            return PlaceError(
                f"no Dask worker could start it: {type(error).__name__}: {str(error)[:500]}. Workers need this project "
                "and its dependencies installed, of the same versions"
            )
        return PlaceError(f"the Dask scheduler {self._scheduler} dropped its task ({self._future.status})")

    def _how(self, worker: str) -> str:
        with contextlib.suppress(OSError, RuntimeError):
            for _, event in reversed(self._client.get_events(worker) or ()):
                if event.get("action") == "remove-worker":
                    cause = str(event["stimulus_id"]).rpartition("-")[0]
                    return HOW_LOST.get(cause, f"it left the scheduler ({cause})")
        return "it has no more of the step's task" if not self._deadline else "it did not end the step when told to"

    def _gone(self, error: Exception) -> PlaceError:
        return PlaceError(
            f"the Dask scheduler {self._scheduler} cannot be reached any more ({type(error).__name__}: "
            f"{str(error)[:300]}){', ' + self._place + ' had the step' if self._place else ''}"
        )

    def _leave(self) -> None:
        """Forget the step; a worker that still has it then ends it."""
        with contextlib.suppress(Exception):
            if not self._future.done():
                self._future.cancel()
            self._future.release()
            self._commands.close()
            self._messages.close()


def _client(address: str, security: Security | None) -> Client:
    """A client that is connected, in bounded time: Dask's own bound ends where something accepts and says nothing.

    Raises:
        OSError: Nobody answers as a scheduler does, the address is none, or certificates are missing.
    """
    made: list[Client] = []
    why = "something listens there, but it does not speak as a scheduler does"
    over = threading.Event()

    def connect() -> None:
        nonlocal why
        try:
            made.append(Client(address, security=security, timeout=CONNECT_SECONDS, set_as_default=False, name="zenml"))
        except Exception as error:
            why = str(error)
            # Before the half-made client is thrown away, which takes Dask twice as long again.
            over.set()
        over.set()

    threading.Thread(target=connect, daemon=True, name="zenml-dask-connect").start()
    over.wait(CONNECT_SECONDS + 1)
    if not made:
        raise OSError(why)
    return made[0]


def _versions(client: Client) -> list[tuple[str, dict[str, str]]]:
    """What this process and each worker have installed, this process first."""
    found = client.get_versions(packages=["zenml"])
    here = ("here", found["client"])
    sides = [here, *found["workers"].items()]
    versions = [(name, dict(side["packages"])) for name, side in sides if side]
    for _, packages in versions:
        packages["python"] = ".".join(packages["python"].split(".")[:3])
    return versions
