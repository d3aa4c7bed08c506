"""Serving for a moment: a real `bentoml serve` on a free port, which cannot outlive who started it."""

import http.client
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bentos.release import Golden, Release
from models.errors import WorkError
from stacks.home import clone_dir
from stacks.orchestrator.tether import tethered
from steps.apart import apart
from steps.build import unpack

TOLERANCE = 1e-6
READY_SECONDS = 240.0
_SINGLES = 100
_SINGLES_SECONDS = 4.0


@dataclass(frozen=True)
class Latency:
    """Times of single predictions over HTTP, one after the other, in milliseconds."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Endpoint:
    """A service that answers on this machine."""

    port: int

    def get(self, path: str) -> Any:
        """JSON (or text) of a GET.

        Raises:
            WorkError: It did not answer with 200.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """JSON answer to a POST of JSON.

        Raises:
            WorkError: It did not answer with 200.
        """
        return self._ask("POST", path, json.dumps(body).encode())

    def predict_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answers to rows of JSON-ready features."""
        answers: list[dict[str, Any]] = self.post("/predict/batch", {"instances": list(rows)})["predictions"]
        return answers

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            return _ask(connection, method, path, body)
        except OSError as error:
            raise WorkError(f"{method} {path} on port {self.port} failed: {type(error).__name__}") from None
        finally:
            connection.close()


@contextmanager
def serving(tag: str, store: Path, python: Path = Path(sys.executable)) -> Iterator[Endpoint]:
    """Serve a Bento until the block ends; the process ends with it, and with this process whatever happens.

    Args:
        tag: `<model>:<six digits>` or `<model>:latest`.
        store: The `bentos` folder of a BentoML store; the server gets a home of its own around it.
        python: The interpreter whose BentoML serves.

    Raises:
        WorkError: It does not get ready.
    """
    with tempfile.TemporaryDirectory(prefix="gauntlet-serve-") as folder:
        home = Path(folder)
        # Whoever serves for a moment compares the answers: a process more to do so first would take seconds.
        environment = apart(home) | {"GAUNTLET_CHECK_START": "off"}
        (home / "bentos").symlink_to(store.absolute())
        log = home / "server.log"
        port = _free_port()
        serve = [str(python), "-m", "bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)]
        with (
            log.open("wb") as output,
            tethered(serve, env=environment, cwd=clone_dir(), stdout=output, stderr=output) as server,
        ):
            _await_ready(server, tag, port, log)
            yield Endpoint(port)


def serve_briefly(
    tag: str, rows: Sequence[Mapping[str, Any]], store: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Serve a Bento for a moment and let it answer rows, one request each.

    Args:
        tag: `<model>:<six digits>` or `<model>:latest`.
        rows: JSON-ready features, for example `Golden.inputs`.
        store: The `bentos` folder of a BentoML store.

    Returns:
        What `/health` said, and the answers.

    Raises:
        WorkError: It does not get ready or does not answer.
    """
    with serving(tag, store) as endpoint:
        return endpoint.get("/health"), [endpoint.post("/predict", {"features": row}) for row in rows]


def smoke_test(bento: Path, release: Release) -> Latency:
    """Unpack an exported Bento into a store apart, serve it, compare its answers and time them.

    Raises:
        WorkError: It does not get ready, or does not answer as the Release does (see `compare`).
    """
    model, _, version = bento.stem.rpartition("-")
    with tempfile.TemporaryDirectory(prefix="gauntlet-smoke-") as folder:
        store = Path(folder)
        unpack(bento, store / model / version)
        with serving(f"{model}:{version}", store) as endpoint:
            compare(endpoint, release, int(version))
            return _latency(endpoint, release.golden)


def compare(endpoint: Endpoint, release: Release, version: int) -> None:
    """Have a service answer the golden inputs of the Release that it should serve, singly and as one batch.

    Raises:
        WorkError: It serves another Release or version, or an answer differs by more than 1e-6.
    """
    _require_identity(endpoint, release, version)
    singles = [endpoint.post("/predict", {"features": golden.inputs}) for golden in release.golden]
    _require_same(singles, release, "singly")
    _require_same(endpoint.predict_batch([golden.inputs for golden in release.golden]), release, "as a batch")


def _require_identity(endpoint: Endpoint, release: Release, version: int) -> None:
    health = endpoint.get("/health")
    if (health["digest"], health["version"]) != (release.digest, version):
        raise WorkError(f"the server on port {endpoint.port} serves another Release: v{health['version']}")


def _require_same(answers: Sequence[Mapping[str, Any]], release: Release, kind: str) -> None:
    labels = release.schema.labels
    least = release.config.serving.abstain_below or 0.0
    pairs = zip(answers, release.golden, strict=True)
    wrong = [row for row, (answer, golden) in enumerate(pairs) if not _same(answer, golden, labels, least)]
    if wrong:
        raise WorkError(
            f"served {kind}, {len(wrong)} of {len(release.golden)} golden inputs are answered differently from the "
            f"Release (first: row {wrong[0]}); the serving environment computes something else"
        )


def _same(answer: Mapping[str, Any], golden: Golden, labels: Sequence[str], least: float) -> bool:
    if golden.probabilities is None:
        return math.isclose(answer["prediction"], golden.prediction, rel_tol=TOLERANCE, abs_tol=TOLERANCE)  # type: ignore[arg-type]
    expected = dict(zip(labels, golden.probabilities, strict=True))
    served = answer["probabilities"]
    close = served.keys() == expected.keys() and all(abs(served[k] - expected[k]) <= TOLERANCE for k in expected)
    best = max(expected.values())
    if answer["prediction"] is None:
        return close and best < least + TOLERANCE
    # Two classes within the tolerance of each other may change places.
    return close and best >= least - TOLERANCE and expected[answer["prediction"]] >= best - 2 * TOLERANCE


def _latency(endpoint: Endpoint, golden: Sequence[Golden]) -> Latency:
    """Time single predictions on one connection, warm: 100 of them, fewer when they would take over four seconds."""
    bodies = [json.dumps({"features": g.inputs}).encode() for g in golden]
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=60)
    times: list[float] = []
    try:
        begun = time.perf_counter()
        while len(times) < _SINGLES and (len(times) < 20 or time.perf_counter() - begun < _SINGLES_SECONDS):
            started = time.perf_counter()
            _ask(connection, "POST", "/predict", bodies[len(times) % len(bodies)])
            times.append((time.perf_counter() - started) * 1_000)
    finally:
        connection.close()
    times.sort()
    rank = [times[min(len(times) - 1, math.ceil(share * len(times)) - 1)] for share in (0.5, 0.95)]
    return Latency(round(rank[0], 3), round(rank[1], 3))


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> Any:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise WorkError(f"{method} {path} was answered with {response.status}")
    is_json = response.headers.get_content_type() == "application/json"
    return json.loads(content) if is_json else content.decode()


def _await_ready(server: "subprocess.Popen[bytes]", tag: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    endpoint = Endpoint(port)
    while server.poll() is None and time.monotonic() < deadline:
        try:
            endpoint.get("/readyz")
        except WorkError:
            time.sleep(0.02)
        else:
            return
    ended = "ended" if server.poll() is not None else f"was not ready after {READY_SECONDS:.0f} s"
    said = " ".join(log.read_text(errors="replace").split())[-600:]
    raise WorkError(f"`bentoml serve {tag}` {ended}; it said: … {said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
