"""What the command prints: a run, a model, its configuration, its ledger, a plan, the doctor's findings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.markup import escape

from flows.console import number, out, print_json, quiet_home, table
from models.config import ModelConfig, load_model, model_names
from models.errors import ConfigError

VERDICT_STYLE = {"promoted": "bold green", "kept": "bold cyan", "rejected": "bold red", "pending": "bold yellow"}


def print_run(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the gate table, the verdict, the answer of the served champion, and the next commands."""
    if as_json:
        print_json(result)
        return
    rows = [
        (
            gate["name"],
            number(gate["value"]),
            number(gate["threshold"]),
            number(gate["margin"]),
            gate["verdict"],
            gate["reason"],
        )
        for gate in result["gates"]
    ]
    out.print()
    table("Gates", ("gate", "value", "threshold", "margin", "verdict", "reason"), rows)
    style = VERDICT_STYLE[result["verdict"]]
    metric = result["metric"]
    out.print(
        f"\n{metric} {number(result['metrics'].get(metric))} on {result['test_rows']:,} test rows; "
        f"plain linear {number(result['plain_linear'])}, dummy {number(result['dummy'])}"
    )
    out.print(f"[{style}]{result['verdict']}[/{style}]: {escape(result['reason'])}")
    if result["champion"] is None:
        out.print(f"{result['model']} has no champion yet.")
        return
    out.print(f"champion of {result['model']}: v{result['champion']}, Bento {result['model']}:{result['champion']:06d}")
    if result.get("answer"):
        out.print(f"served for a moment, it answered: {json.dumps(result['answer'], ensure_ascii=False)}", markup=False)
    out.print(f"{result['seconds']:.0f} s. Next, after `source .venv/bin/activate`:")
    for command in (
        f"gauntlet show {result['model']}",
        f"bentoml serve {result['model']}:latest",
        "mlflow ui",
        "prefect server start",
    ):
        out.print(f"  {command}")


def print_schema() -> None:
    """Print the JSON Schema of a model YAML."""
    print(json.dumps(ModelConfig.model_json_schema(), indent=2))  # noqa: T201


def print_config(model: str | None, settings: Sequence[str], as_json: bool) -> None:
    """Print every key of a resolved configuration with its value and the layer that set it.

    Raises:
        ConfigError: No model was named, or its configuration is wrong.
    """
    if model is None:
        raise ConfigError(f"show --config needs a model (there is: {', '.join(model_names())})")
    quiet_home()
    from flows.resolve import resolve_model
    from stacks.stack_file import ensure_active

    resolved = resolve_model(model, settings, ensure_active())
    flat = dict(_flatten(resolved.config.model_dump(mode="json")))
    keys = {key: {"value": value, "layer": _origin(key, resolved.origins)} for key, value in flat.items()}
    if as_json:
        print_json({"model": model, "keys": keys})
        return
    rows = [(key, json.dumps(entry["value"], ensure_ascii=False), entry["layer"]) for key, entry in keys.items()]
    table(f"{model}: configuration", ("key", "value", "set by"), rows)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _origin(key: str, origins: Mapping[str, str]) -> str:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if found := origins.get(".".join(parts[:end])):
            return found
    return "default"


def print_models(as_json: bool) -> None:
    """Print all models with their champions."""
    quiet_home()
    from stacks.ledger import open_ledger

    ledger = open_ledger()
    models = []
    for name in model_names():
        entries = ledger.history(name)
        last = entries[-1] if entries else None
        models.append(
            {
                "model": name,
                "champion": ledger.champion(name),
                "last": last and last.action,
                "at": last and str(last.time),
            }
        )
    if as_json:
        print_json({"models": models})
        return
    rows = [(m["model"], f"v{m['champion']}" if m["champion"] else "none yet", m["last"], m["at"]) for m in models]
    table("Models", ("model", "champion", "last entry", "at"), rows)


