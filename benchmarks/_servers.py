"""The servers that `benchmarks.serve` compares, two workers each, and the Releases that they serve."""

import hashlib
import os
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from models.config import Parameter, load_model, parse_set
from models.errors import WorkError
from stacks import keys
from stacks.home import clone_dir
from stacks.ledger import Ledger
from stacks.orchestrator.tether import tethered
from steps.apart import apart
from steps.build import bento_version, build_bento, unpack

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from bentos.release import Release
    from models.config import Family, ModelConfig

MODEL = "heart_disease"
WORKERS = 2
READY_SECONDS = 180.0
# As `gauntlet run heart_disease --set` takes them; the family is the one that is named.
PINNED: Mapping["Family", Sequence[str]] = {
    "xgboost": ("n_estimators=200", "max_depth=4", "learning_rate=0.05"),
    "random_forest": ("n_estimators=200", "max_depth=8", "min_samples_leaf=3"),
    "logistic_regression": ("C=1.0",),
}


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        port: Where it answers on this machine.
        pid: The process above all of its processes.
        key: What to show it, if it asks.
    """

    port: int
    pid: int
    key: str | None = None

    def post(self, path: str, body: bytes) -> bytes:
        """The answer to JSON.

        Raises:
            WorkError: It was no success.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers), timeout=60
            ) as answer:
                content: bytes = answer.read()
                return content
        except OSError as error:
            raise WorkError(f"POST {path} on port {self.port} failed: {error}") from None

    def warm(self, path: str, body: bytes) -> None:
        """Have it answer some requests, each on a new connection, so that every worker has imported what it needs.

        Raises:
            WorkError: An answer was no success.
        """
        for _ in range(8 * WORKERS):
            self.post(path, body)

    def seconds_of(self, path: str, body: bytes) -> float:
        """How long an answer takes, its connection included.

        Raises:
            WorkError: It was no success.
        """
        started = time.perf_counter()
        self.post(path, body)
        return time.perf_counter() - started

    def memory_mib(self) -> float:
        """Memory of all its processes, each shared page counted once (proportional set size)."""
        total = 0
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20


@dataclass(frozen=True)
class Learned:
    """A fitted pipeline with what a Release is written from; `proof` is that of its fast path."""

    config: "ModelConfig"
    pipeline: "Pipeline"
    train: Any
    test: Any
    params: Mapping[str, Any]

    @cached_property
    def proof(self) -> Mapping[str, Any]:
        """What packaging proves of it."""
        from steps.prove import prove_fast_path

        with tempfile.TemporaryDirectory() as folder:
            release = self._write(Path(folder) / "release", MODEL, {})
            return prove_fast_path(release.directory, self.test)

    def release(self, folder: Path, name: str = MODEL) -> "Release":
        """Write a Release of it under a model's name."""
        return self._write(folder, name, {"fast_path": self.proof})

    def _write(self, folder: Path, name: str, evidence: Mapping[str, Any]) -> "Release":
        from bentos.release import write_release

        return write_release(
            folder,
            pipeline=self.pipeline,
            config=self.config.model_copy(update={"name": name}),
            train=self.train,
            metrics={},
            data_digest="0" * 64,
            trials=0,
            evidence=evidence,
        )


def learn(family: "Family") -> Learned:
    """Fit the model's synthetic training rows by one family, its parameters pinned."""
    from steps.ingest import ingest_frame
    from steps.split import split_frame
    from steps.train import fit_family

    settings = [f"tuning.candidates.{family}.{each}" for each in PINNED[family]]
    config = load_model(MODEL, [parse_set(settings)]).config
    params = {k: v for k, v in config.tuning.candidates[family].items() if not isinstance(v, Parameter)}
    split = split_frame(config, ingest_frame(config).frame)
    return Learned(config, fit_family(config, family, params, split.train), split.train, split.test, params)


def crown(release: "Release", folder: Path, store: Path) -> int:
    """Register a Release, make it the champion by alias, and unpack its Bento into a store; its version."""
    from stacks import registry, runs
    from steps.register import register_release

    run_id = runs.start_run(MODEL)
    version = register_release(release.directory, run_id)
    runs.finish_run(run_id)
    registry.mirror(MODEL, champion=version, previous=None, challenger=None)
    unpack(build_bento(release.directory, MODEL, version, {}, folder), store / MODEL / bento_version(version))
    (store / MODEL / "latest").write_text(bento_version(version))
    return version


