"""Back ends of a cloud stack on this machine, each with its own sign-in, for as long as somebody uses them.

PostgreSQL, MariaDB and Redis are instances of our own, on free ports and in folders that are gone afterwards: what
listens on this machine already may let everybody in, and is nobody's to change.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import WorkError, bounded
from stacks.home import clone_dir
from stacks.orchestrator.tether import tethered

START_SECONDS = 300.0
HOST = "127.0.0.1"
BUCKET = "gauntlet"
BINARIES: Mapping[str, Sequence[str]] = {
    "postgresql": ("initdb", "postgres"),
    "mariadb-server": ("mariadb-install-db", "mariadbd"),
    "redis-server": ("redis-server",),
}
ON_REDIS: Mapping[str, str] = {
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
}
ALLOW_ALL = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


@dataclass
class Service:
    """A server process that was started here.

    Attributes:
        name: What people call it.
        command: What was run.
        port: Where it listens on the loopback.
        environment: Its variables beyond those that every process has.
        folder: Where it keeps its files; its log lies there too.
        owner: User of the operating system that it runs as; None for the caller's.
    """

    name: str
    command: Sequence[str]
    port: int
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None
    _running: ExitStack = field(default_factory=ExitStack, repr=False)

    def start(self, there: Callable[[], bool] | None = None) -> None:
        """Run it, and wait until it accepts connections, or until `there` says so.

        Raises:
            WorkError: It ended, or was not there in time; the message holds the end of its log.
        """
        log = self._running.enter_context((self.folder / f"{self.name}.log").open("ab"))
        process = self._running.enter_context(
            tethered(
                as_user(self.owner, self.command),
                env={**bare_environment(), **self.environment},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                grace=3.0,
            )
        )
        is_there = there or (lambda: _listens(self.port))
        deadline = time.monotonic() + START_SECONDS
        while not is_there():
            if process.poll() is not None or time.monotonic() > deadline:
                ended = f"ended with code {process.returncode}" if process.poll() is not None else "is not there"
                raise WorkError(f"{self.name} {ended}: {self.log_end()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and all that it started; what it wrote stays."""
        self._running.close()

    def log_end(self) -> str:
        """The last of what it said."""
        text = (self.folder / f"{self.name}.log").read_text(errors="replace")
        return bounded(" | ".join(text.strip().splitlines()[-6:])[-900:], 900)


def missing_programs() -> list[str]:
    """Packages whose programs are not on this machine."""
    return [package for package, names in BINARIES.items() if not all(_program(name) for name in names)]


def free_port() -> int:
    """A port where nobody listens now."""
    with socket.socket() as door:
        door.bind((HOST, 0))
        return int(door.getsockname()[1])


def bare_environment() -> dict[str, str]:
    """What a server needs of the caller's variables, and none of the caller's settings."""
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LD_LIBRARY_PATH")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "DO_NOT_TRACK": "true"} | {name: os.environ[name] for name in kept if name in os.environ}


def as_user(owner: str | None, command: Sequence[str]) -> list[str]:
    """A command that runs as another user of the operating system, by root only."""
    return [*(["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups"] if owner else []), *command]


