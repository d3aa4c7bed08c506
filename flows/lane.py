"""One lane of `gauntlet run --all`: a process that trains one model after another, as `flows.lanes` tells it.

Orders come as JSON lines on standard input, answers go as JSON lines to standard output; what libraries print goes to
standard error. When input closes the lane ends, also in the middle of a model: nobody waits for its answer any more.
"""

import gc
import importlib
import json
import logging
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any
from uuid import UUID

from flows.console import STARTED
from flows.lanes import GRACE_SECONDS
from flows.run import own_error, use_prefect
from models.errors import GauntletError, bounded
from stacks.home import collect_seldom, use_home
from stacks.installed import ask_installed

TAG = "train-all"


class _Answers:
    """What this lane says, past anything that prints."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)

    def say(self, **message: Any) -> None:
        self._stream.write(json.dumps(message, ensure_ascii=False, default=str) + "\n")


class _Orders:
    """Orders as they come; the end of input interrupts what is being done, and soon ends the process."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._busy = False
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (order := self._waiting.get()) is not None:
            self._busy = True
            yield order
            self._busy = False

    def _read(self) -> None:
        for line in sys.stdin:
            self._waiting.put(json.loads(line))
        self._waiting.put(None)
        if self._busy:
            last_resort = threading.Timer(GRACE_SECONDS, os._exit, (1,))
            last_resort.daemon = True
            last_resort.start()
            os.kill(os.getpid(), signal.SIGINT)


class _StepTeller(logging.Handler):
    """Tells which step is running."""

    def __init__(self, answers: _Answers) -> None:
        super().__init__(logging.INFO)
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        """Say the step's name when ZenML says that one started."""
        if record.name.startswith("zenml") and (match := re.search(STARTED, record.getMessage())):
            self._answers.say(step=match[1])


@contextmanager
def _telling_steps(answers: _Answers) -> Iterator[None]:
    handler = _StepTeller(answers)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def prepare() -> None:
    """Make what all runs share, once: the first use of ZenML's, MLflow's and the ledger's databases is not for two.

    None of it asks Prefect, whose server may still be starting.
    """
    from stacks import registry
    from stacks.ledger import open_ledger
    from stacks.stack_file import ensure_active

    ensure_active()
    registry.initialise()
    open_ledger()


def train_one(order: Mapping[str, Any], answers: _Answers) -> dict[str, Any]:
    """Run the flow `train` for one model, as a child of the flow run that the order names."""
    from prefect.flow_engine import run_flow

    from flows.train import train
    from stacks.orchestrator.flow_run import prefect_client

    parameters = {key: order[key] for key in ("model", "source", "overrides", "why", "actor")}
    with prefect_client() as client:
        flow_run = client.create_flow_run(
            train, parameters=parameters, tags=[TAG], parent_task_run_id=UUID(order["parent_task_run_id"])
        )
    answers.say(flow_run_id=flow_run.id)
    result = own_error(lambda: run_flow(train, flow_run=flow_run, parameters=parameters))
    assert isinstance(result, dict)
    return result


def _work(order: Mapping[str, Any], answers: _Answers) -> dict[str, Any]:
    try:
        if order.get("prepare"):
            prepare()
            return {"result": None}
        return {"result": train_one(order, answers)}
    except GauntletError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {bounded(str(error), 800)}"}


def main() -> int:
    """Do what comes in until nothing comes any more."""
    collect_seldom()
    answers = _Answers()
    orders = _Orders()
    try:
        home = use_home()
        # What the stack carries is in this process's environment; the first lane may be making ZenML's database.
        importlib.import_module("flows.train")
        from stacks.orchestrator.flow_run import prefect_client

        ask_installed()
        with ExitStack() as session:
            session.enter_context(_telling_steps(answers))
            for number, order in enumerate(orders):
                if prefect := order.get("prefect"):
                    os.environ |= prefect
                    session.enter_context(use_prefect(home))
                    # For all models: making one takes longer than most of what it is asked.
                    session.enter_context(prefect_client())
                    continue
                done = _work(order, answers)
                gc.collect()
                if number < 3:
                    # What the imports made, those of the first model's steps too, is never garbage.
                    gc.freeze()
                answers.say(done=done)
    except KeyboardInterrupt:
        return 130
    gc.freeze()
    return 0


if __name__ == "__main__":
    sys.exit(main())
