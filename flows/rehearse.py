"""`make rehearse`: `stacks/cloud.yaml` on this machine's loopback, and a model's way onto it and back.

Everything is real, signed in to by password or key, and gone afterwards; of the stack only the type of the work pool is
another than in a cluster. State lies in a folder of its own: the clone's is not touched.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows import backends
from flows.backends import HOST, Service, answer, bare_environment, free_port
from flows.console import err, out
from flows.deployments import POOL
from models.errors import GauntletError, WorkError, bounded
from stacks.home import clone_dir, environment
from stacks.logs import masked

MODEL = "heart_disease"
# Few trials: a run of some seconds, whose gap between the ages is another than that of the fifty of the YAML.
SETTINGS = ("tuning.trials=2", "tuning.folds=3", "gates.tpr_gap.blocking=false")
PATIENCE = 600.0
# A patient, as the service is asked.
ASKED = {
    "features": {
        "age": 63, "sex": 1, "cp": 4, "trestbps": 145, "chol": 233, "fbs": 0, "restecg": 2, "thalach": 130,
        "exang": 1, "oldpeak": 2.3, "slope": 2, "ca": 1, "thal": 7,
    }
}  # fmt: skip


@dataclass(frozen=True)
class Cloud:
    """The back ends, and what `stacks/cloud.env.example` asks for, filled in."""

    variables: Mapping[str, str]
    bucket: backends.S3
    redis_port: int
    redis_password: str
    worker_type: str = "process"

    @property
    def prefect_environment(self) -> dict[str, str]:
        """What Prefect's own tools need."""
        return {
            "PREFECT_API_URL": self.variables["GAUNTLET_PREFECT_URL"],
            "PREFECT_API_AUTH_STRING": self.variables["GAUNTLET_PREFECT_AUTH"],
        }