@contextmanager
def own_folder(owner: str | None = None) -> Iterator[Path]:
    """A folder that only `owner` can look into, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="gauntlet-backend-"))
    if owner:
        os.chown(folder, pwd.getpwnam(owner).pw_uid, pwd.getpwnam(owner).pw_gid)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres(owners: Mapping[str, str]) -> Iterator[Service]:
    """PostgreSQL that asks everybody for a password (SCRAM).

    Args:
        owners: Password by name: of each a role, and a database that is its own.
    """
    import psycopg
    from psycopg import sql

    user = "postgres" if os.geteuid() == 0 else None
    with own_folder(user) as folder:
        admin, data = secrets.token_hex(12), folder / "data"
        secret = folder / "password"
        secret.write_text(admin)
        if user:
            shutil.chown(secret, user)
        options = ["-U", "admin", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
        _call([_program("initdb") or "initdb", "-D", str(data), *options], user)
        secret.unlink()
        port = free_port()
        command = [_program("postgres") or "postgres", "-D", str(data), "-p", str(port), "-h", HOST, "-k", str(folder)]
        service = Service("postgresql", [*command, "-c", "max_connections=200"], port, folder, owner=user)
        address = f"host={HOST} port={port} user=admin password={admin} dbname=postgres"
        with _stopping(service):
            service.start(lambda: _answers(lambda: psycopg.connect(address, connect_timeout=5).close()))
            with psycopg.connect(address, autocommit=True) as connection:
                for name, password in owners.items():
                    who = sql.Identifier(name)
                    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(who, sql.Literal(password))
                    connection.execute(create)
                    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(who, who))
            yield service


@contextmanager
def mariadb(name: str, password: str) -> Iterator[Service]:
    """MariaDB with one database, and a user of the same name who alone may use it."""
    import pymysql

    user = "mysql" if os.geteuid() == 0 else None
    with own_folder(user) as folder:
        data, port = folder / "data", free_port()
        _call(
            [
                _program("mariadb-install-db") or "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            user,
        )
        command = [_program("mariadbd") or "mariadbd", "--no-defaults", f"--datadir={data}", f"--port={port}"]
        command += [f"--bind-address={HOST}", f"--socket={folder / 'socket'}", "--skip-name-resolve"]
        service = Service("mariadb", command, port, folder, owner=user)

        def connect() -> Any:
            return pymysql.connect(host=HOST, port=port, user="root", autocommit=True)

        with _stopping(service):
            service.start(lambda: _answers(lambda: connect().close()))
            with connect() as connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE `{name}`")
                cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (name, password))
                cursor.execute(f"GRANT ALL ON `{name}`.* TO %s@'%%'", (name,))
                for host in ("localhost", HOST, "::1"):
                    cursor.execute("DROP USER IF EXISTS root@%s", (host,))
            yield service


@contextmanager
def redis(password: str) -> Iterator[Service]:
    """Redis that asks for a password and writes nothing down."""
    with own_folder() as folder:
        port = free_port()
        settings = folder / "redis.conf"
        settings.write_text(f'bind {HOST}\nport {port}\nrequirepass {password}\nsave ""\ndir {folder}\n')
        service = Service("redis", [_program("redis-server") or "redis-server", str(settings)], port, folder)
        with _stopping(service):
            service.start()
            yield service


@dataclass(frozen=True)
class S3:
    """An S3 server with one bucket, and a key that alone opens it."""

    service: Service
    endpoint: str
    key: str
    secret: str


@contextmanager
def s3(bucket: str = BUCKET) -> Iterator[S3]:
    """moto's server, which checks the signature of every request once the key is made."""
    import boto3

    with own_folder() as folder:
        port = free_port()
        endpoint = f"http://{HOST}:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
        service = Service("s3", command, port, folder)
        with _stopping(service):
            service.start()
            anybody: dict[str, Any] = {
                "endpoint_url": endpoint,
                "region_name": "us-east-1",
                "aws_access_key_id": "nobody",
                "aws_secret_access_key": "nobody",
            }
            boto3.client("s3", **anybody).create_bucket(Bucket=bucket)
            iam = boto3.client("iam", **anybody)
            iam.create_user(UserName="gauntlet")
            iam.put_user_policy(UserName="gauntlet", PolicyName="s3", PolicyDocument=ALLOW_ALL)
            made = iam.create_access_key(UserName="gauntlet")["AccessKey"]
            answer(f"{endpoint}/moto-api/reset-auth", body=b"0")
            yield S3(service, endpoint, made["AccessKeyId"], made["SecretAccessKey"])


@contextmanager
def prefect_server(database: str, messages: str, auth: str) -> Iterator[Service]:
    """Prefect's server on PostgreSQL, its messages over Redis, closed to whoever does not know `auth`.

    Args:
        database: URL for SQLAlchemy's asyncpg.
        messages: URL of Redis.
        auth: `user:password`.
    """
    with own_folder() as folder:
        port = free_port()
        environment = {
            **ON_REDIS,
            "PREFECT_REDIS_MESSAGING_URL": messages,
            "PREFECT_HOME": str(folder),
            "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui"),
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_API_AUTH_STRING": auth,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
        service = Service("prefect", command, port, folder, environment)
        with _stopping(service):
            service.start(lambda: answer(f"http://{HOST}:{port}/api/health", auth)[0] == 200)
            yield service


