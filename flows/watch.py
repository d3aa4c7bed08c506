"""`gauntlet monitor`: run the checks of a champion here, and what is said of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from flows.console import err, number, out, print_json, span, use_logging
from flows.run import own_error, use_prefect
from models.config import load_model
from stacks.active import use_stack
from stacks.home import use_home
from stacks.ledger import open_ledger
from steps.watch import require_champion, watch_of

STYLES: Final = {"held": "green", "found": "red", "unjudged": "yellow"}


def look_at(model: str, checks: Sequence[str], window: str | None, at: str | None, quiet: bool) -> dict[str, Any]:
    """Run the Prefect flow `monitor` here, on the active stack.

    Args:
        model: Name of a YAML in `models/`.
        checks: Names of checks; all when empty.
        window: How far back each looks.
        at: Where the windows end.
        quiet: Print nothing on stdout.

    Returns:
        The result of `flows.monitor.monitor`.

    Raises:
        GauntletError: What is asked is wrong, there is no champion, or a step failed.
    """
    config = load_model(model).config
    watch = watch_of(checks, window, at)
    home = use_home()
    use_stack()
    version = require_champion(model, open_ledger())
    (err if quiet else out).print(f"[bold]{model}[/bold]: v{version} is looked at: {', '.join(watch.checks)}")
    with use_prefect(home, "flows.monitor"):
        from flows.monitor import monitor

        use_logging(config.logging, model=model)
        return dict(own_error(lambda: monitor(model, list(watch.checks), window, at)))


def print_look(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a line for each check: window, rows or labels, state, what was found."""
    if as_json:
        print_json(result)
        return
    title = f"{result['model']} v{result['version']}"
    view = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
    for column in ("check", "window (UTC)", "rows", "state"):
        view.add_column(column, no_wrap=True, justify="right" if column == "rows" else "left")
    view.add_column("what was found", overflow="fold")
    for finding in result["findings"]:
        style = STYLES[finding["state"]]
        state = f"[{style}]{finding['state']}[/{style}]"
        view.add_row(finding["check"], _window(finding), _rows(finding["figures"]), state, escape(finding["said"]))
    out.print(view)
    _print_response(result)
    for note in result["notes"]:
        err.print(escape(note), style="yellow")


def _print_response(result: Mapping[str, Any]) -> None:
    """What follows, what was done of it, and who was told."""
    response, acted, alerts = result["response"], result["acted"], result["alerts"]
    if response["decision"] != "watch" or response["checks"]:
        out.print(f"\n[bold]{response['decision']}[/bold]: {escape(response['why'])}")
    if "verdict" in acted:
        out.print(f"challenger v{acted['version']} [bold]{acted['verdict']}[/bold]: {escape(acted['reason'])}")
    elif "flow_run" in acted:
        out.print(f"train/{result['model']} was started: flow run {acted['flow_run']}")
    elif "former" in acted:
        out.print(f"v{acted['champion']} took over again from v{acted['former']}")
    for state in ("raised", "lasting", "recovered"):
        if alerts[state]:
            out.print(f"alert {state}: {', '.join(alerts[state])}")
    for sink, reason in alerts["failed"].items():
        err.print(escape(f"{sink} was not told, it is owed {alerts['owed'].get(sink, 0)}: {reason}"), style="yellow")


def _window(finding: Mapping[str, Any]) -> str:
    since, until = (datetime.fromisoformat(finding[end]) for end in ("since", "until"))
    return f"{span((until - since).total_seconds())} to {until:%Y-%m-%d %H:%M}"


def _rows(figures: Mapping[str, float]) -> str:
    """Rows, or of what is judged by labels how many of how many have one."""
    if "labels" in figures:
        of = f" of {number(int(figures['answers']))}" if "answers" in figures else ""
        return f"{number(int(figures['labels']))}{of} labels"
    return number(int(figures.get("rows", 0)))
