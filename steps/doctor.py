"""Examining an installation: what is sound, what is not, and what to do about it. Nothing here changes anything."""

import json
import os
import re
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker

from models.errors import GauntletError, bounded
from stacks import registry
from stacks.active import shell_environment
from stacks.home import clone_dir, use_home
from stacks.ledger import Ledger, home_database, open_ledger
from stacks.lifecycle import Standing
from stacks.served import served_database

LOCK = "requirements.lock"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.*?))?\s*\\?$")
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: The check.
        ok: Whether all is sound.
        said: What was seen.
        cure: What to do; empty when there is nothing to do.
        faults: Each of what is wrong, where `said` names a few.
    """

    name: str
    ok: bool
    said: str
    cure: str = ""
    faults: tuple[str, ...] = ()


def examine() -> Iterator[Finding]:
    """Make every check, one after the other; a check that cannot be made is a finding, not an error."""
    use_home()
    for name, check in CHECKS.items():
        try:
            yield from check()
        except GauntletError as error:
            yield Finding(name, False, str(error), "see the message")
        except Exception as error:
            said = f"could not be checked: {type(error).__name__}: {bounded(' '.join(str(error).split()), 300)}"
            yield Finding(name, False, said, "run it again with --debug, and `make install` if that shows an import")


def check_versions() -> Iterator[Finding]:
    """Every package that the lock names for this interpreter is installed in the version that it names."""
    lock = clone_dir() / LOCK
    if not lock.is_file():
        yield Finding("versions", True, f"no {LOCK} beside the code: nothing to compare with")
        return
    wanted = _locked(lock.read_text(encoding="utf-8"))
    wrong = [f"{name} {_installed(name)}, locked {want}" for name, want in wanted.items() if _installed(name) != want]
    if wrong:
        yield Finding("versions", False, f"{_some(wrong)} ({len(wrong)} of {len(wanted)} differ)", "make install")
    else:
        yield Finding("versions", True, f"all {len(wanted)} packages are as locked")


def check_homes() -> Iterator[Finding]:
    """The home of every tool can be written to."""
    for name in ("GAUNTLET_HOME", "ZENML_CONFIG_PATH", "PREFECT_HOME", "BENTOML_HOME"):
        home = Path(os.environ[name])
        there = next(folder for folder in (home, *home.parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            cure = f"make it writable, or point {name} at a folder that is"
            yield Finding("homes", False, f"{name} {home} cannot be written to: {error.strerror}", cure)
        else:
            yield Finding("homes", True, f"{name} {home}")


def check_ledger() -> Iterator[Finding]:
    """The chain of the ledger is unbroken."""
    ledger = open_ledger()
    if faults := ledger.verify():
        cure = "somebody changed the database: compare with a backup before promoting anything"
        yield Finding("ledger", False, f"{ledger.shown}: {_some(faults)}", cure, tuple(faults))
    else:
        count = sum(len(entries) for entries in ledger.histories().values())
        yield Finding("ledger", True, f"{ledger.shown}: {count} entries, the chain is unbroken")


def check_aliases() -> Iterator[Finding]:
    """MLflow's aliases are those of the ledger."""
    from steps.promote import wanted_aliases

    for model, standing in _standings():
        try:
            wanted = wanted_aliases(model, standing, registry.versions(model))
        except GauntletError as error:
            yield Finding("aliases", False, str(error), f"gauntlet rollback {model} --to {standing.champion}")
            continue
        wanted |= {registry.PRODUCTION: standing.champion}
        there = registry.aliases(model)
        wrong = [
            f"{alias} of {model} is {_version(there.get(alias))}, the ledger says {_version(number)}"
            for alias, number in wanted.items()
            if there.get(alias) != number
        ]
        named = ", ".join(f"{alias} {_version(number)}" for alias, number in wanted.items())
        yield _mirrored("aliases", model, wrong, f"{model}: {named}")


def check_latest() -> Iterator[Finding]:
    """`<model>:latest` of the BentoML store is the champion, undamaged."""
    from steps.deploy import faults

    for model, standing in _standings():
        if standing.champion is None:
            continue
        wrong = faults(model, standing.champion)
        yield _mirrored("latest", model, wrong, f"{model}:latest is the champion, v{standing.champion}")


def _mirrored(name: str, model: str, wrong: Sequence[str], sound: str) -> Finding:
    """What was found of something that follows the ledger."""
    if not wrong:
        return Finding(name, True, sound)
    return Finding(name, False, _some(wrong), f"the next `gauntlet run {model}` repairs it", tuple(wrong))


