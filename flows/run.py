"""What the command does in its own process: run the flow, roll back, examine."""

import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.console import err, out, quiet_home, speaks, use_logging
from flows.lanes import how_many, started_ahead
from flows.retire import repair_first
from models.config import Logging, load_model, model_names, parse_set
from models.errors import ConfigError, GauntletError, WorkError
from stacks.active import use_stack
from stacks.home import use_home
from stacks.ledger import current_actor

ROOM_MIB = 64


def run_model(model: str, source: str | None, settings: Sequence[str], why: str, quiet: bool) -> dict[str, Any]:
    """Run the Prefect flow `train` here, on the active stack.

    Args:
        model: Name of a YAML in `models/`.
        source: One of its sources; the first when left out.
        settings: `key=value` texts that go on top of the YAML.
        why: Reason for the ledger.
        quiet: Print nothing on stdout.

    Returns:
        The result of `flows.train.train`.

    Raises:
        GauntletError: The configuration, the data or a step failed.
    """
    config = load_model(model, [parse_set(settings)] if settings else []).config
    used = config.source(source)
    if speaks(config.logging) == "json":
        use_logging(config.logging, model=model)
    (err if quiet else out).print(f"[bold]{model}[/bold]: source '{used.name}' ({used.label})")
    home = use_home()
    use_stack()
    # A wrong key is wrong usage, said before anything starts.
    current_actor()
    with use_prefect(home):
        from flows.train import train

        use_logging(config.logging, model=model)
        return own_error(lambda: train(model, used.name, list(settings), why))


def run_all(
    limit: int | None, source: str | None, settings: Sequence[str], why: str, actor: str | None = None
) -> dict[str, Any]:
    """Run the Prefect flow `train-all` here: every model, at most `limit` at a time.

    Returns:
        Its report, also when some models failed.

    Raises:
        GauntletError: There is no model, or the runs could not be started.
    """
    parse_set(settings)
    home = quiet_home()
    current_actor()
    _require_room(home)
    with started_ahead(how_many(limit, len(model_names()))), use_prefect(home, "flows.train_all"):
        from flows.train_all import ModelsFailed, train_all

        use_logging(Logging())
        try:
            return own_error(lambda: train_all(limit, None, source, list(settings), why, actor))
        except ModelsFailed as failed:
            return dict(failed.report)


@contextmanager
def use_prefect(home: Path, longest: str = "flows.train") -> Iterator[None]:
    """This process's Prefect: the home's one server, and no heartbeat thread (it costs a flat second).

    Args:
        home: The `GAUNTLET_HOME`.
        longest: Module to import while the server starts.

    Raises:
        ConfigError: The Prefect API that the user configured does not answer.
        WorkError: The disk is full.
    """
    from stacks.orchestrator.announcement import withdraw_dead
    from stacks.orchestrator.server import ServerError, public_url, require_answer, start_server

    _require_room(home)
    prefect_home = Path(os.environ.get("PREFECT_HOME", home / "prefect"))
    withdraw_dead(prefect_home)
    try:
        require_answer(prefect_home)
    except ServerError as error:
        raise ConfigError(str(error)) from None
    server = start_server(prefect_home)
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_UI_URL,
        temporary_settings,
    )

    importlib.import_module(longest)
    url = server.wait()
    shown = public_url(prefect_home, url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: shown, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _require_room(home: Path) -> None:
    """Say that the disk is full before every tool says it in its own way.

    Raises:
        WorkError: A run would not find the room it needs.
    """
    free = shutil.disk_usage(home).free // 2**20
    if free < ROOM_MIB:
        raise WorkError(
            f"the disk is full: {free} MiB are free where this clone keeps its state, a run needs {ROOM_MIB}; "
            "nothing was started and the champion is as before"
        )


def own_error(work: Any) -> Any:
    """Call `work`; what ZenML or Prefect wrapped around our own error is taken off again."""
    try:
        return work()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GauntletError):
            cause = cause.__cause__ or cause.__context__
        raise (cause or error) from (None if cause else error.__cause__)


def roll_back(model: str, to: int | None, why: str) -> dict[str, Any]:
    """Make version `to` (default: the previous champion) the champion again.

    Raises:
        GauntletError: The model is unknown, or there is nothing to go back to.
    """
    load_model(model)
    quiet_home()
    current_actor()
    from steps.promote import rollback
    from steps.restore import is_lost, restore

    if is_lost(model, to):
        entry = restore(model, why=why)
    else:
        repair_first(model)
        entry = rollback(model, to, why=why)
    return {"model": model, "champion": entry.version, "why": entry.why, "actor": entry.actor}


def examine() -> list[Any]:
    """Findings of every check that `gauntlet doctor` makes."""
    quiet_home()
    from steps.doctor import examine as checks

    return list(checks())
