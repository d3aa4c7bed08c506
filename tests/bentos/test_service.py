"""The service as a process: a real `bentoml serve` of a Bento, from the clone's folder as a user would."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from bentos.inputs import plain_rows
from bentos.release import Release
from models.errors import WorkError
from stacks.home import clone_dir
from steps.apart import apart
from steps.build import build_bento, unpack
from steps.serve import Endpoint, serve_briefly, serving
from tests.bentos.samples import frame_of, write


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write(tmp_path_factory.mktemp("release") / "wine", "wine", "logistic_regression")


@pytest.fixture(scope="module")
def store(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with versions 10 and 11 of wine, `latest` being 10."""
    folder = tmp_path_factory.mktemp("store")
    for version in (10, 11):
        bento = build_bento(release.directory, "wine", version, {}, folder)
        unpack(bento, folder / "bentos" / "wine" / f"{version:06d}")
    (folder / "bentos" / "wine" / "latest").write_text("000010")
    return folder / "bentos"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of `endpoint` lives, with its log."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def endpoint(store: Path, logs: Path) -> Iterator[Endpoint]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAUNTLET_LOG_FORMAT", "json")
            patch.setattr(tempfile, "tempdir", str(logs))
            endpoint = stack.enter_context(serving("wine:latest", store))
        yield endpoint


def test_the_process_tells_what_monitoring_knows(endpoint: Endpoint) -> None:
    summary = endpoint.get("/monitoring/summary?hours=1")
    assert (summary["model"], summary["hours"], summary["champion"]) == ("wine", 1, None)
    deadline = time.monotonic() + 240
    while 'gauntlet_open_alerts{model="wine",severity="critical"} 0.0' not in (page := endpoint.get("/metrics")):
        assert time.monotonic() < deadline, page[-2000:]
        time.sleep(0.2)
    assert page.count("# TYPE gauntlet_drift_share gauge") == page.count("# TYPE gauntlet_ready gauge") == 1


def test_the_service_speaks_json_where_it_is_asked_for(endpoint: Endpoint, logs: Path) -> None:
    (log,) = logs.glob("gauntlet-serve-*/server.log")
    said = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    (own,) = [line for line in said if line["logger"] == "gauntlet.service"]
    assert (own["message"], own["model"], own["version"], own["level"]) == ("wine v10 answers", "wine", "10", "INFO")
    assert [line for line in said if line["logger"].startswith("bentoml")], "BentoML's own lines come the same way"


def test_latest_serves_its_release(endpoint: Endpoint, release: Release) -> None:
    health = endpoint.get("/health")
    assert (health["version"], health["digest"]) == (10, release.digest)
    assert endpoint.get("/livez").strip() == endpoint.get("/readyz").strip() == ""


def test_every_row_is_answered_over_http_as_offline(endpoint: Endpoint, release: Release) -> None:
    frame = frame_of("wine")
    rows = plain_rows(frame, release.schema.inputs)
    offline = release.answer(frame)
    labels = release.schema.labels
    batch = endpoint.predict_batch(rows)
    singles = [endpoint.post("/predict", {"features": row}) for row in rows]
    for answers in (batch, singles):
        served = np.array([[answer["probabilities"][label] for label in labels] for answer in answers])
        assert np.abs(served - offline.probabilities).max() <= 1e-6
        assert [answer["prediction"] for answer in answers] == list(offline.values)


def test_docs_json_shows_the_model_s_inputs(endpoint: Endpoint, store: Path) -> None:
    shown = endpoint.get("/docs.json")
    alcohol = shown["components"]["schemas"]["WineFeatures"]["properties"]["alcohol"]
    assert (alcohol["type"], alcohol["minimum"], alcohol["maximum"]) == ("number", 5, 20)
    assert {"/predict", "/predict/batch", "/health"} <= shown["paths"].keys()
    assert {"bearer", "header"} == shown["components"]["securitySchemes"].keys()
    assert shown["paths"]["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}, {}]
    assert "WineFeatures" in (store / "wine/000010/apis/openapi.yaml").read_text()


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/predict", b"{", 422),
        ("POST", "/predict", b"[" * 100_000, 422),
        ("POST", "/predict", b'{"features": {"alcohol": NaN}}', 422),
        ("POST", "/predict/batch", b'{"instances": [{"alcohol": "Zq7"}]}', 422),
        ("POST", "/predict/batch", json.dumps({"instances": [{}] * 100}).encode(), 422),
        ("POST", "/predict/batch", b'{"instances": []}', 422),
        ("GET", "/predict", None, 405),
        ("GET", "/no/such/route", None, 404),
        ("GET", "/%2e%2e/%00", None, 404),
    ],
)
def test_bad_requests_are_the_caller_s_fault(
    endpoint: Endpoint, method: str, path: str, body: bytes | None, code: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=120)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert (response.status, b"Zq7" in response.read()) == (code, False)
    connection.close()