def print_model(model: str, as_json: bool) -> None:
    """Print a model's champion and versions."""
    config = load_model(model).config
    quiet_home()
    from stacks import registry
    from stacks.ledger import open_ledger

    registry.initialise()
    ledger = open_ledger()
    champion, previous = ledger.champion(model), ledger.previous(model)
    versions = [
        {"version": v.number, "state": ledger.state(model, v.number), "digest": v.digest, "run": v.run_id}
        for v in registry.versions(model)
    ]
    shown = {"model": model, "task": config.task, "metric": config.metric, "champion": champion, "previous": previous}
    if as_json:
        print_json({**shown, "versions": versions})
        return
    out.print(f"[bold]{model}[/bold]: {config.description}")
    out.print(
        f"champion {f'v{champion}' if champion else 'none yet'}, previous {f'v{previous}' if previous else 'none'}"
    )
    rows = [(f"v{v['version']}", v["state"], str(v["digest"])[:12], v["run"]) for v in versions]
    table("Versions", ("version", "state", "digest", "MLflow run"), rows)


def print_history(model: str, at: str | None, as_json: bool) -> None:
    """Print a model's ledger, or who was champion at a time.

    Raises:
        ConfigError: The model is unknown or `at` is no time.
    """
    load_model(model)
    quiet_home()
    from stacks.ledger import open_ledger

    ledger = open_ledger()
    if at is not None:
        try:
            moment = datetime.fromisoformat(at).astimezone()
        except ValueError:
            raise ConfigError(f"--at {at!r} is no time; write it like 2026-11-20T18:30 or 2026-11-20") from None
        champion = ledger.champion_at(model, moment)
        if as_json:
            print_json({"model": model, "at": moment.isoformat(), "champion": champion})
        else:
            out.print(f"champion of {model} at {moment.isoformat()}: {f'v{champion}' if champion else 'none'}")
        return
    entries = ledger.history(model)
    if as_json:
        print_json({"model": model, "entries": [asdict(entry) for entry in entries]})
        return
    rows = [
        (e.sequence, f"{e.time:%Y-%m-%d %H:%M:%S}", e.actor, e.action, f"v{e.version}", e.why, _verdict_reason(e))
        for e in entries
    ]
    table(f"{model}: ledger", ("#", "time (UTC)", "actor", "action", "version", "why", "verdict"), rows)


def _verdict_reason(entry: Any) -> str:
    return str(entry.payload.get("verdict", {}).get("reason", ""))


def print_rollback(result: Mapping[str, Any], as_json: bool) -> None:
    """Print who is champion after a rollback."""
    if as_json:
        print_json(result)
    else:
        out.print(
            f"champion of {result['model']} is v{result['champion']} again; `{result['model']}:latest` serves it."
        )


def print_changes(changes: Sequence[Any], applied: bool, as_json: bool) -> None:
    """Print what `stack plan` would change or `stack apply` changed."""
    if as_json:
        print_json({"applied": applied, "changes": [asdict(change) for change in changes]})
        return
    if not changes:
        out.print("Nothing to change.")
        return
    rows = [(change.action, change.kind, change.name, change.detail) for change in changes]
    table("Applied" if applied else "Plan", ("action", "kind", "name", "detail"), rows)


def print_findings(findings: Sequence[Any], as_json: bool) -> int:
    """Print the doctor's findings; 1 if any is bad."""
    bad = [finding for finding in findings if not finding.ok]
    if as_json:
        print_json({"ok": not bad, "findings": [asdict(finding) for finding in findings]})
        return int(bool(bad))
    for finding in findings:
        mark = "[green]✓[/green]" if finding.ok else "[red]✗[/red]"
        out.print(f"{mark} {finding.name}: {finding.said}")
        if not finding.ok and finding.cure:
            out.print(f"    → {finding.cure}", markup=False)
    out.print("All sound." if not bad else f"{len(bad)} of {len(findings)} checks need you.")
    return int(bool(bad))