@dataclass(frozen=True)
class MlflowUser:
    """Who may use an MLflow server."""

    name: str
    password: str


@contextmanager
def mlflow_server(database: str, people: str, store: S3, user: MlflowUser, bucket: str = BUCKET) -> Iterator[Service]:
    """MLflow's server on PostgreSQL with basic auth, its artifacts in a bucket that clients read and write themselves.

    Args:
        database: URL of the tracking store.
        people: URL of the database of users.
        store: Where artifacts lie.
        user: Made by the administrator, and may do all but administer.
        bucket: Name of the bucket.
    """
    with own_folder() as folder:
        port, admin = free_port(), secrets.token_hex(12)
        settings = folder / "auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = {people}\nadmin_username = admin\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        environment = aws_environment(store) | {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"s3://{bucket}/mlflow",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", HOST]
        command += ["--port", str(port), "--workers", "1", "--no-serve-artifacts"]
        service = Service("mlflow", command, port, folder, environment)
        url = f"http://{HOST}:{port}"
        with _stopping(service):
            service.start(lambda: answer(f"{url}/health")[0] == 200)
            body = f'{{"username": "{user.name}", "password": "{user.password}"}}'.encode()
            code, said = answer(f"{url}/api/2.0/mlflow/users/create", f"admin:{admin}", body)
            if code != 200:
                raise WorkError(f"mlflow refuses to make a user (HTTP {code}): {bounded(said, 300)}")
            yield service


@contextmanager
def dask_cluster(environment: Mapping[str, str], workers: int = 2) -> Iterator[str]:
    """A Dask scheduler with worker processes of one thread each; yields its address.

    Args:
        environment: Variables of the workers: what steps need there, such as `GAUNTLET_SECRET` and keys of S3.
        workers: How many.
    """
    with own_folder() as folder, ExitStack() as running:
        port = free_port()
        address = f"tcp://{HOST}:{port}"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", HOST, "--port", str(port)]
        scheduler = Service("dask-scheduler", [*command, "--no-dashboard"], port, folder)
        running.enter_context(_stopping(scheduler))
        scheduler.start()
        for number in range(workers):
            inbox = free_port()
            command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--host", HOST]
            options = ["--worker-port", str(inbox), "--name", f"worker-{number}", "--no-dashboard", "--no-nanny"]
            variables = {"PYTHONPATH": str(clone_dir()), "GAUNTLET_HOME": str(folder), **environment}
            worker = Service(f"dask-worker-{number}", [*command, *options], inbox, folder, variables)
            running.enter_context(_stopping(worker))
            worker.start()
        yield address


def aws_environment(store: S3) -> dict[str, str]:
    """The usual variables of a client of S3."""
    return {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.key,
        "AWS_SECRET_ACCESS_KEY": store.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def answer(url: str, auth: str | None = None, body: bytes | None = None) -> tuple[int, str]:
    """Status and text of what a loopback address answers; status 0 when nobody does."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"} if body else {})
    if auth:
        request.add_header("Authorization", f"Basic {b64encode(auth.encode()).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, type(error).__name__


@contextmanager
def _stopping(service: Service) -> Iterator[None]:
    try:
        yield
    finally:
        service.stop()


def _program(name: str) -> str | None:
    """Where a program is; PostgreSQL's lie outside of the usual path in Debian's packages."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *map(str, homes)])
    return shutil.which(name, path=path)


def _call(command: Sequence[str], owner: str | None) -> None:
    done = subprocess.run(as_user(owner, command), env=bare_environment(), capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise WorkError(
            f"{Path(command[0]).name} ended with code {done.returncode}: {bounded(done.stderr[-600:], 600)}"
        )


def _answers(try_it: Callable[[], object]) -> bool:
    with suppress(Exception):
        try_it()
        return True
    return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((HOST, port)) == 0
