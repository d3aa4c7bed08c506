"""The warm process that steps' processes are forked from: `python -P forkserver.py DESCRIPTOR`.

It imports what steps need, once, and then only waits: it opens no connection and starts no thread, so that what is
forked from it is whole. The descriptor is one end of a socket; when the other closes, in whatever way, all is ended.

Commands on it are a letter, a job's number and a signal's number, with descriptors:
`p` prepare (a channel), `j` run a job in a new process (a channel, a pipe for its raw output), `k` send a job's group a
signal, `f` finish once the last job has. On a channel, each line is a JSON object.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

COMMAND = struct.Struct("!cQi")
# What every step needs: importing it takes seconds, a fork of what has imported it some milliseconds.
OURS = ("stacks.orchestrator.child", "stacks.orchestrator.orchestrator")
INSTALLED = (
    "zenml.zen_stores.sql_zen_store",
    "zenml.zen_stores.rest_zen_store",
    "zenml.artifact_stores.local_artifact_store",
    "zenml.alerter",
    "zenml.annotators",
    "zenml.data_validators",
    "zenml.deployers",
    "zenml.execution.utils",
    "zenml.feature_stores",
    "zenml.log_stores.artifact.artifact_log_exporter",
    "zenml.sandboxes",
    "zenml.step_operators",
    "zenml.zen_stores.migrations.backup.sqlalchemy",
    "sqlalchemy.dialects.sqlite",
)


class Forkserver:
    """Its end of the socket, and the jobs that are running."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._jobs: dict[int, tuple[int, socket.socket]] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._finishing = False
        self._own_module = sys.modules["__main__"]
        self._bell, ring = socket.socketpair()
        self._bell.setblocking(False)
        ring.setblocking(False)
        self._ring = ring
        signal.set_wakeup_fd(ring.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Do as told until there is nobody to tell; then end what still runs."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while not (self._finishing and not self._jobs):
                ready = {key.fileobj for key, _ in selector.select()}
                if self._bell in ready:
                    self._reap()
                if self._control in ready and not self._obey():
                    break
        for process, _ in self._jobs.values():
            _signal_group(process, signal.SIGKILL)

    def _obey(self) -> bool:
        """Carry out one command; False when the other end is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, 2)
        except OSError:
            return False
        if not data:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        letter, number, value = COMMAND.unpack(data)
        if letter == b"p":
            self._prepare(socket.socket(fileno=descriptors[0]))
        elif letter == b"j":
            self._fork(number, *descriptors)
        elif letter == b"k" and number in self._jobs:
            process = self._jobs[number][0]
            if not _signal_group(process, value):
                # Just forked, it is still in the server's group; not reaped, its id is still its own.
                os.kill(process, value)
        elif letter == b"f":
            self._finishing = True
        return True

    def _prepare(self, channel: socket.socket) -> None:
        """Import what the next jobs need, and answer whether a fork of this process is what they should run in."""
        with channel, channel.makefile("rwb") as file:
            wanted = json.loads(file.readline())
            os.chdir(wanted["folder"])
            sys.path[:] = wanted["path"]
            changed = [path for path, seen in self._files.items() if _seen(path) != seen]
            error = None
            try:
                if not changed:
                    _import_all(wanted)
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
            threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            self._files |= {path: _seen(path) for path in _users_files() if path not in self._files}
            gc.collect()
            gc.freeze()
            answer = {"changed": changed[:5], "threads": threads, "error": error}
            with contextlib.suppress(OSError):
                file.write(json.dumps(answer).encode() + b"\n")
                file.flush()

    def _fork(self, number: int, channel: int, output: int) -> None:
        try:
            process = os.fork()
        except OSError as error:
            with socket.socket(fileno=channel) as reply:
                reply.sendall(json.dumps({"kind": "exit", "status": None, "reason": str(error)}).encode() + b"\n")
            os.close(output)
            return
        if process == 0:
            self._be_child(channel, output)
        os.close(output)
        self._jobs[number] = (process, socket.socket(fileno=channel))

    def _be_child(self, channel: int, output: int) -> None:
        """In the forked process: keep nothing of the server but what it imported."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for kept in (self._control, self._bell, self._ring, *(other for _, other in self._jobs.values())):
                kept.close()
            from stacks.orchestrator import child

            child.main(socket.socket(fileno=channel), output)
        finally:
            os._exit(70)

    def _reap(self) -> None:
        """Tell of the jobs that have ended, after what they wrote themselves."""
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(64):
                pass
        for number, (process, channel) in list(self._jobs.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                continue
            del self._jobs[number]
            # A step's process takes with it what it started.
            _signal_group(process, signal.SIGKILL)
            with contextlib.suppress(OSError), channel:
                channel.settimeout(10)
                line = {"kind": "exit", "status": os.waitstatus_to_exitcode(status), "reason": None}
                channel.sendall(b"\n" + json.dumps(line).encode() + b"\n")


def _import_installed() -> None:
    """What is the same for all runs, wherever the caller has this package from: begun before anybody asks."""
    for name in INSTALLED:
        importlib.import_module(name)


def _import_all(wanted: dict[str, Any]) -> None:
    _import_installed()
    for name in OURS:
        importlib.import_module(name)
    import zenml.models
    from pydantic import BaseModel
    from sqlalchemy.orm import configure_mappers
    from zenml.integrations.registry import integration_registry
    from zenml.utils import source_utils

    from stacks.orchestrator.script import Script

    configure_mappers()
    for model in vars(zenml.models).values():
        if isinstance(model, type) and issubclass(model, BaseModel):
            # Some are left for their first use, which would be in every fork.
            _try(model.model_rebuild)
    source_utils.set_custom_source_root(wanted["source_root"])
    _try(integration_registry.activate_integrations)
    if not isinstance(sys.modules["__main__"], Script):
        sys.modules["__main__"] = Script(Path(wanted["script"]) if wanted["script"] else None, wanted["package"])
    for name in wanted["components"]:
        _try(partial(importlib.import_module, name))
    for source in wanted["sources"]:
        _try(partial(source_utils.load, source))
    _close_store()


def _close_store() -> None:
    """Close ZenML's store, which the import of a user's module may have opened: no fork may share a connection."""
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration
    from zenml.zen_stores.sql_zen_store import SqlZenStore

    configuration = GlobalConfiguration.get_instance()
    if configuration and configuration.is_initialized and isinstance(configuration.zen_store, SqlZenStore):
        configuration.zen_store.engine.dispose()
    GlobalConfiguration._reset_instance()
    Client._reset_instance()


def _try(work: Callable[[], object]) -> None:
    """What cannot be imported here fails again in the step's process, where its failure is recorded."""
    with contextlib.suppress(Exception):
        work()


def _users_files() -> list[str]:
    """Files of the modules that may be edited while this process waits: those that no package manager installed."""
    installed = tuple({sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()})
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return sorted({file for file in files if isinstance(file, str) and not file.startswith(installed)})


def _seen(path: str) -> tuple[int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _signal_group(process: int, number: int) -> bool:
    """Send a signal to a job's process and to all that it started; False when there is no such group (yet)."""
    try:
        os.killpg(process, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    server = Forkserver(socket.socket(fileno=int(sys.argv[1])))
    _try(_import_installed)
    server.serve()