@dataclass
class Rehearsal:
    """One rehearsal: what it runs on, and what its steps learn from each other."""

    folder: Path
    running: ExitStack
    cloud: Cloud
    local: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    worker: Service | None = None

    def environment(self, home: str = "home") -> dict[str, str]:
        """Variables of a machine: the clone's homes in a folder of its own, and the team's environment file."""
        kept = {name: os.environ[name] for name in ("GAUNTLET_DATA",) if os.environ.get(name)}
        return {**bare_environment(), **kept, **environment(self.folder / home), **self.cloud.variables}

    def tool(self, *command: str, **variables: str) -> str:
        """Run one of the four tools, or `gauntlet`, as a user does; what it wrote to stdout.

        Raises:
            WorkError: It ended with another code than 0, or not in time; the message holds the end of what it said.
        """
        path = Path(sys.executable).parent / command[0]
        try:
            done = subprocess.run(
                [str(path), *command[1:]],
                env={**self.environment(), **variables},
                cwd=clone_dir(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as late:
            said = masked((late.stderr or b"").decode(errors="replace")[-1500:])
            raise WorkError(f"`{' '.join(command)}` did not end in {PATIENCE:g} s: {bounded(said, 1500)}") from None
        if done.returncode:
            said = masked(f"{done.stdout[-600:]}\n{done.stderr[-1500:]}".strip())
            raise WorkError(f"`{' '.join(command)}` ended with code {done.returncode}: {bounded(said, 1800)}")
        return done.stdout

    def gauntlet(self, *arguments: str) -> dict[str, Any]:
        """Run a command of ours; its JSON."""
        answered: dict[str, Any] = json.loads(self.tool("gauntlet", *arguments, "--json").splitlines()[-1])
        return answered

    def train(self) -> dict[str, Any]:
        """The same training command on whatever stack is active."""
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        return self.gauntlet("run", MODEL, *settings)

    def local_state(self) -> dict[str, Any]:
        """What the local stack knows of champions: ledger, aliases, published Bentos."""
        bentos = json.loads(self.tool("bentoml", "list", "-o", "json"))
        return {
            "history": self.gauntlet("history", "--all"),
            "model": self.gauntlet("show", MODEL),
            "bentos": sorted(bento["tag"] for bento in bentos),
        }


@dataclass(frozen=True)
class Door:
    """A back end, as somebody with a password knocks there.

    Attributes:
        name: The back end's.
        knock: Comes in with a password, or raises.
        password: The one that opens it.
        refusal: What the error says to whoever has another one, and to nobody else.
    """

    name: str
    knock: Callable[[str], object]
    password: str
    refusal: str

    def check(self) -> None:
        """Come in with the password, and be refused for its want with another one.

        Raises:
            WorkError: Somebody was let in, or failed for another reason.
        """
        self.knock(self.password)
        try:
            self.knock(secrets.token_hex(6))
        except Exception as error:
            if self.refusal in f"{type(error).__name__}: {error}":
                return
            raise WorkError(
                f"{self.name} does not refuse a wrong password, it fails: {type(error).__name__}"
            ) from error
        raise WorkError(f"{self.name} let somebody in who has not its password")


def doors(cloud: Cloud) -> list[Door]:
    """All back ends that ask for a password or a key."""
    import boto3
    import psycopg
    import pymysql
    import redis

    known, store = cloud.variables, cloud.bucket
    database, ledger = urlsplit(known["ZENML_STORE_URL"]), urlsplit(known["GAUNTLET_DATABASE_URL"])
    client = {"endpoint_url": store.endpoint, "region_name": "us-east-1", "aws_access_key_id": store.key}

    def postgres(word: str) -> None:
        psycopg.connect(ledger._replace(netloc=f"gauntlet:{word}@{HOST}:{ledger.port}").geturl(), connect_timeout=10)

    def s3(word: str) -> None:
        boto3.client("s3", aws_secret_access_key=word, **client).list_objects_v2(Bucket=backends.BUCKET)

    def page(url: str) -> Callable[[str], None]:
        def knock(word: str) -> None:
            if (code := answer(url, f"gauntlet:{word}")[0]) != 200:
                raise WorkError(f"it answers {code}")

        return knock

    def mariadb(word: str) -> None:
        pymysql.connect(host=HOST, port=database.port or 0, user="zenml", password=word)

    experiment = known["GAUNTLET_MLFLOW_URL"] + "/api/2.0/mlflow/experiments/get?experiment_id=0"
    prefect = known["GAUNTLET_PREFECT_AUTH"].partition(":")[2]
    return [
        Door("PostgreSQL", postgres, ledger.password or "", "password authentication failed"),
        Door("MariaDB", mariadb, database.password or "", "(1045"),
        Door(
            "Redis",
            lambda word: redis.Redis(host=HOST, port=cloud.redis_port, password=word).ping(),
            cloud.redis_password,
            "AuthenticationError",
        ),
        Door("S3", s3, store.secret, "SignatureDoesNotMatch"),
        Door("MLflow", page(experiment), known["GAUNTLET_MLFLOW_PASSWORD"], "it answers 401"),
        Door("Prefect", page(known["GAUNTLET_PREFECT_URL"] + "/admin/version"), prefect, "it answers 401"),
    ]


def refusals(it: Rehearsal) -> str:
    """Knock at each back end with its password or key, and with a wrong one, which must be refused for that."""
    found = doors(it.cloud)
    for door in found:
        door.check()
    return f"refused: {', '.join(door.name for door in found)}"


def apply(it: Rehearsal) -> str:
    """Make both stacks known to ZenML; a second time changes nothing, and no secret lies in its database in clear."""
    import pymysql

    made = {name: len(it.gauntlet("stack", "apply", name)["changes"]) for name in ("local", "cloud")}
    if again := it.gauntlet("stack", "plan", "cloud")["changes"]:
        raise WorkError(f"a second apply would change: {again}")
    known = it.cloud.variables
    host, port = known["ZENML_STORE_URL"].rpartition("@")[2].split("/")[0].split(":")
    password = known["ZENML_STORE_URL"].split(":")[2].split("@")[0]
    with (
        pymysql.connect(host=host, port=int(port), user="zenml", password=password, database="zenml") as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT CAST(`values` AS CHAR) FROM secret")
        stored = " ".join(str(row[0]) for row in cursor.fetchall())
    if known["GAUNTLET_S3_SECRET"] in stored or "AWS_SECRET" in stored:
        raise WorkError("ZenML's database holds a secret in clear: is ZENML_SECRETS_STORE_ENCRYPTION_KEY set?")
    return f"local: {made['local']} changes, cloud: {made['cloud']}; again: none; secrets are encrypted in MySQL"


def run_local(it: Rehearsal) -> str:
    """Train on the local stack and remember what it then knows."""
    it.tool("zenml", "stack", "set", "local")
    it.local = it.train()
    it.before = it.local_state()
    if it.local["verdict"] != "promoted":
        raise WorkError(f"the first version is {it.local['verdict']}: {bounded(str(it.local['reason']), 300)}")
    return f"v{it.local['version']} {it.local['verdict']}, Release {it.local['release_digest'][:12]}"


def run_cloud(it: Rehearsal) -> str:
    """The same command on the cloud stack: the same Release; champion in PostgreSQL, files in the bucket."""
    import psycopg

    it.tool("zenml", "stack", "set", "cloud")
    it.result = it.train()
    if it.result["release_digest"] != it.local["release_digest"]:
        raise WorkError(f"another Release than on local: {it.result['release_digest']}, {it.local['release_digest']}")
    with psycopg.connect(it.cloud.variables["GAUNTLET_DATABASE_URL"]) as connection:
        rows = connection.execute(
            "SELECT version, payload::json->>'release_uri' FROM ledger WHERE model = %s AND action = 'promote'",
            (MODEL,),
        ).fetchall()
    if [row[0] for row in rows] != [it.result["champion"]] or not str(rows[0][1]).startswith("s3://"):
        raise WorkError(f"PostgreSQL's ledger has other promotions than v{it.result['champion']} from S3: {rows}")
    counts = {prefix: objects(it.cloud.bucket, prefix) for prefix in ("zenml/", "mlflow/")}
    if not all(counts.values()):
        raise WorkError(f"the bucket lacks artifacts: {counts}")
    places = ", ".join(f"{count} objects under {prefix}" for prefix, count in counts.items())
    return f"the same Release {it.result['release_digest'][:12]}; champion v{rows[0][0]} in PostgreSQL; {places}"


def serve(it: Rehearsal) -> str:
    """A service that knows the stack by `GAUNTLET_STACK` only: it follows the champion from S3, answers, and logs."""
    from bentos.predictions import find

    home, port = it.folder / "service", free_port()
    home.mkdir()
    variables = it.environment("service") | {"GAUNTLET_STACK": "cloud", "GAUNTLET_SERVE": MODEL}
    command = [sys.executable, "-m", "bentoml", "serve", "bentos.service:Gauntlet", "--port", str(port)]
    service = Service("service", command, port, home, variables)
    try:
        service.start(lambda: answer(f"http://{HOST}:{port}/readyz")[0] == 200)
        code, said = answer(f"http://{HOST}:{port}/predict", body=json.dumps(ASKED).encode())
    finally:
        service.stop()
    if code != 200 or json.loads(said)["version"] != it.result["champion"]:
        raise WorkError(f"the service answers {code}: {bounded(said, 300)}")
    answered = json.loads(said)
    if not find(it.cloud.variables["GAUNTLET_DATABASE_URL"], [answered["prediction_id"]]):
        raise WorkError("the prediction is not in PostgreSQL's log")
    return f"v{answered['version']} answers {answered['prediction']!r}, fetched from S3, logged in PostgreSQL"


def run_on_worker(it: Rehearsal) -> str:
    """`prefect deployment run`: another machine's worker (a home of its own) trains on the same stack."""
    tools = it.cloud.prefect_environment
    it.tool("prefect", "work-pool", "create", POOL, "--type", it.cloud.worker_type, **tools)
    it.tool("prefect", "--no-prompt", "deploy", "-n", MODEL, **tools)
    home = it.folder / "worker"
    home.mkdir()
    stack = json.loads(it.tool("zenml", "stack", "list", "--name", "cloud", "--output", "json"))["items"][0]["id"]
    # It asks for work every two seconds, not ten: else the rehearsal mostly waits.
    variables = it.environment("worker") | tools | {"ZENML_ACTIVE_STACK_ID": stack, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"]
    command += ["--type", it.cloud.worker_type]
    it.worker = worker = Service("worker", command, 0, home, variables)
    it.running.callback(worker.stop)
    worker.start(lambda: pool_status(it) == "READY")
    parameters = {"model": MODEL, "overrides": list(SETTINGS)}
    asked = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
    it.tool("prefect", "deployment", "run", f"train/{MODEL}", *asked, **tools)
    run = await_run(it, "train", scheduled=False)
    after = it.gauntlet("show", MODEL)
    return f"flow run {run['name']} completed on the worker; champion v{after['champion']}"


def schedule(it: Rehearsal) -> str:
    """A schedule that fires: a monitoring run that nobody asked for by hand."""
    tools = it.cloud.prefect_environment
    it.tool("prefect", "deployment", "schedule", "create", f"monitor/{MODEL}", "--interval", "10", **tools)
    try:
        run = await_run(it, "monitor", scheduled=True)
    finally:
        it.tool("prefect", "deployment", "schedule", "clear", "-y", f"monitor/{MODEL}", **tools)
    return f"flow run {run['name']} was scheduled and completed"


def return_to_local(it: Rehearsal) -> str:
    """Back on local: ledger, versions and Bentos are as they were."""
    it.tool("zenml", "stack", "set", "local")
    after = it.local_state()
    if changed := [name for name, value in it.before.items() if after[name] != value]:
        raise WorkError(f"the local stack is not as it was: {', '.join(changed)}")
    return f"ledger, versions and {len(after['bentos'])} Bento as before"


STEPS: Mapping[str, Callable[[Rehearsal], str]] = {
    "closed doors": refusals,
    "stack apply": apply,
    "local run": run_local,
    "cloud run": run_cloud,
    "service": serve,
    "worker": run_on_worker,
    "schedule": schedule,
    "back to local": return_to_local,
}


def objects(store: backends.S3, prefix: str) -> int:
    """How many objects a bucket holds below a prefix."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=store.key,
        aws_secret_access_key=store.secret,
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=backends.BUCKET, Prefix=prefix)
    return sum(page["KeyCount"] for page in pages)


def pool_status(it: Rehearsal) -> str | None:
    """What Prefect's server says of the work pool."""
    url, auth = (it.cloud.variables[name] for name in ("GAUNTLET_PREFECT_URL", "GAUNTLET_PREFECT_AUTH"))
    code, said = answer(f"{url}/work_pools/{POOL}", auth)
    return json.loads(said)["status"] if code == 200 else None


def await_run(it: Rehearsal, flow: str, scheduled: bool) -> dict[str, Any]:
    """Wait for a flow run to end.

    Raises:
        WorkError: It did not complete.
    """
    url, auth = (it.cloud.variables[name] for name in ("GAUNTLET_PREFECT_URL", "GAUNTLET_PREFECT_AUTH"))
    wanted = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"deployment_id": {"is_null_": False}, "state": {"type": {"not_any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + PATIENCE
    state = "never started"
    while time.monotonic() < deadline:
        code, said = answer(f"{url}/flow_runs/filter", auth, json.dumps(wanted).encode())
        runs = [run for run in json.loads(said) if run["auto_scheduled"] == scheduled] if code == 200 else []
        for run in runs:
            state = f"{run['state']['name']}: {run['state']['message']}"
            if run["state_type"] == "COMPLETED":
                return dict(run)
            if run["state_type"] in ("FAILED", "CRASHED", "CANCELLED"):
                said = it.worker.log_end() if it.worker else "nothing"
                raise WorkError(
                    f"the flow run {run['name']} is {bounded(masked(state), 600)}; its worker said: {masked(said)}"
                )
        time.sleep(0.5)
    raise WorkError(f"no flow run of {flow} completed in {PATIENCE:.0f} s: {bounded(state, 300)}")


@contextmanager
def cloud() -> Iterator[Cloud]:
    """Start every back end, each with passwords made for this once.

    Raises:
        WorkError: A program is missing, or a server did not start.
    """
    if missing := backends.missing_programs():
        raise WorkError(f"programs of these packages are missing: {', '.join(missing)}; install them (see .ci/run)")
    words = {
        name: secrets.token_hex(12) for name in ("gauntlet", "prefect", "mlflow", "mlflow_users", "zenml", "redis")
    }
    with ExitStack() as running:
        start = running.enter_context
        postgres = start(backends.postgres({n: words[n] for n in ("gauntlet", "prefect", "mlflow", "mlflow_users")}))

        def url(name: str, driver: str = "postgresql") -> str:
            return f"{driver}://{name}:{words[name]}@{HOST}:{postgres.port}/{name}"

        mariadb = start(backends.mariadb("zenml", words["zenml"]))
        redis = start(backends.redis(words["redis"]))
        bucket = start(backends.s3())
        messages = f"redis://:{words['redis']}@{HOST}:{redis.port}/0"
        auth = f"gauntlet:{secrets.token_hex(12)}"
        secret = secrets.token_hex(32)
        dask = start(backends.dask_cluster({"GAUNTLET_SECRET": secret, **backends.aws_environment(bucket)}))
        prefect = start(backends.prefect_server(url("prefect", "postgresql+asyncpg"), messages, auth))
        user = backends.MlflowUser("gauntlet", secrets.token_hex(12))
        tracking, people = (url(name, "postgresql+psycopg") for name in ("mlflow", "mlflow_users"))
        mlflow = start(backends.mlflow_server(tracking, people, bucket, user))
        yield Cloud(
            {
                "ZENML_STORE_URL": f"mysql://zenml:{words['zenml']}@{HOST}:{mariadb.port}/zenml",
                "ZENML_SECRETS_STORE_TYPE": "sql",
                "ZENML_SECRETS_STORE_ENCRYPTION_KEY": secrets.token_hex(32),
                "GAUNTLET_BUCKET": f"s3://{backends.BUCKET}",
                "GAUNTLET_S3_ENDPOINT": bucket.endpoint,
                "GAUNTLET_S3_REGION": "us-east-1",
                "GAUNTLET_S3_KEY_ID": bucket.key,
                "GAUNTLET_S3_SECRET": bucket.secret,
                "GAUNTLET_MLFLOW_URL": f"http://{HOST}:{mlflow.port}",
                "GAUNTLET_MLFLOW_USERNAME": user.name,
                "GAUNTLET_MLFLOW_PASSWORD": user.password,
                "GAUNTLET_PREFECT_URL": f"http://{HOST}:{prefect.port}/api",
                "GAUNTLET_PREFECT_AUTH": auth,
                "GAUNTLET_DATABASE_URL": url("gauntlet"),
                "GAUNTLET_CLOUD_SECRET": secret,
                "GAUNTLET_DASK_SCHEDULER": dask,
                "GAUNTLET_REGISTRY": f"{HOST}:1/gauntlet",
            },
            bucket,
            redis.port,
            words["redis"],
        )


def rehearse(tell: Callable[[str, str, float], None]) -> None:
    """Go through all steps, telling each one's name, what was seen, and how many seconds it took.

    Raises:
        GauntletError: A step saw something else than it should have.
    """
    began = time.monotonic()
    with ExitStack() as running:
        there = running.enter_context(cloud())
        tell("back ends", "PostgreSQL, MariaDB, Redis, S3, Prefect, MLflow, Dask", time.monotonic() - began)
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="gauntlet-rehearsal-")))
        (folder / "home" / "mlflow").mkdir(parents=True)
        it = Rehearsal(folder, running, there)
        for name, step in STEPS.items():
            began = time.monotonic()
            err.print(f"  {name} …", markup=False)
            try:
                seen = step(it)
            except GauntletError as error:
                raise WorkError(f"{name}: {error}") from error
            except Exception as error:
                # Of the back ends' own clients; their texts may hold addresses with passwords.
                said = bounded(masked(str(error)), 500)
                raise WorkError(f"{name}: {type(error).__name__}: {said}") from error
            tell(name, seen, time.monotonic() - began)


def main() -> int:
    """Rehearse; the exit code."""
    try:
        rehearse(lambda name, seen, seconds: out.print(f"✓ {name}: {seen} ({seconds:.0f} s)", markup=False))
    except GauntletError as error:
        err.print(f"✗ {error}", style="red", markup=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
