"""What the command prints: a run, a model, its configuration, its ledger, a plan, the doctor's findings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flows.console import number, out, print_json, quiet_home, span, table
from flows.gates import print_gates
from flows.usage import StepUsage, read_usages, time_line
from models.config import ModelConfig, load_model, model_names
from models.errors import ConfigError, WorkError, bounded

if TYPE_CHECKING:
    from flows.overview import Overview

VERDICT_STYLE = {"promoted": "bold green", "kept": "bold cyan", "rejected": "bold red", "pending": "bold yellow"}


def print_run(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the gate table, the verdict, the answer of the served champion, and the next commands."""
    if as_json:
        print_json(result)
        return
    out.print()
    print_gates(result["gates"])
    if line := time_line([StepUsage(**step) for step in result["steps"]]):
        out.print(f"\n[dim]time: {escape(line)}[/dim]")
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
    """Print all models: champion, score, age, last run, next run."""
    quiet_home()
    from flows.overview import overview

    models = overview()
    if as_json:
        print_json({"models": [asdict(model) for model in models]})
        return
    rows = [_overview_row(model) for model in models]
    table("Models", ("model", "champion", "score", "age", "last run", "next run"), rows)
    if any(model.told_by == "home" for model in models):
        out.print("[dim]last run: as the ledger has it, or a later one of this home[/dim]")


def _overview_row(model: "Overview") -> tuple[str, ...]:
    champion = f"v{model.champion}" if model.champion else "none yet"
    if model.error is not None:
        return model.model, champion, bounded(model.error.splitlines()[0], 100), "", "", ""
    return (
        model.model,
        champion,
        f"{model.metric} {number(model.score)}" if model.score is not None else "",
        _ago(model.since),
        f"{model.outcome} {_ago(model.last_run)} ago" if model.last_run else "",
        f"in {_ago(model.next_run)}" if model.next_run else "",
    )


def _ago(moment: str | None) -> str:
    """The time between a moment and now."""
    if moment is None:
        return ""
    return span(abs((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))


def print_model(model: str, as_json: bool) -> None:
    """Print a model's champion, what it was promoted by, where its run's time went, and all versions."""
    config = load_model(model).config
    quiet_home()
    from flows.decide import print_waiting, waiting
    from flows.overview import promotion
    from stacks import registry
    from stacks.ledger import open_ledger
    from stacks.lifecycle import standing

    registry.initialise()
    entries = open_ledger().history(model)
    stood, promoted = standing(entries), promotion(entries)
    facts = promoted.payload if promoted else {}
    steps = _steps_of(facts.get("mlflow_run_id"))
    versions = [
        {
            "version": v.number,
            "semver": v.tags.get(registry.SEMVER_TAG),
            "state": stood.state(v.number),
            "digest": v.digest,
            "run": v.run_id,
        }
        for v in registry.versions(model)
    ]
    shown: dict[str, Any] = {"model": model, "task": config.task, "metric": config.metric}
    shown |= {"champion": stood.champion, "previous": stood.previous, **waiting(stood)}
    evidence: dict[str, Any] = {"metrics": facts.get("metrics", {}), "gates": facts.get("verdict", {}).get("gates", [])}
    evidence |= {"data_digest": facts.get("data_digest"), "steps": [asdict(step) for step in steps]}
    if as_json:
        print_json({**shown, **evidence, "versions": versions})
        return
    out.print(f"[bold]{model}[/bold]: {config.description}")
    champion, previous = (f"v{n}" if n else "none" for n in (stood.champion, stood.previous))
    out.print(f"champion {champion if stood.champion else 'none yet'}, previous {previous}")
    print_waiting(shown)
    if promoted:
        _print_evidence(promoted.time, evidence, time_line(steps))
    rows = [(f"v{v['version']}", v["semver"], v["state"], str(v["digest"])[:12], v["run"]) for v in versions]
    table("Versions", ("version", "label", "state", "digest", "MLflow run"), rows)


def _print_evidence(when: datetime, evidence: Mapping[str, Any], times: str) -> None:
    figures = ", ".join(f"{name} {number(value)}" for name, value in evidence["metrics"].items())
    out.print(f"promoted {when:%Y-%m-%d %H:%M} UTC on its test rows: {figures}", markup=False)
    out.print(f"data {evidence['data_digest']}", markup=False)
    if times:
        out.print(f"time: {times}", markup=False)
    print_gates(evidence["gates"])


def _steps_of(run_id: str | None) -> list[StepUsage]:
    """Where the time of a model's run went, as far as MLflow still has the run."""
    from stacks.runs import metrics_of

    try:
        return read_usages(metrics_of(run_id)) if run_id else []
    except WorkError:
        return []


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
    rows = [(change.action, change.kind, change.name, change.said) for change in changes]
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