def check_releases() -> Iterator[Finding]:
    """Every file of the champions' Releases has the sum that its manifest says."""
    from bentos.release import Release

    for model, standing in _standings():
        if standing.champion is None:
            continue
        cure = f"gauntlet rollback {model}, or train it again"
        try:
            folder = registry.release_dir(model, standing.champion)
            cure = f"delete {folder}: it is downloaded again when it is needed"
            release = Release.open(folder)
        except GauntletError as error:
            yield Finding("releases", False, str(error), cure)
        else:
            files = len(release.manifest["files"])
            yield Finding("releases", True, f"{model} v{standing.champion}: {files} files are as they were written")


def check_retired() -> Iterator[Finding]:
    """Of the versions that were retired nothing is left but their evidence."""
    from steps.archive import is_uncleared

    for model, standing in _standings():
        retired = {number for number, state in standing.states.items() if state == "retired"}
        versions = [version for version in registry.versions(model) if version.number in retired]
        wrong = [
            f"v{v.number} of {model} is retired, its files are there" for v in versions if is_uncleared(v, retired)
        ]
        yield _mirrored("retired", model, wrong, f"{model}: {len(versions)} retired, their evidence is archived")


def check_stack() -> Iterator[Finding]:
    """The flavors of the active stack's components are registered with ZenML and can be loaded."""
    from zenml.client import Client
    from zenml.enums import StackComponentType
    from zenml.stack.flavor import Flavor

    client = Client()
    stack = client.active_stack_model
    for kind, components in stack.components.items():
        name = components[0].flavor_name
        try:
            Flavor.from_model(client.get_flavor_by_name_and_type(name, kind))
        except Exception as error:
            said = f"stack '{stack.name}': the {kind} flavor '{name}' cannot be loaded: "
            said += bounded(" ".join(str(error).split()), 300)
            yield Finding("stack", False, said, f"gauntlet stack apply {stack.name}")
            return
    flavor = stack.components[StackComponentType("orchestrator")][0].flavor_name
    yield Finding("stack", True, f"'{stack.name}' is active, its orchestrator's flavor is '{flavor}'")


def check_server() -> Iterator[Finding]:
    """The Prefect server that this home's record names answers; a record of a dead one does no harm."""
    path = Path(os.environ["PREFECT_HOME"]) / "gauntlet-server.json"
    try:
        record = json.loads(path.read_text())
        url, pid = str(record["url"]), int(record["pid"])
    except FileNotFoundError:
        yield Finding("server", True, "no Prefect server of ours is running; a run starts one")
        return
    except (OSError, ValueError, KeyError, TypeError):
        yield Finding("server", False, f"the record {path} cannot be read", f"delete {path}")
        return
    if not _is_server(pid):
        yield Finding(
            "server", True, f"the record of a Prefect server that is gone (pid {pid}) is left; a run replaces it"
        )
    elif _answers(f"{url}/health"):
        yield Finding("server", True, f"a Prefect server of ours answers at {url} (pid {pid})")
    else:
        yield Finding("server", False, f"the Prefect server at {url} (pid {pid}) does not answer", f"kill {pid}")


def check_database() -> Iterator[Finding]:
    """A service started from this shell and a run on the active stack use the same database."""
    from stacks.stack_file import active_environment

    served = served_database(shell_environment())
    theirs = active_environment().get("GAUNTLET_DATABASE")
    if theirs is None and not os.environ.get("GAUNTLET_STACK"):
        theirs = served
    here, stack = (Ledger(url or home_database()).shown for url in (served, theirs))
    if served == theirs:
        yield Finding("database", True, here)
        return
    cure = (
        "set GAUNTLET_STACK (or GAUNTLET_DATABASE) to the active stack's, or choose another stack by `zenml stack set`"
    )
    yield Finding("database", False, f"a service from this shell uses {here}, the active stack {stack}", cure)


def _standings() -> Iterator[tuple[str, Standing]]:
    ledger = open_ledger()
    for model in ledger.models():
        yield model, ledger.standing(model)


def _locked(text: str) -> dict[str, str]:
    """Package to version, for this interpreter and platform."""
    pins = (_PIN.match(line) for line in text.splitlines())
    return {pin[1]: pin[2] for pin in pins if pin and (not pin[3] or Marker(pin[3]).evaluate())}


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _is_server(pid: int) -> bool:
    import psutil

    try:
        return any("stacks.orchestrator" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _answers(url: str) -> bool:
    # No proxy: this is the loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _version(number: int | None) -> str:
    return "none" if number is None else f"v{number}"


def _some(items: Sequence[str]) -> str:
    more = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": check_versions,
    "homes": check_homes,
    "ledger": check_ledger,
    "aliases": check_aliases,
    "latest": check_latest,
    "releases": check_releases,
    "retired": check_retired,
    "stack": check_stack,
    "server": check_server,
    "database": check_database,
}
