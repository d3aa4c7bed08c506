"""Lanes: processes that train one model after another, so that many models share a machine.

ZenML's steps are not thread-safe within a process, so each lane is one. A lane is used for many models, since it takes
longer to start than a small model takes to train, and ends after `MODELS_A_LANE` of them, so that what libraries keep
does not add up.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from models.errors import WorkError, bounded
from stacks.home import clone_dir

LANE = "flows.lane"
GRACE_SECONDS = 5.0
MODELS_A_LANE = 60
_TAIL_LINES = 20
_ahead: deque["Lane"] = deque()


class LaneLost(WorkError):
    """The lane's process ended before it answered."""


@dataclass(frozen=True)
class Order:
    """One model to be trained.

    Attributes:
        model: Name of a YAML in `models/`.
        source: One of its sources; the first when None.
        overrides: `key=value` texts that go on top of the YAML.
        why: Reason for the ledger.
        actor: Who asked.
        parent_task_run_id: Prefect task run that the model's flow run belongs to.
    """

    model: str
    source: str | None
    overrides: list[str]
    why: str
    actor: str | None
    parent_task_run_id: str


class Lane:
    """One such process. It ends with this one, however that ends: its input closes then."""

    def __init__(self, env: Mapping[str, str]) -> None:
        path = os.pathsep.join(filter(None, [str(clone_dir()), env.get("PYTHONPATH")]))
        self.trained = 0
        self._asked_to_prepare = False
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            # The code is this clone's, whatever lies in the caller's folder.
            [sys.executable, "-P", "-m", LANE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**env, "PYTHONPATH": path},
            start_new_session=True,
        )
        threading.Thread(target=self._relay, daemon=True).start()

    @property
    def used_up(self) -> bool:
        """Whether it has trained enough models, or is gone."""
        return self.trained >= MODELS_A_LANE or self._process.poll() is not None

    def begin_to_prepare(self) -> None:
        """Have it begin to make what all runs share (see `flows.lane.prepare`)."""
        self._asked_to_prepare = True
        self._tell({"prepare": True})

    def prepare(self) -> None:
        """Wait until it has made what all runs share.

        Raises:
            WorkError: It could not.
        """
        if not self._asked_to_prepare:
            self.begin_to_prepare()
        self._answer(lambda _: None)

    def join(self, prefect: Mapping[str, str]) -> None:
        """Give it the variables by which it finds Prefect's server; before the first model."""
        self._tell({"prefect": dict(prefect)})

    def train(self, order: Order, tell: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Train a model and return what the flow `train` returned.

        Args:
            order: What to do.
            tell: Called with what the lane says on the way: `flow_run_id`, `step`.

        Raises:
            LaneLost: The process ended on the way.
            WorkError: The run failed, for the reason that the text says.
        """
        self.trained += 1
        self._tell(asdict(order))
        result = self._answer(tell)
        assert isinstance(result, dict)
        return result

    def close(self, grace: float = GRACE_SECONDS) -> None:
        """End it, in the middle of a model too; returns when it has ended."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    def _tell(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._stdin.write(json.dumps(order) + "\n")
            self._stdin.flush()

    def _answer(self, tell: Callable[[Mapping[str, Any]], None]) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if (done := message.get("done")) is None:
                tell(message)
            elif "error" in done:
                raise WorkError(done["error"])
            else:
                return done["result"]
        raise LaneLost(self._how_it_ended())

    def _relay(self) -> None:
        """Pass JSON logs on, for whoever asked for them; keep the last lines in case the process dies."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._tail.append(line)
            if line.startswith("{"):
                sys.stderr.write(line)

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"its process ended with code {code}: {bounded(''.join(self._tail).strip(), 800)}"
        hint = "; was there enough memory?" if code == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"


def how_many(limit: int | None, models: int) -> int:
    """Lanes for a number of models: `limit`, as many as there are cores when that is None, never more than models."""
    return min(limit or os.cpu_count() or 1, models)


@contextmanager
def started_ahead(count: int) -> Iterator[None]:
    """Start lanes that `new_lane` gives out in the block, and have the first one prepare; what is left over ends."""
    try:
        with contextlib.suppress(OSError):  # they are tried again when they are needed
            for _ in range(count):
                _ahead.append(Lane(os.environ))
        if _ahead:
            _ahead[0].begin_to_prepare()
        yield
    finally:
        close_all(list(_ahead))
        _ahead.clear()


def new_lane(prefect: Mapping[str, str]) -> Lane:
    """A lane that has trained nothing yet: one that was started ahead, if there is any.

    Raises:
        OSError: No process could be started.
    """
    lane = None
    while lane is None and _ahead:
        lane = _ahead.popleft()
        if lane.used_up:
            lane.close()
            lane = None
    lane = lane or Lane({**os.environ, **prefect})
    lane.join(prefect)
    return lane


def close_all(lanes: Sequence[Lane]) -> None:
    """End lanes, all at once."""
    enders = [threading.Thread(target=lane.close) for lane in lanes]
    for ender in enders:
        ender.start()
    for ender in enders:
        ender.join()
