"""Following the ledger: two services in one process, stepped by hand, on both engines."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bentos.fetch import fetch
from bentos.fleet import Fleet
from bentos.follow import Follower
from bentos.release import Release
from bentos.reply import Refused
from models.errors import WorkError
from stacks import handover
from stacks.handover import Crown, Handover, reign_of
from stacks.home import clone_dir
from stacks.ledger import Ledger
from tests.bentos.samples import write

MODEL = "wine"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Three Releases of one model that differ."""
    folder = tmp_path_factory.mktemp("registry")
    families: list[Any] = ["logistic_regression", "random_forest", "xgboost"]
    return [write(folder / family, MODEL, family) for family in families]


@pytest.fixture
def service(url: str, tmp_path: Path) -> Iterator[Callable[..., "Service"]]:
    """Makes services that follow one ledger."""
    made: list[Service] = []

    def make(**options: Any) -> Service:
        made.append(Service(url, tmp_path / "cache", **options))
        return made[-1]

    yield make
    for one in made:
        one.follower.stop()


class Service:
    """A fleet and its follower; its swaps by outcome."""

    def __init__(self, url: str, cache: Path, **options: Any) -> None:
        self.fleet = Fleet()
        self.swaps: list[tuple[str, str]] = []
        self.described: list[str] = []
        self.follower = Follower(
            Ledger(url, keep_connection=True),
            self.fleet,
            cache,
            describe=lambda release: self.described.append(release.schema.model),
            swapped=lambda model, outcome: self.swaps.append((model, outcome)),
            **options,
        )
        self.fleet.bring_back_with(self.follower.load, options.get("limit") or 1_000)

    def version(self, model: str = MODEL) -> int | None:
        served = self.fleet.current(model)
        return served.version if served else None