def test_only_loopback_listens(endpoint: Endpoint) -> None:
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == endpoint.port]
    assert set(listening) == {"127.0.0.1"}


def test_the_service_s_own_address_is_loopback(store: Path) -> None:
    assert "host: 127.0.0.1" in (store / "wine/000010/bento.yaml").read_text()


def test_the_serving_process_stays_slim(endpoint: Endpoint) -> None:
    """What the workers map: nothing of the tools that only training needs, and the code of the Bento."""
    worker = next(p for p in _processes() if "_bentoml_impl.worker.service" in p.cmdline() and _env(p) == endpoint.port)
    mapped = {part for m in worker.memory_maps() for part in Path(m.path).parts}
    assert "sklearn" in mapped
    assert not mapped & {"xgboost", "shap", "numba", "matplotlib"}


def test_a_version_is_not_found_by_its_beginning(store: Path, tmp_path: Path) -> None:
    """Trap: BentoML falls back to a prefix match, so versions have six digits."""
    home = tmp_path / "home"
    environment = apart(home)
    (home / "bentos").symlink_to(store)
    get = [sys.executable, "-m", "bentoml", "get", "-o", "path"]

    def path_of(tag: str) -> str:
        done = subprocess.run([*get, tag], env=environment, capture_output=True, text=True, check=False)
        return "".join(done.stdout.split()) if done.returncode == 0 else "none"

    assert path_of("wine:000011").endswith("/000011")
    assert path_of("wine:000001") == "none"
    shutil.copytree(store / "wine/000011", tmp_path / "prefixed/wine/10")
    (home / "bentos").unlink()
    (home / "bentos").symlink_to(tmp_path / "prefixed")
    assert path_of("wine:1").endswith("/10")  # what would happen without padding


def test_serving_briefly_answers_and_leaves_nothing(
    store: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAUNTLET_TEST_MARK", f"briefly {os.getpid()}")
    health, answers = serve_briefly("wine:000011", [release.golden[0].inputs], store)
    assert health["version"] == 11
    assert answers[0]["prediction"] == release.golden[0].prediction
    assert not _marked("briefly")


def test_the_source_without_a_release_is_refused_before_the_port_opens(tmp_path: Path) -> None:
    said = _refused("bentos.service:Gauntlet", clone_dir(), tmp_path)
    assert "there is no Release beside the service's code" in said
    assert "Traceback" not in said


def test_a_damaged_release_is_refused_before_the_port_opens(store: Path, tmp_path: Path) -> None:
    bento = Path(shutil.copytree(store / "wine/000010", tmp_path / "bento"))
    (bento / "src/release/pipeline.skops").write_bytes(b"other")
    said = _refused(str(bento), tmp_path, tmp_path / "home")
    assert "pipeline.skops is not what its manifest says" in said
    assert "Traceback" not in said


def test_a_bento_that_does_not_start_is_said_with_what_the_server_said(store: Path) -> None:
    with pytest.raises(WorkError, match="wine:000099"), serving("wine:000099", store):
        raise AssertionError("unreachable")


def test_a_killed_starter_leaves_no_server(store: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from steps.serve import serving
with serving("wine:latest", Path({str(store)!r})) as endpoint:
    print(endpoint.port, flush=True)
    time.sleep(600)
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        cwd=clone_dir(),
        env=os.environ | {"GAUNTLET_TEST_MARK": f"killed {os.getpid()}"},
        text=True,
    )
    assert starter.stdout is not None
    port = int(starter.stdout.readline())
    assert len(_marked("killed")) >= 4  # the starter, the tether, BentoML's supervisor, its worker
    starter.kill()
    starter.wait()
    _, alive = psutil.wait_procs(_marked("killed"), timeout=240)
    assert not alive
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _refused(target: str, folder: Path, home: Path) -> str:
    """What `bentoml serve` says while ending with an error, its port never opened."""
    with socket.socket() as taken:
        # A port that cannot be opened: had the service tried, it would have said so.
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "bentoml", "serve", target, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(
            command, cwd=folder, env=apart(home), capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 1
    assert "in use" not in done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def _processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any("bentoml" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _marked(mark: str) -> list[psutil.Process]:
    """Processes, besides this one, that this one's test started with the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("GAUNTLET_TEST_MARK") == f"{mark} {os.getpid()}":
                found.append(process)
        except psutil.Error:
            continue
    return found


def _env(process: psutil.Process) -> int:
    """The port that a server process serves on, from its command line or the map that BentoML hands to workers."""
    try:
        line = process.cmdline()
        if "--port" in line:
            return int(line[line.index("--port") + 1])
        mapped = json.loads(process.environ().get("BENTOML_RUNNER_MAP", "{}"))
        return int(mapped.get("Gauntlet", ":0").rpartition(":")[2])
    except psutil.Error:
        return 0
