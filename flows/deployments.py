"""`make deployments`: prefect.yaml, whose entries of models are written from `models/*.yaml` and not by hand.

An entry belongs to a model when it is `train/<name>`, `predict/<name>` or `monitor/<name>` and its parameter says the
same name. Those are written anew, taken out with their model, and what is overwritten is said. Every other entry and
key of the file stays.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.config import ModelConfig, load_model, model_names, models_dir, read_yaml
from models.errors import ConfigError, GauntletError
from models.monitoring import CheckName
from stacks.home import clone_dir
from steps.watch import CHECKS

POOL = "gauntlet"
TRAIN = "flows.train.train"
TRAIN_ALL = "flows.train_all.train_all"
PREDICT = "flows.predict.predict"
MONITOR = "flows.monitor.monitor"
FLOWS = {TRAIN: "train", PREDICT: "predict", MONITOR: "monitor"}
ALL = "all"
HEADER = """\
# Written by `make deployments` from models/*.yaml; a test fails when they differ.
# Entries and keys of your own stay, comments do not; a change to a model's entry belongs into its YAML (`schedule:`,
# `monitoring.checks`).
"""


@dataclass(frozen=True)
class Written:
    """What became of prefect.yaml.

    Attributes:
        text: The whole file.
        notes: What was added, taken out or overwritten, one sentence each.
    """

    text: str
    notes: tuple[str, ...]


def prefect_file() -> Path:
    """The file that `prefect deploy` reads."""
    return clone_dir() / "prefect.yaml"


def write_deployments() -> tuple[str, ...]:
    """Bring prefect.yaml up to date and return what changed in it.

    Raises:
        ConfigError: A model's YAML is wrong, or prefect.yaml cannot be read and so not kept.
    """
    path = prefect_file()
    written = render_deployments(path)
    draft = path.with_suffix(".yaml.tmp")
    draft.write_text(written.text, encoding="utf-8")
    draft.replace(path)
    return written.notes


def follow_new_model() -> None:
    """Bring prefect.yaml up to date after a new YAML, where it speaks of this folder of YAMLs at all."""
    if prefect_file().exists() and models_dir().resolve() == (clone_dir() / "models").resolve():
        write_deployments()


def render_deployments(path: Path) -> Written:
    """What prefect.yaml at `path` should be, the models being those of `models_dir()`.

    Raises:
        ConfigError: A model's YAML is wrong, or the file is no YAML or holds no deployments.
    """
    present = _read(path)
    configs = [load_model(name).config for name in model_names()]
    wanted = [*map(model_entry, configs), all_entry(), *map(predict_entry, configs), *map(monitor_entry, configs)]
    given: list[dict[str, Any]] = present.get("deployments") or []
    old = {_name(entry): entry for entry in given if _is_ours(entry)}
    foreign = [entry for entry in given if not _is_ours(entry)]
    kept = {key: value for key, value in present.items() if key != "deployments"}
    content = {"name": "gauntlet", "pull": [], **kept, "deployments": [*wanted, *foreign]}
    text = HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return Written(text, _notes(old, {_name(entry): entry for entry in wanted}, foreign))


def model_entry(config: ModelConfig) -> dict[str, Any]:
    """The entry of `train/<model>`; its code is found by import, so that a worker may start anywhere."""
    entry: dict[str, Any] = {
        "name": config.name,
        "description": config.description,
        "tags": ["gauntlet", config.name],
        "entrypoint": TRAIN,
        "parameters": {"model": config.name},
        "work_pool": {"name": POOL},
    }
    if config.schedule:
        entry["schedules"] = [config.schedule.model_dump(mode="json")]
    return entry


def all_entry() -> dict[str, Any]:
    """The entry of `train-all/all`."""
    return {
        "name": ALL,
        "description": "Every model of the folder.",
        "tags": ["gauntlet"],
        "entrypoint": TRAIN_ALL,
        "parameters": {},
        "work_pool": {"name": POOL},
    }


def predict_entry(config: ModelConfig) -> dict[str, Any]:
    """The entry of `predict/<model>`; each run of it is given its input and output."""
    return {
        "name": config.name,
        "description": f"Batch scoring with the champion of {config.name}.",
        "tags": ["gauntlet", config.name],
        "entrypoint": PREDICT,
        "parameters": {"model": config.name},
        "work_pool": {"name": POOL},
    }


def monitor_entry(config: ModelConfig) -> dict[str, Any]:
    """The entry of `monitor/<model>`; checks that are due at the same times are one look."""
    due: dict[tuple[str, str], list[CheckName]] = {}
    for name in CHECKS:
        check = config.monitoring.checks.of(name)
        if check.cron is not None:
            due.setdefault((check.cron, check.timezone), []).append(name)
    entry: dict[str, Any] = {
        "name": config.name,
        "description": f"Checks of the champion of {config.name}.",
        "tags": ["gauntlet", config.name],
        "entrypoint": MONITOR,
        "parameters": {"model": config.name},
        "work_pool": {"name": POOL},
    }
    if due:
        entry["schedules"] = [
            {
                "slug": "-".join(checks).replace("_", "-"),
                "cron": cron,
                "timezone": timezone,
                "active": True,
                "parameters": {"checks": list(checks)},
            }
            for (cron, timezone), checks in due.items()
        ]
    return entry


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    mend = "mend it, or delete the file and run `make deployments` again"
    try:
        present = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; nothing was written: {mend}") from None
    entries = present.get("deployments") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path.name}: `deployments` must be a list of mappings; nothing was written: {mend}")
    return present


def _is_ours(entry: Mapping[str, Any]) -> bool:
    parameters = entry.get("parameters") or {}
    if entry.get("entrypoint") == TRAIN_ALL:
        return entry.get("name") == ALL
    return (
        entry.get("entrypoint") in FLOWS
        and isinstance(parameters, dict)
        and parameters.get("model") == entry.get("name")
    )


def _name(entry: Mapping[str, Any]) -> str:
    return f"{FLOWS.get(entry['entrypoint'], 'train-all')}/{entry['name']}"


def _notes(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], foreign: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    notes = [f"added {name}" for name in new if name not in old]
    notes += [f"took out {name}: there is no such model" for name in old if name not in new]
    for name, entry in new.items():
        before = old.get(name, entry)
        if keys := [key for key in {**entry, **before} if entry.get(key) != before.get(key)]:
            notes.append(f"overwrote {name}: {', '.join(keys)}")
    notes += [f"kept your own entry '{entry.get('name')}'" for entry in foreign]
    return tuple(notes)


def main() -> int:
    """Write prefect.yaml and say what changed; returns the exit code."""
    from flows.console import err, out

    try:
        notes = write_deployments()
    except GauntletError as error:
        err.print(f"Error: {error}", style="red", markup=False)
        return error.exit_code
    for note in notes or ("prefect.yaml is as models/*.yaml say",):
        out.print(note, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
