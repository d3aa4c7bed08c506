"""What `bentoml serve` is refused for before its port opens.

A worker that fails at its start leaves a port that is open and where nobody answers, and is started again and again.
"""

import contextlib
import errno
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self

import click
from uvicorn.config import HTTP_PROTOCOLS

from bentos.lifecycle import SUPERVISOR
from models.errors import ConfigError, GauntletError, WorkError, shown

WORKERS: Final = "GAUNTLET_WORKERS"
CHECK: Final = "GAUNTLET_CHECK_START"
MAX_WORKERS: Final = 64
PORT_SECONDS: Final = 3.0
LOAD_SECONDS: Final = 120.0
RESPAWN_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Listening:
    """Where, and how encrypted, `bentoml serve` is about to listen: its options, else what is configured."""

    host: str
    port: int
    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = None
    ca_certs: str | None = None

    @classmethod
    def planned(cls) -> Self:
        """Of the command that is running."""
        from bentoml._internal.configuration.containers import BentoMLContainer

        http, tls = BentoMLContainer.http, BentoMLContainer.ssl
        return cls(
            host=str(_option("host") or http.host.get()),
            port=int(_option("port") or http.port.get()),
            certfile=_option("ssl_certfile") or tls.certfile.get(),
            keyfile=_option("ssl_keyfile") or tls.keyfile.get(),
            password=_option("ssl_keyfile_password") or tls.keyfile_password.get(),
            ca_certs=_option("ssl_ca_certs") or tls.ca_certs.get(),
        )

    def require_port(self, seconds: float = PORT_SECONDS) -> None:
        """Wait a moment for the port: the workers of a killed service leave it within two seconds.

        Raises:
            ConfigError: It cannot be opened.
        """
        deadline = time.monotonic() + seconds
        while fault := self._fault():
            if fault.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on {self.host}, port {self.port}: {fault.strerror}")
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"port {self.port} of {self.host} is taken by another process: end it, or give another --port"
                )
            time.sleep(0.1)

    def require_tls(self) -> None:
        """Load the certificate and its key as a worker will.

        Raises:
            ConfigError: A file is missing, or they do not fit together.
        """
        files = {"certfile": self.certfile, "keyfile": self.keyfile, "ca-certs": self.ca_certs}
        given = {f"--ssl-{name}": Path(path) for name, path in files.items() if path}
        if given and not self.certfile:
            raise ConfigError(f"{next(iter(given))} is given without --ssl-certfile: nothing would be encrypted")
        for option, path in given.items():
            if not path.is_file():
                raise ConfigError(f"{option}: there is no file {shown(str(path))} (seen from {shown(str(Path.cwd()))})")
        if not self.certfile:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Where none is given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password or "")
            if self.ca_certs:
                context.load_verify_locations(self.ca_certs)
        except OSError as error:
            raise ConfigError(
                f"{', '.join(given)} cannot be used: {_tls_fault(error, self.keyfile or self.certfile)}"
            ) from None

    def _fault(self) -> OSError | None:
        try:
            with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, self.port))
        except OSError as error:
            return error
        return None


def workers() -> int:
    """How many worker processes to start: `GAUNTLET_WORKERS`, else `--api-workers`, which BentoML itself passes over.

    What is no number of workers counts as 1 here, and is refused by `require_workers`.
    """
    given = _workers()
    return int(given) if _is_count(given) else 1


def require_workers() -> None:
    """Refuse a number of workers that is none.

    Raises:
        ConfigError: It is not from 1 to 64.
    """
    if not _is_count(_workers()):
        raise ConfigError(f"{WORKERS} (or --api-workers) is a whole number from 1 to {MAX_WORKERS}")


def bound_connections() -> None:
    """Have uvicorn use `BoundedProtocol`; without httptools its other parser serves, which itself bounds heads."""
    if find_spec("httptools"):
        HTTP_PROTOCOLS["auto"] = "bentos.connections:BoundedProtocol"


def supervise() -> None:
    """Prepare BentoML's supervisor: workers know whose they are, and one that dies is soon replaced."""
    os.environ[SUPERVISOR] = str(os.getpid())
    # In a container BentoML replaces no worker, and ends only when all are gone: of two, one would stay.
    os.environ.pop("BENTOML_CONTAINERIZED", None)
    # Circus by itself looks every ten seconds.
    signal.signal(signal.SIGCHLD, lambda *_: _look_after_workers())


def require_answers(code: Path, release: Path) -> None:
    """Load a Release as a worker will and answer its golden inputs, in a process whose memory is gone afterwards.

    `GAUNTLET_CHECK_START=off` leaves it to the workers: for whoever watches the start and compares the answers himself.

    Args:
        code: The folder that holds the package `bentos`.
        release: The Release's directory.

    Raises:
        WorkError: It cannot be loaded, or answers otherwise than when it was written.
    """
    if os.environ.get(CHECK) == "off":
        return
    command = [sys.executable, "-m", __name__, str(release)]
    environment = os.environ | {"PYTHONPATH": str(code)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkError(f"the Release was not loaded within {LOAD_SECONDS:.0f} s") from None
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode).name
        raise WorkError(f"the process that loaded the Release was ended by {killed}: is there memory enough?")
    if done.returncode:
        raise WorkError(done.stdout.strip() or "the Release cannot be loaded in this environment")


def check_answers(directory: Path) -> None:
    """Load a Release as a worker does, which compares its answers with its golden ones.

    Raises:
        WorkError: It is damaged, cannot be built, or answers otherwise.
    """
    from bentos.canonical import search_no_types
    from bentos.release import Release
    from bentos.served import Served

    search_no_types()
    Served.load(Release.open(directory), 0)


def _option(name: str) -> Any:
    context = click.get_current_context(silent=True)
    return context.params.get(name) if context else None


def _workers() -> str:
    given = _option("api_workers")
    return os.environ.get(WORKERS) or str(1 if given is None else given)


def _is_count(given: str) -> bool:
    return given.isdecimal() and 1 <= int(given) <= MAX_WORKERS


def _look_after_workers() -> None:
    handler: Callable[..., Any] | int | None = signal.getsignal(signal.SIGTERM)
    controller = getattr(getattr(handler, "__self__", None), "controller", None)
    if controller is not None:  # Circus has taken over
        # Not at once, lest workers that cannot start are started without a pause.
        controller.loop.add_callback_from_signal(controller.loop.call_later, RESPAWN_SECONDS, _replace, controller)


def _replace(controller: Any) -> None:
    from circus.exc import ConflictError  # type: ignore[import-untyped]

    with contextlib.suppress(ConflictError):  # it is starting or stopping them itself
        controller.arbiter.manage_watchers()


def _tls_fault(error: OSError, key: str) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    if reason is None and error.strerror and not isinstance(error, ssl.SSLError):
        return error.strerror
    if b"ENCRYPTED" in Path(key).read_bytes():
        return "the key is encrypted; give its password: --ssl-keyfile-password"
    return "a PEM certificate and its key are needed"


def main(directory: str) -> int:
    """Check the answers of a Release; says what is wrong on stdout and returns 1."""
    try:
        check_answers(Path(directory))
    except GauntletError as error:
        sys.stdout.write(str(error))
    except Exception as error:
        # The message of a library may hold values.
        sys.stdout.write(f"the Release cannot be loaded in this environment ({type(error).__name__})")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