def until(what: Callable[[], bool], *services: Service, seconds: float = 30.0) -> float:
    """Let services go on until something holds; the seconds that it took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, "it did not come to hold"
        time.sleep(min([0.02, *(service.follower.step() for service in services)]))
    return time.monotonic() - begun


def crown(ledger: Ledger, version: int, release: Release, model: str = MODEL, **changes: Any) -> None:
    manifest = (release.directory / "manifest.json").read_bytes()
    payload = {"release_uri": str(release.directory), "manifest_sha256": hashlib.sha256(manifest).hexdigest()}
    ledger.append("promote", model, version, payload=payload | changes)


def test_the_first_champion_is_fetched_checked_and_answers(url: str, service: Any, releases: list[Release]) -> None:
    one, ledger = service(), Ledger(url)
    one.follower.step()
    assert one.version() is None
    crown(ledger, 1, releases[0])
    until(lambda: one.version() == 1, one)
    assert (one.described, one.swaps) == ([MODEL], [])
    ledger.append("keep", MODEL, 2)
    one.follower.step()
    assert one.version() == 1


def test_all_switch_together_and_nobody_before_all_are_ready(url: str, service: Any, releases: list[Release]) -> None:
    ledger = Ledger(url)
    crown(ledger, 1, releases[0])
    one, two = service(), service()
    until(lambda: one.version() == two.version() == 1, one, two)
    crown(ledger, 2, releases[1])

    def alive_and_not_ready() -> bool:
        two.follower.handover.beat()
        return one.fleet.health()[MODEL].warm.keys() == {1, 2}

    until(alive_and_not_ready, one)
    for _ in range(5):
        two.follower.handover.beat()
        one.follower.step()
    assert one.version() == 1, "the other is not ready, so nobody switches"
    until(lambda: one.version() == 2, one, two)
    until(lambda: two.version() == 2, two, seconds=2)
    assert one.swaps == two.swaps == [(MODEL, "switched")]


def test_a_rollback_finds_the_previous_one_warm(url: str, service: Any, releases: list[Release]) -> None:
    ledger, one = Ledger(url), service()
    crown(ledger, 1, releases[0])
    crown(ledger, 2, releases[1])
    until(lambda: one.version() == 2 and 1 in one.fleet.health()[MODEL].warm, one)
    shutil.rmtree(one.follower._cache)
    ledger.append("rollback", MODEL, 1, payload={"from": 2})
    assert until(lambda: one.version() == 1, one) < 2
    ledger.append("rollback", MODEL, 2)
    until(lambda: one.version() == 2, one)


def test_whoever_joins_serves_what_the_others_serve(url: str, service: Any, releases: list[Release]) -> None:
    ledger, one = Ledger(url), service()
    crown(ledger, 1, releases[0])
    until(lambda: one.version() == 1, one)
    crown(ledger, 2, releases[1], release_uri=str(releases[1].directory / "nowhere"))
    until(lambda: (MODEL, "refused") in one.swaps, one)
    two = service()
    until(lambda: two.version() == 1, two)


def test_one_that_never_gets_ready_is_not_waited_for_longer_than_a_minute(
    url: str, service: Any, releases: list[Release]
) -> None:
    ledger, one = Ledger(url), service()
    crown(ledger, 1, releases[0])
    late = Handover(Ledger(url))
    late.beat()
    until(lambda: (MODEL in one.fleet.health()) and 1 in one.fleet.health()[MODEL].warm, one)
    crowned = reign_of(ledger.history(MODEL)).champion
    assert crowned is not None
    assert one.follower.handover.decide(crowned) is None
    now = time.time()
    after = Handover(Ledger(url), clock=lambda: now + handover.LATEST_SECONDS + 1)
    late._clock = lambda: now + handover.LATEST_SECONDS + 1
    late.beat()
    at = after.decide(crowned)
    assert at is not None
    assert Handover(Ledger(url)).decide(crowned) == at, "it is written down once"


def test_a_late_one_answers_nothing_until_it_is_ready(url: str, service: Any, releases: list[Release]) -> None:
    ledger, one, two = Ledger(url), service(), service()
    crown(ledger, 1, releases[0])
    until(lambda: one.version() == two.version() == 1, one, two)
    away = releases[1].directory.with_name("away")
    crown(ledger, 2, releases[1], release_uri=str(away))
    two.follower.load(Crown(MODEL, 2, 2, 0.0, str(releases[1].directory), _sum(releases[1])))  # into the shared cache
    until(lambda: 2 in two.fleet.health()[MODEL].warm, two)
    champion = reign_of(ledger.history(MODEL)).champion
    assert champion is not None
    shutil.move(one.follower._cache / MODEL, one.follower._cache / "aside")
    until(lambda: (MODEL, "refused") in one.swaps, one)
    two.follower.step()
    with two.follower._ledger.writing() as connection:
        connection.execute(handover.SWITCHES.insert().values(model=MODEL, sequence=champion.sequence, at=time.time()))
    until(lambda: two.version() == 2 and (MODEL, "late") in one.swaps, one, two)
    with pytest.raises(Refused) as refused:
        asyncio.run(one.fleet.summon(MODEL))
    assert (refused.value.reply.status, refused.value.reply.retry_after) == (503, 1)
    shutil.copytree(releases[1].directory, away)
    one.follower._courses[MODEL].failed.clear()
    until(lambda: one.version() == 2, one)
    shutil.rmtree(away)


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "unreachable", "no place"])
def test_a_release_that_fails_a_check_never_serves(
    damage: str, tmp_path: Path, releases: list[Release], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, one = Ledger(url), Service(url, tmp_path / "cache")
    crown(ledger, 1, releases[0])
    until(lambda: one.version() == 1, one)
    copy = Release.open(Path(shutil.copytree(releases[1].directory, tmp_path / "copy")))
    crown(ledger, 2, copy, **({"release_uri": ""} if damage == "no place" else {}))
    if damage == "changed":
        with (copy.directory / "golden.json").open("a") as file:
            file.write(" ")
    elif damage == "missing":
        (copy.directory / "schema.json").unlink()
    elif damage == "manifest":
        text = json.loads((copy.directory / "manifest.json").read_text())
        (copy.directory / "manifest.json").write_text(json.dumps(text))
    elif damage == "unreachable":
        shutil.rmtree(copy.directory)
    until(lambda: one.swaps == [(MODEL, "refused")], one)
    for _ in range(3):
        one.follower.step()
    assert one.version() == 1
    assert "wine v2 does not serve, v1 goes on" in caplog.text
    assert not [path for path in (tmp_path / "cache").rglob("000002*") if path.is_dir()]
    one.follower.stop()


def test_what_came_back_serves(tmp_path: Path, releases: list[Release]) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, one = Ledger(url), Service(url, tmp_path / "cache")
    copy = Release.open(Path(shutil.copytree(releases[1].directory, tmp_path / "copy")))
    crown(ledger, 1, copy)
    shutil.move(copy.directory, tmp_path / "aside")
    until(lambda: one.swaps == [(MODEL, "refused")], one)
    shutil.move(tmp_path / "aside", copy.directory)
    one.follower._courses[MODEL].failed.clear()
    until(lambda: one.version() == 1, one)
    shutil.rmtree(copy.directory)
    again = Service(url, tmp_path / "cache")
    one.follower.stop()
    until(lambda: again.version() == 1, again)  # from the cache: the store is not there any more
    again.follower.stop()


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, releases: list[Release]) -> None:
    there = Crown(MODEL, 1, 1, 0.0, f"file://{releases[0].directory}", _sum(releases[0]))
    first = fetch(there, tmp_path)
    (first.directory / "golden.json").write_text("[]")
    second = fetch(there, tmp_path)
    assert second.directory == first.directory
    assert second.golden == releases[0].golden


def test_a_manifest_that_names_files_outside_is_refused(tmp_path: Path, releases: list[Release]) -> None:
    folder = Path(shutil.copytree(releases[0].directory, tmp_path / "copy"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../escaped.json"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "escaped.json").write_text("{}")
    there = Crown(MODEL, 1, 1, 0.0, str(folder), hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest())
    with pytest.raises(WorkError, match="names a file outside of it"):
        fetch(there, tmp_path / "cache")


def test_models_leave_memory_and_come_back(tmp_path: Path, releases: list[Release]) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, one = Ledger(url), Service(url, tmp_path / "cache", limit=2)
    names = ["a", "b", "c"]
    for name in names:
        crown(ledger, 1, releases[0], model=name)
    until(lambda: all(slot.crown for slot in one.fleet.health().values()) and len(one.fleet.models) == 3, one)
    assert one.fleet.resident == 2
    cold = next(name for name in names if one.version(name) is None)

    async def ask() -> list[int]:
        served = await asyncio.gather(*(one.fleet.summon(cold) for _ in range(5)))
        return [each.version for each in served]

    assert asyncio.run(ask()) == [1] * 5
    assert (one.version(cold), one.fleet.resident) == (1, 2)
    one.follower.stop()


# Not forked: this process has databases open, and SQLite's locks do not survive a fork.
BEATER = """
import sys, time
from stacks.handover import Handover
from stacks.ledger import Ledger
Handover(Ledger(sys.argv[1])).beat()
print("beaten", flush=True)
time.sleep(600)
"""


def test_a_dead_process_is_not_waited_for(url: str, service: Any, releases: list[Release]) -> None:
    ledger, one = Ledger(url), service()
    crown(ledger, 1, releases[0])
    until(lambda: one.version() == 1, one)
    child = subprocess.Popen([sys.executable, "-c", BEATER, url], cwd=clone_dir(), stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"beaten\n"
    crown(ledger, 2, releases[1])
    until(lambda: 2 in one.fleet.health()[MODEL].warm, one)
    for _ in range(3):
        one.follower.step()
    assert one.version() == 1
    child.kill()
    child.wait()
    assert until(lambda: one.version() == 2, one) < 2


def _sum(release: Release) -> str:
    return hashlib.sha256((release.directory / "manifest.json").read_bytes()).hexdigest()
