"""Ports that no other test is given: each worker of pytest-xdist has a range of its own, below the ephemeral ones."""

import os
import socket

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WIDTH = 1_000
_ports = iter(range(10_000 + WORKER * WIDTH, 10_000 + (WORKER + 1) * WIDTH))


def free_port() -> int:
    """A port that nobody listens at, another one with each call."""
    for port in _ports:
        with socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                door.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"all ports of worker {WORKER} were given away")


def ports_of_up() -> dict[str, str]:
    """What makes `make up` ask for ports of this worker's."""
    return {"PREFECT_SERVER_API_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
