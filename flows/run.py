"""What the command does in its own process: run the flow, roll back, examine."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.console import err, out, quiet_home, use_logging
from models.config import load_model, parse_set
from models.errors import GauntletError
from stacks.home import use_home


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
    (err if quiet else out).print(f"[bold]{model}[/bold]: source '{used.name}' ({_describe(used)})")
    home = use_home()
    with _prefect(home):
        from flows.train import train

        use_logging(config.logging, model=model)
        return _inner_error(lambda: train(model, used.name, list(settings), why))


@contextmanager
def _prefect(home: Path) -> Iterator[None]:
    """This process's Prefect: the home's one server, and no heartbeat thread (it costs a flat second)."""
    from stacks.orchestrator.server import public_url, start_server

    prefect_home = Path(os.environ.get("PREFECT_HOME", home / "prefect"))
    server = start_server(prefect_home)
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_UI_URL,
        temporary_settings,
    )

    import flows.train  # noqa: F401 - the longest import, while the server starts

    url = server.wait()
    shown = public_url(prefect_home, url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: shown, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _inner_error(work: Any) -> Any:
    """Call `work`; what ZenML or Prefect wrapped around our own error is taken off again."""
    try:
        return work()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GauntletError):
            cause = cause.__cause__ or cause.__context__
        raise (cause or error) from (None if cause else error.__cause__)


def _describe(source: Any) -> str:
    if source.kind == "sklearn":
        return f"scikit-learn's bundled {source.dataset} data"
    if source.kind == "synthetic":
        return f"generated: {source.generator}, {source.rows:,} rows, seed {source.seed}"
    return f"{source.kind} {source.path}"


def roll_back(model: str, to: int | None, why: str) -> dict[str, Any]:
    """Make version `to` (default: the previous champion) the champion again.

    Raises:
        GauntletError: The model is unknown, or there is nothing to go back to.
    """
    load_model(model)
    quiet_home()
    from steps.promote import rollback

    entry = rollback(model, to, why=why)
    return {"model": model, "champion": entry.version, "why": entry.why, "actor": entry.actor}


def examine() -> list[Any]:
    """Findings of every check that `gauntlet doctor` makes."""
    quiet_home()
    from steps.doctor import examine as checks

    return list(checks())
