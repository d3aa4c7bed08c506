"""Following the ledger: two services in one process, stepped by hand, on both engines."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bentos import follow
from bentos.fetch import fetch
from bentos.fleet import Fleet
from bentos.follow import EVERY_SECONDS, Follower
from bentos.release import Release
from bentos.reply import Refused, fault
from bentos.served import Served
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
        self.described: list[Release] = []
        self.follower = Follower(
            Ledger(url, keep_connection=True),
            self.fleet,
            cache,
            describe=lambda release: partial(self.described.append, release),
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
    assert ([release.schema.model for release in one.described], one.swaps) == ([MODEL], [])
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
    until(lambda: two.version() == 2, two)
    assert one.swaps == two.swaps == [(MODEL, "switched")]


def test_a_rollback_finds_the_previous_one_warm(url: str, service: Any, releases: list[Release]) -> None:
    ledger, one = Ledger(url), service()
    crown(ledger, 1, releases[0])
    crown(ledger, 2, releases[1])
    until(lambda: one.version() == 2 and 1 in one.fleet.health()[MODEL].warm, one)
    shutil.rmtree(one.follower._cache)
    ledger.append("rollback", MODEL, 1, payload={"from": 2})
    until(lambda: one.version() == 1, one)
    assert not one.follower._cache.exists(), "nothing was fetched"
    ledger.append("rollback", MODEL, 2)
    until(lambda: one.version() == 2, one)


def test_a_planned_switch_is_near(url: str, service: Any, releases: list[Release]) -> None:
    """From the last one's readiness, and from a rollback's entry when all are ready, to the moment that is planned."""
    ledger, now = Ledger(url), [1_000.0]
    services = [service(), service()]
    for one in services:
        one.follower.handover._clock = lambda: now[0]
    crown(ledger, 1, releases[0])
    champion = reign_of(ledger.history(MODEL)).champion
    assert champion is not None
    first, second = (one.follower.handover for one in services)
    first.beat()
    second.beat()
    first.ready(champion)
    now[0] += 7
    first.beat(), second.beat()
    assert first.decide(champion) is None
    second.ready(champion)
    at = second.decide(champion)
    # Everybody looks again after so long, at the latest, and then waits for that moment.
    assert at is not None and 2 * EVERY_SECONDS < at - now[0] < 2 - 2 * EVERY_SECONDS
    assert first.decide(champion) == at


def test_the_description_is_of_what_answers(url: str, service: Any, releases: list[Release], tmp_path: Path) -> None:
    """Of a Release that fails nothing is shown, and after a rollback the inputs are those of before."""
    ledger, one = Ledger(url), service()
    config = releases[0].config
    ash = config.columns["ash"].model_copy(update={"description": "the second"})
    config = config.model_copy(update={"columns": config.columns | {"ash": ash}})
    second = write(tmp_path / "second", MODEL, "logistic_regression", config=config)
    bad = Release.open(Path(shutil.copytree(second.directory, tmp_path / "bad")))
    (bad.directory / "golden.json").write_text("[]")

    def shown() -> list[str | None]:
        return [release.schema.inputs["ash"].description for release in one.described]

    crown(ledger, 1, releases[0])
    until(lambda: one.version() == 1, one)
    crown(ledger, 2, bad)
    until(lambda: (MODEL, "refused") in one.swaps, one)
    assert len(shown()) == 1
    crown(ledger, 3, second)
    until(lambda: 3 in one.fleet.health()[MODEL].warm, one)
    assert len(shown()) == 1, "it is warm and does not answer yet"
    until(lambda: one.version() == 3, one)
    assert shown()[1:] == ["the second"]
    ledger.append("rollback", MODEL, 1, payload={"from": 3})
    until(lambda: one.version() == 1, one)
    assert shown() == [shown()[0], "the second", shown()[0]]


def test_one_store_that_hangs_stops_one_model(
    tmp_path: Path, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, one, answers = Ledger(url), Service(url, tmp_path / "cache"), threading.Event()

    def hangs(crown: Crown, cache: Path) -> Release:
        if crown.model == "a":
            answers.wait(60)
        return fetch(crown, cache)

    monkeypatch.setattr(follow, "fetch", hangs)
    for name in ("a", MODEL):
        crown(ledger, 1, releases[0], model=name)
    until(lambda: one.version() == 1, one)
    assert not answers.is_set() and one.version("a") is None
    answers.set()
    until(lambda: one.version("a") == 1, one)
    one.follower.stop()


def test_what_neither_answers_nor_may_come_back_leaves_the_cache(
    tmp_path: Path, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, one = Ledger(url), Service(url, tmp_path / "cache")

    def versions() -> list[str]:
        return sorted(path.name[:6] for path in (tmp_path / "cache" / MODEL).iterdir() if path.is_dir())

    def turn(version: int) -> None:
        crown(ledger, version, releases[version - 1])
        until(lambda: one.version() == version and one.follower._courses[MODEL].settled, one)

    turn(1)
    turn(2)
    turn(3)
    assert versions() == ["000001", "000002", "000003"], "somebody may just be loading it"
    for path in (tmp_path / "cache" / MODEL).iterdir():
        os.utime(path, (0, 0))
    with FileLock(next((tmp_path / "cache" / MODEL).glob("000001-*.lock"))):
        turn(2)
        assert versions() == ["000001", "000002", "000003"], "another process has it"
    turn(3)
    assert versions() == ["000002", "000003"]
    one.follower.stop()


def test_what_comes_back_while_nothing_may_answer_does_not(tmp_path: Path, releases: list[Release]) -> None:
    fleet, loads, refused = Fleet(), threading.Event(), threading.Event()
    there = Crown(MODEL, 1, 1, 0.0, str(releases[0].directory), _sum(releases[0]))

    def load(crown: Crown) -> Served:
        loads.set()
        assert refused.wait(30)
        return Served.load(fetch(crown, tmp_path), crown.version)

    fleet.bring_back_with(load, 1)
    fleet.switch(there, None)

    async def ask() -> None:
        asking = asyncio.ensure_future(fleet.summon(MODEL))
        await asyncio.to_thread(loads.wait, 30)
        fleet.refuse(MODEL, fault(503, "the new champion is still being loaded", "loading", retry_after=1))
        refused.set()
        with pytest.raises(Refused):
            await asking

    asyncio.run(ask())
    assert (fleet.current(MODEL), fleet.answers) == (None, False)


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
    until(lambda: one.version() == 2, one, seconds=handover.LATEST_SECONDS / 2)


def _sum(release: Release) -> str:
    return hashlib.sha256((release.directory / "manifest.json").read_bytes()).hexdigest()
