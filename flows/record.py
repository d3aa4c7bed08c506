"""What this home knows of its runs without asking an engine: which are being executed, how each model's last one ended.

The ledger holds verdicts only. A run that failed, was interrupted or killed is told by the files here.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from models.errors import GauntletError, bounded
from stacks.home import home_dir
from stacks.logs import masked
from stacks.orchestrator.running import bury, marked, process_of

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LastRun:
    """How a model's last run in this home stands.

    Attributes:
        at: When that was, ISO 8601 in UTC.
        outcome: A verdict, or `failed`, `interrupted`, `crashed`, `running`.
        reason: Why it failed; empty for a verdict.
        flow_run_id: Prefect's run.
    """

    model: str
    at: str
    outcome: str
    reason: str
    flow_run_id: str


@contextmanager
def recorded(model: str, flow_run_id: str) -> Iterator[Callable[[str], None]]:
    """Keep a flow run's record while the block is executed, after setting those right whose process was killed.

    Yields:
        What is told the verdict.
    """
    from stacks.orchestrator.flow_run import prefect_address

    _bury_dead()
    verdicts: list[str] = []
    facts = {"flow_run_id": flow_run_id, "model": model, "at": _now(), "prefect": prefect_address()}
    with marked(_running_folder(), flow_run_id, facts):
        try:
            yield verdicts.append
        except BaseException as error:
            outcome = "failed" if isinstance(error, Exception) else "interrupted"
            said = str(error) if isinstance(error, GauntletError) else type(error).__name__
            _write(LastRun(model, _now(), outcome, bounded(masked(said), 500), flow_run_id))
            raise
        if verdicts:
            _write(LastRun(model, _now(), verdicts[-1], "", flow_run_id))


def last_runs() -> dict[str, LastRun]:
    """The last run of each model in this home."""
    found: dict[str, LastRun] = {}
    for path in (*_folder().glob("*.json"), *_running_folder().glob("*.json")):
        run = _read(path)
        if run and (run.outcome == "running" or run.model not in found or found[run.model].at <= run.at):
            found[run.model] = run
    return found


def _read(path: Path) -> LastRun | None:
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        if "outcome" in facts:
            return LastRun(**facts)
        alive = process_of(path.parent, path.stem) is not None
        return LastRun(facts["model"], facts["at"], "running" if alive else "crashed", "", facts["flow_run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(run: LastRun) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{run.model}.{os.getpid()}.tmp"
    draft.write_text(json.dumps(asdict(run)))
    draft.replace(folder / f"{run.model}.json")


def _bury_dead() -> None:
    """Tell Prefect of flow runs whose process was killed between or inside their pipelines: it would never notice."""
    from stacks.orchestrator.flow_run import mark_crashed, prefect_address, prefect_api

    reason = "The process that executed the run ended without a word."

    def settled(facts: dict[str, Any]) -> bool:
        before = _read(_folder() / f"{facts['model']}.json")
        if before is None or before.at <= facts["at"]:
            _write(LastRun(facts["model"], facts["at"], "crashed", reason, facts["flow_run_id"]))
        try:
            with prefect_api():
                here = prefect_address()
                if facts.get("prefect", here) != here:
                    return False
                mark_crashed(UUID(facts["flow_run_id"]), reason)
        except LookupError:
            return True
        except Exception as error:
            LOG.warning("flow run %s ended with its process; Prefect was not told: %s", facts["flow_run_id"], error)
            return False
        return True

    bury(_running_folder(), settled)


def _folder() -> Path:
    return home_dir() / "runs"


def _running_folder() -> Path:
    return _folder() / "running"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
