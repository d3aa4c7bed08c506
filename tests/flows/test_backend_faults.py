"""PostgreSQL and S3 fail under a run: both records say so, nothing is half-promoted, the next run is well."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from flows import backends
from flows.backends import Service, missing_programs
from stacks.ledger import Ledger
from tests.databases import files_holding
from tests.flows.conftest import Done, Place

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]
AWAY_SECONDS = 10.0
KEYS = {"AWS_ACCESS_KEY_ID": "gauntlet", "AWS_SECRET_ACCESS_KEY": "hunter2-bucket", "AWS_DEFAULT_REGION": "us-east-1"}
PASSWORD = "hunter2-database"
PREPARE = """
import sys
from pathlib import Path
from stacks import stack_file
stack_file.stacks_dir = lambda: Path(sys.argv[1])
from zenml.client import Client
stack_file.apply("remote")
Client().activate_stack("remote")
"""
RUNS = """
import json
from zenml.client import Client
runs = Client().list_pipeline_runs(sort_by="desc:created", size=50).items
print(json.dumps([[run.name, str(run.status)] for run in runs]))
"""


@dataclass
class Bucket:
    """moto's S3 that can be broken, or slow and shaky."""

    app: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))
    broken: bool = False
    delay: float = 0.0
    shaky: int = 0
    refused: int = 0
    _asked: int = 0
    _refused_once: set[tuple[str, ...]] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._guard:
            self._asked += 1
            asked = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
            # Beside others that ask at the same time, one request may meet every refusal, however often it tries again.
            shakes = bool(self.shaky) and self._asked % self.shaky == 0 and asked not in self._refused_once
            self._refused_once.discard(asked)
            if shakes:
                self._refused_once.add(asked)
            refuse = self.broken or shakes
            self.refused += refuse
        time.sleep(self.delay)
        if not refuse:
            return self.app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>away</Message></Error>"]


@dataclass
class Ground:
    place: Place
    postgres: Service
    bucket: Bucket
    database: str

    def run(self, **variables: str) -> Done:
        return self.place.gauntlet("run", "toy", **variables)

    def child(self, code: str, *arguments: str) -> str:
        # ZenML wants a main module that is a file.
        script = self.place.data / "child.py"
        script.write_text(code)
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(command, env=self.place.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def newest_run(self) -> tuple[str, str]:
        """States of the newest run in ZenML's record and in Prefect's."""
        ((_, zenml), *_) = json.loads(self.child(RUNS).splitlines()[-1])
        with sqlite3.connect(self.place.home / "prefect" / "prefect.db") as records:
            ((prefect,),) = records.execute("select state_type from flow_run order by created desc limit 1")
        return zenml, prefect

    def champions(self) -> list[int | None]:
        return [entry.version for entry in Ledger(self.database).history("toy") if entry.action == "promote"]

    def require_nothing_promoted(self) -> None:
        assert self.champions() == []
        assert not (self.place.home / "bentoml/bentos/toy/latest").exists()
        with sqlite3.connect(self.place.home / "mlflow" / "mlflow.db") as records:
            assert records.execute("select alias from registered_model_aliases").fetchall() == []


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Bucket, str]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = Bucket()
    server = make_server("127.0.0.1", 0, made, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="gauntlet",
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    ).create_bucket(Bucket=backends.BUCKET)
    yield made, endpoint
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def ground(place: Place, bucket: tuple[Bucket, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The toy model on a stack whose artifacts lie in the bucket and whose ledger in a PostgreSQL of its own."""
    if (missing := missing_programs()) and os.environ.get("GAUNTLET_REQUIRE_SERVICES") != "1":
        pytest.skip(f"programs of {', '.join(missing)} are missing")
    folder, (made, endpoint) = tmp_path_factory.mktemp("stacks"), bucket
    with backends.postgres({"gauntlet": PASSWORD}) as postgres, pytest.MonkeyPatch.context() as patched:
        database = f"postgresql://gauntlet:{PASSWORD}@127.0.0.1:{postgres.port}/gauntlet"
        carried = {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "4", "AWS_RETRY_MODE": "standard"}
        stack = {
            "orchestrator": {"flavor": "prefect"},
            "artifact_store": {
                "flavor": "s3",
                "config": {
                    "path": f"s3://{backends.BUCKET}/zenml",
                    "client_kwargs": {"endpoint_url": endpoint},
                    "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 4}},
                },
            },
            "experiment_tracker": {"flavor": "mlflow", "config": {"tracking_uri": "${MLFLOW_TRACKING_URI}"}},
            "model_registry": {"flavor": "mlflow"},
            "environment": {**carried, "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"s3://{backends.BUCKET}/mlflow"},
            "secrets": {"ledger": {"GAUNTLET_DATABASE": "${LEDGER_URL}"}},
        }
        (folder / "remote.yaml").write_text(json.dumps(stack))
        for name, value in {**KEYS, "LEDGER_URL": database}.items():
            patched.setenv(name, value)
        there = Ground(place, postgres, made, database)
        there.child(PREPARE, str(folder))
        yield there


def _postgres_away(there: Ground, step: str) -> tuple[int, str]:
    """Stop PostgreSQL when a step starts, for ten seconds and until the run has ended; its code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "toy", "--json", "--set", "logging.format=json"],
        env=there.place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stdout is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if f"Step `{step}` has started" in line:
            break
    else:
        pytest.fail(f"{step} never started:\n{''.join(said)[-3000:]}")
    there.postgres.stop()
    began = time.monotonic()
    rest = threading.Thread(target=lambda: said.append(process.stderr.read()))
    rest.start()
    answered = process.stdout.read()
    code = process.wait(timeout=600)
    rest.join()
    time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - began)))
    there.postgres.start(lambda: _accepts(there.database))
    return code, answered + "".join(said)


