"""The command `gauntlet`: a thin way to what prefect, zenml, bentoml and mlflow do not offer."""

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from models.errors import ConfigError, GauntletError, bounded
from stacks.home import collect_seldom
from stacks.orchestrator.ctrl_c import noted_interrupt

app = typer.Typer(
    help="One YAML file per model; every challenger runs the gauntlet; one champion serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stack_app = typer.Typer(help="The stack files: what `zenml stack set` can choose from.", no_args_is_help=True)
app.add_typer(stack_app, name="stack")
key_app = typer.Typer(help="Access keys: who may ask the served models.", no_args_is_help=True)
app.add_typer(key_app, name="key")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[str, typer.Argument(help="Name of a YAML in models/.", metavar="MODEL")]
Version = Annotated[int, typer.Argument(help="Number of one of its versions.", metavar="VERSION", min=1)]
Why = Annotated[str, typer.Option(help="Reason, for the ledger.")]
Stack = Annotated[str | None, typer.Argument(help="Name of a file in stacks/; local when left out.")]
Settings = Annotated[
    list[str], typer.Option("--set", help="key=value on top of the YAML, for example tuning.trials=10.")
]


def reported(function: Callable[..., int | None]) -> Callable[..., None]:
    """Give a command its exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 130 Ctrl-C."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> None:
        with noted_interrupt() as pressed:
            try:
                _speak()
                code = function(*args, **options) or 0
            except (typer.Exit, typer.Abort):
                raise
            except (KeyboardInterrupt, Exception) as error:
                if pressed() or isinstance(error, KeyboardInterrupt):
                    code = _fail("interrupted; the champion is as before, the same command starts again", 130, options)
                elif isinstance(error, GauntletError):
                    code = _fail(str(error), error.exit_code, options)
                else:
                    hint = "" if options.get("debug") else " (--debug shows the traceback)"
                    code = _fail(f"{type(error).__name__}: {bounded(str(error), 800)}{hint}", 1, options)
        raise typer.Exit(code)

    return command


def _speak() -> None:
    from stacks import logs

    if logs.wants_json():
        logs.speak_json()


def _fail(message: str, code: int, options: Mapping[str, Any]) -> int:
    import logging

    from flows.console import err, print_json
    from stacks.logs import masked, speaks_json

    message = masked(message)
    if speaks_json():
        logging.getLogger("gauntlet").error(message, exc_info=bool(options.get("debug")))
    else:
        if options.get("debug"):
            err.print_exception()
        err.print(f"Error: {message}", style="red", markup=False)
    if options.get("as_json"):
        print_json({"error": message, "exit_code": code})
    return code


@app.command()
@reported
def run(
    model: Annotated[str | None, typer.Argument(help="Name of a YAML in models/; or --all.", metavar="MODEL")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every model, a few at a time.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --all: how many at a time; the number of cores by default.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Which of the YAML's sources; the first by default.")] = None,
    settings: Settings = [],  # noqa: B006
    why: Annotated[str, typer.Option(help="Reason, for the ledger.")] = "",
    require_promotion: Annotated[bool, typer.Option(help="Exit 3 unless the verdict is `promoted`.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Train a challenger on the active stack, judge it, and serve it if it wins."""
    if everything:
        return _run_all(model, limit, source, settings, why, require_promotion, as_json)
    if model is None or limit is not None:
        raise ConfigError(
            "--limit goes with --all" if model else "name a MODEL, or give --all; `gauntlet show` lists the models"
        )
    from flows.run import run_model
    from flows.views import print_run

    result = run_model(model, source, settings, why, quiet=as_json)
    print_run(result, as_json)
    return 3 if require_promotion and result["verdict"] != "promoted" else 0


def _run_all(
    model: str | None,
    limit: int | None,
    source: str | None,
    settings: list[str],
    why: str,
    require_promotion: bool,
    as_json: bool,
) -> int:
    if model is not None:
        raise ConfigError(f"--all runs every model: leave '{model}' out, or leave --all out")
    from flows.all_view import print_report
    from flows.run import run_all

    report = run_all(limit, source, settings, why)
    print_report(report, as_json)
    if report["failed"]:
        return 1
    return 3 if require_promotion and report["promoted"] < report["models"] else 0


@app.command()
@reported
def new(
    name: Annotated[str, typer.Argument(help="Name of the model: lower case letters, digits, underscores.")],
    data: Annotated[Path, typer.Option(help="A CSV or Parquet file.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing YAML.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write models/NAME.yaml from a look at the data."""
    from flows.console import out, print_json
    from flows.new import write_model

    path = write_model(name, data, target, force)
    if as_json:
        print_json({"model": name, "path": str(path)})
        return
    out.print(f"Wrote {os.path.relpath(path)}. Look at its comments, then: gauntlet run {name}")


@app.command()
@reported
def show(
    model: Annotated[str | None, typer.Argument(help="Name of a YAML in models/; all when left out.")] = None,
    config: Annotated[
        bool, typer.Option("--config", help="Every key with its value and the layer that set it.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON Schema of a model YAML.")] = False,
    settings: Settings = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the models, one model's versions, its configuration, or the schema."""
    from flows import views

    if schema:
        views.print_schema()
    elif config:
        views.print_config(model, settings, as_json)
    elif model:
        views.print_model(model, as_json)
    else:
        views.print_models(as_json)


@app.command()
@reported
def history(
    model: Annotated[str | None, typer.Argument(help="Name of a YAML in models/; or --all.", metavar="MODEL")] = None,
    at: Annotated[
        str | None, typer.Option(help="A time (ISO 8601; local where it names no zone): who was champion then?")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole ledger; with --json as it is hashed, for an audit.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the ledger of a model, or the whole."""
    from flows.history import print_history

    print_history(model, at, everything, as_json)


@app.command()
@reported
def promote(
    model: Model,
    version: Version,
    why: Why,
    override: Annotated[list[str], typer.Option(help="A gate that may fail; recorded. Can be repeated.")] = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a version champion: its gates are checked again; so a challenger that waits is approved."""
    from flows.decide import print_decision, promote_by_hand

    print_decision(promote_by_hand(model, version, why, override), as_json)


@app.command()
@reported
def reject(model: Model, version: Version, why: Why, as_json: Json = False, debug: Debug = False) -> None:
    """Refuse a challenger that waits for a person."""
    from flows.decide import print_decision, reject_by_hand

    print_decision(reject_by_hand(model, version, why), as_json)


@app.command()
@reported
def rollback(
    model: Model,
    to: Annotated[int | None, typer.Option(help="Version to go back to; the previous champion by default.")] = None,
    why: Annotated[str, typer.Option(help="Reason, for the ledger.")] = "rollback by hand",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an earlier champion serve again: ledger, aliases and `<model>:latest`."""
    from flows.run import roll_back
    from flows.views import print_rollback

    print_rollback(roll_back(model, to, why), as_json)


@app.command()
@reported
def monitor(
    model: Model,
    check: Annotated[
        list[str],
        typer.Option(help="performance, quality, drift, prediction_drift or fairness; all by default."),
    ] = [],  # noqa: B006
    window: Annotated[
        str | None, typer.Option(help="How far back each check looks: 7d, 12h, 30m; as the YAML says by default.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Where the windows end (ISO 8601; local where it names no zone); now by default.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at the champion now: performance, quality, drift, fairness; 0 also when there is trouble."""
    from flows.watch import look_at, print_look

    print_look(look_at(model, check, window, at, quiet=as_json), as_json)


@app.command()
@reported
def report(
    model: Model,
    versions: Annotated[
        str | None, typer.Option(help="One version, or two as A,B: B beside A. The last decision when left out.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="html: one page; md: for a pull request.")] = "html",
    output: Annotated[
        Path | None, typer.Option(help="File to write; MODEL-report.html, or for md the terminal, when left out.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Report a decision: challenger beside champion, gates, plots, explanations."""
    from flows.report import write_report

    write_report(model, versions, form, output, as_json)


@app.command()
@reported
def predict(
    model: Model,
    input: Annotated[str, typer.Option(help="A CSV or Parquet file, or a database URL (passwords as ${VARIABLE}).")],
    output: Annotated[str, typer.Option(help="Likewise; its run's state lies beside it, in <output>.run.")],
    query: Annotated[str | None, typer.Option(help="What an input database is asked; in a fixed order.")] = None,
    table: Annotated[
        str | None, typer.Option(help="Table of an output database that the answers are added to.")
    ] = None,
    keep: Annotated[list[str], typer.Option(help="Input column to hand on; a personal one as a pseudonym.")] = [],  # noqa: B006
    key: Annotated[list[str], typer.Option(help="Input column to hand on in clear, even a personal one.")] = [],  # noqa: B006
    separator: Annotated[str, typer.Option(help="Between the cells of an input CSV.")] = ",",
    on_bad_row: Annotated[str, typer.Option(help="stop, or skip: leave bad rows out and report them.")] = "stop",
    force: Annotated[bool, typer.Option("--force", help="Begin anew where another output is in the way.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer all rows of a table with the champion; the same command goes on where it was interrupted."""
    from flows.batch import predict_table

    order = {"model": model, "input": input, "output": output, "query": query, "table": table, "separator": separator}
    predict_table(order | {"keep": tuple(keep), "key": tuple(key)}, on_bad_row, force, as_json)


@app.command()
@reported
def retire(
    model: Model,
    version: Annotated[int, typer.Argument(help="A version that is neither champion nor previous and does not wait.")],
    why: Annotated[str, typer.Option(help="Reason, for the ledger.")] = "retired by hand",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Archive a version's evidence and delete its Release and its Bento."""
    from flows.retire import print_retired, retire_version

    print_retired(retire_version(model, version, why), as_json)


@app.command()
@reported
def outcomes(
    model: Model,
    input: Annotated[str, typer.Option(help="A CSV or Parquet file: prediction_id, outcome and, if known, at.")],
    separator: Annotated[str, typer.Option(help="Between the cells of a CSV.")] = ",",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Store what turned out to be true of predictions; 1 when nothing of the file could be taken."""
    from flows.batch import tell_outcomes

    tell_outcomes(model, input, separator, as_json)


@stack_app.command("plan")
@reported
def stack_plan(
    name: Stack = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a stack file differs from ZenML's state."""
    _changes(name, False, as_json)


@stack_app.command("apply")
@reported
def stack_apply(
    name: Stack = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make ZenML's state what a stack file says; a second time changes nothing."""
    _changes(name, True, as_json)


def _changes(name: str | None, apply: bool, as_json: bool) -> None:
    from flows.console import quiet_tools
    from flows.views import print_changes
    from stacks import stack_file

    quiet_tools()
    print_changes((stack_file.apply if apply else stack_file.plan)(name or "local"), apply, as_json)


@key_app.command("add")
@reported
def key_add(
    name: Annotated[str, typer.Argument(help="What to call it: who will use it, for example.", metavar="NAME")],
    role: Annotated[str, typer.Option(help="predict, outcome, or admin, which opens both.")],
    expires: Annotated[str | None, typer.Option(help="How long it holds: 90d, 12h, 30m; for ever by default.")] = None,
    rate: Annotated[
        int, typer.Option(min=0, max=10_000_000, help="Requests a minute, per worker; 0 for no limit.")
    ] = 6_000,
    why: Annotated[str, typer.Option(help="Reason, for the ledger.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    from flows.key import add_key

    add_key(name, role, expires, rate, why, as_json)


@key_app.command("list")
@reported
def key_list(as_json: Json = False, debug: Debug = False) -> None:
    """Show all keys: role, state, rate, times; never the keys themselves."""
    from flows.key import print_keys

    print_keys(as_json)


@key_app.command("revoke")
@reported
def key_revoke(
    name: Annotated[str, typer.Argument(help="Its name, or the gk_… that it begins with.", metavar="NAME")],
    why: Annotated[str, typer.Option(help="Reason, for the ledger.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """End a key; running services refuse it within two seconds."""
    from flows.key import revoke_key

    revoke_key(name, why, as_json)


@app.command()
@reported
def doctor(as_json: Json = False, debug: Debug = False) -> int:
    """Check the installation, the homes, the ledger, the aliases and the checksums."""
    from flows.run import examine
    from flows.views import print_findings

    return print_findings(examine(), as_json)


def main() -> None:
    """Entry point of the `gauntlet` command."""
    # Collecting what a hundred libraries left behind takes a second at exit; the process is over anyway.
    atexit.register(gc.freeze)
    collect_seldom()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