def promote_all(learned: Learned, names: Sequence[str], folder: Path, done: Callable[[], None]) -> str:
    """Write a Release for each name and promote it in a new ledger, whose URL is returned; `done` after each."""
    from bentos.release import MANIFEST

    url = f"sqlite:///{folder / 'gauntlet.db'}"
    ledger = Ledger(url)
    for name in names:
        path = folder / "releases" / name
        learned.release(path, name)
        digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        payload = {"release_uri": path.as_uri(), "manifest_sha256": digest}
        ledger.append("promote", name, 1, why="benchmark", actor="benchmark", payload=payload)
        done()
    return url


@contextmanager
def packaged(store: Path, home: Path) -> Iterator[Server]:
    """`bentoml serve <model>:latest` as it is delivered: a key asked for, predictions logged, metrics kept."""
    home.mkdir(parents=True)
    (home / "bentos").symlink_to(store)
    with _ours(f"{MODEL}:latest", home, f"sqlite:///{home / 'gauntlet.db'}", {}) as server:
        yield server


@contextmanager
def following(url: str, home: Path, resident: int) -> Iterator[Server]:
    """`bentoml serve bentos.service:Gauntlet` for all models of a ledger, so many of them in memory."""
    with _ours("bentos.service:Gauntlet", home, url, {"GAUNTLET_RESIDENT": str(resident)}) as server:
        yield server


@contextmanager
def echo(home: Path) -> Iterator[Server]:
    """A BentoML endpoint that gives JSON back."""
    with _bentoml("benchmarks._echo:Echo", home, {}) as server:
        yield server


@contextmanager
def mlflow(folder: Path) -> Iterator[Server]:
    """`mlflow models serve` of the champion, in this environment."""
    uri = f"models:/{MODEL}@champion"
    command = ["mlflow", "models", "serve", "-m", uri, "--host", "127.0.0.1", "--env-manager", "local"]
    # It starts `uvicorn` by name.
    own = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    with _running([*command, "--workers", str(WORKERS)], own, "/ping", folder / "mlflow.log") as server:
        yield server


@contextmanager
def _ours(what: str, home: Path, database: str, more: Mapping[str, str]) -> Iterator[Server]:
    _, key = keys.add(f"bench-{home.name}", "predict", rate=None, why="benchmark", ledger=Ledger(database))
    settings = {"GAUNTLET_DATABASE": database, "GAUNTLET_WORKERS": str(WORKERS)}
    with _bentoml(what, home, {**settings, **more}) as server:
        yield Server(server.port, server.pid, key)


@contextmanager
def _bentoml(what: str, home: Path, more: Mapping[str, str]) -> Iterator[Server]:
    environment = {**apart(home), **more}
    with _running(["bentoml", "serve", what, "--host", "127.0.0.1"], environment, "/readyz", home / "log") as server:
        yield server


@contextmanager
def _running(command: Sequence[str], env: Mapping[str, str], path: str, log: Path) -> Iterator[Server]:
    """Run a server until the block ends, or this process however it does.

    Raises:
        WorkError: It does not get ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    whole = [sys.executable, "-m", *command, "--port", str(port)]
    with (
        log.open("wb") as output,
        tethered(whole, env=env, cwd=clone_dir(), stdout=output, stderr=output) as process,
    ):
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(port, path):
            if process.poll() is not None or time.monotonic() > deadline:
                said = " ".join(log.read_text(errors="replace").split())[-600:]
                raise WorkError(f"`{' '.join(command)}` is not ready; it said: … {said}")
            time.sleep(0.1)
        yield Server(port, process.pid)


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
            return True
    except OSError:
        return False


def many_rows(release: "Release", count: int) -> list[dict[str, Any]]:
    """Other rows than those of training, ready for JSON, all acceptable to the service."""
    from bentos.frame import to_frame
    from bentos.inputs import examine, plain_rows
    from steps.generators import GENERATORS

    inputs = release.schema.inputs
    typed = to_frame(GENERATORS[MODEL].make(2 * count, 1_000, {})[list(inputs)], inputs).frame
    refused = {finding.row for finding in examine(typed, inputs) if finding.rejected}
    return plain_rows(typed.drop(index=sorted(refused)).head(count), inputs)