def _accepts(database: str) -> bool:
    try:
        psycopg.connect(database, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def test_postgresql_is_away_during_a_run(ground: Ground, proof: Callable[[str, object, str], None]) -> None:
    code, said = _postgres_away(ground, "package")
    answered = json.loads(next(line for line in said.splitlines() if '"exit_code"' in line))
    assert (code, answered["exit_code"]) == (1, 1)
    assert "the ledger postgresql" in answered["error"] and "cannot be used" in answered["error"]
    assert PASSWORD not in said
    assert ground.newest_run() == ("failed", "FAILED")
    ground.require_nothing_promoted()
    proof("PostgreSQL away for ten seconds during a run", 1, "failed in both records, nothing was promoted")


def test_s3_answers_500(ground: Ground, proof: Callable[[str, object, str], None]) -> None:
    ground.bucket.broken = True
    # Else the steps that the run before completed are taken from the cache.
    ground.place.write(seed=7)
    try:
        done = ground.run()
    finally:
        ground.bucket.broken = False
    assert done.code == 1 and done.json is not None, done.printed[-3000:]
    assert ground.bucket.refused
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in done.printed
    zenml, prefect = ground.newest_run()
    assert (zenml, prefect) == ("failed", "FAILED"), done.json
    ground.require_nothing_promoted()
    proof("S3 answers 500 during a run", 1, "failed in both records, nothing was promoted")


def test_the_next_run_is_well_on_a_slow_and_shaky_s3(ground: Ground, proof: Callable[[str, object, str], None]) -> None:
    ground.bucket.delay, ground.bucket.shaky, ground.bucket.refused = 0.05, 5, 0
    try:
        done = ground.run()
    finally:
        ground.bucket.delay, ground.bucket.shaky = 0.0, 0
    assert done.code == 0 and done.json is not None, done.printed[-3000:]
    assert ground.bucket.refused > 5, "the clients' own retries had work"
    assert done.json["verdict"] == "promoted"
    assert ground.champions() == [done.json["champion"]]
    assert ground.newest_run() == ("completed", "COMPLETED")
    health = ground.place.gauntlet("doctor", GAUNTLET_DATABASE=ground.database)
    assert health.code == 0, health.printed
    proof("S3 slow, with every fifth request refused", 1, "the run after both failures was promoted")


def test_no_file_of_the_home_holds_a_password(ground: Ground) -> None:
    assert [Path(path).name for path in files_holding(PASSWORD, ground.place.home)] == []
