"""Champions are replaced under load: no request fails, none is answered by an old version, every answer is logged."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from bentos.inputs import typed_rows
from bentos.predictions import find
from bentos.release import Release
from stacks.handover import READY, SWITCHES
from stacks.ledger import Ledger
from tests.bentos.following import Clients, Seen, Service, crown, following, is_ready
from tests.bentos.samples import write

Row = tuple[tuple[str, Any], ...]

MODEL = "wine"
WITHIN = 2.0  # seconds, from readiness or a rollback's entry to the switch; held by the proof, on a quiet machine
WORKERS = 2


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Release]:
    folder = tmp_path_factory.mktemp("registry")
    families: list[Any] = ["logistic_regression", "random_forest", "xgboost"]
    return {number: write(folder / family, MODEL, family) for number, family in enumerate(families, 1)}


def test_swaps_and_a_rollback_under_load(tmp_path: Path, releases: dict[int, Release]) -> None:
    seen, turns = _swap(tmp_path, releases, swaps=4, clients=8)
    assert len(turns) == 5 and seen


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_fifty_swaps_under_a_hundred_clients(
    tmp_path: Path, releases: dict[int, Release], proof: Callable[[str, object, str], None]
) -> None:
    seen, turns = _swap(tmp_path, releases, swaps=50, clients=100)
    backs = [turn.at - turn.entered for turn in turns if turn.is_rollback]
    planned, old = max(turn.at - turn.ready for turn in turns[1:]), _longest_old(seen, turns)
    assert max(backs) <= WITHIN and planned + old <= WITHIN
    proof("champion swaps under 100 clients: no answer failed or was of a version that had gone", 50, f"{len(seen):,}")
    line = "from a rollback's entry in the ledger to the moment at which all switch, under that load"
    proof(line, len(backs), f"{max(backs):.2f} s")
    told = f"{planned:.2f} s; the last request that the old version answered was sent {1000 * old:.0f} ms after it"
    proof("from the last worker's readiness to the moment at which all switch, under that load", 50, told)


@dataclass(frozen=True)
class Turn:
    """A version's turn to answer.

    Attributes:
        version: Its number.
        entered: When the ledger said so, in seconds since 1970.
        ready: When the last worker was ready for it.
        at: When all were told to switch to it.
        done: When all were seen to have switched.
        is_rollback: Whether it was the version before.
    """

    version: int
    entered: float = 0.0
    ready: float = 0.0
    at: float = 0.0
    done: float = 0.0
    is_rollback: bool = False


def _swap(folder: Path, releases: dict[int, Release], swaps: int, clients: int) -> tuple[list[Seen], list[Turn]]:
    """Crown one version after the other while clients ask; the answers that were seen, and the swaps."""
    ledger = Ledger(f"sqlite:///{folder / 'gauntlet.db'}")
    crown(ledger, 1, releases[1])
    rows = [golden.inputs for golden in releases[1].golden]
    turns = [Turn(1)]
    with following(folder, workers=WORKERS, GAUNTLET_SERVE=MODEL, GAUNTLET_ACCESS_LOG="off") as service:
        service.until(lambda: is_ready(service) and service.versions() == {1}, 180)
        with Clients(service.port, "/predict", rows, clients, pause=0.02) as asking:
            turns += [_turn(ledger, releases, number, service) for number in range(swaps)]
            service.until(lambda: sum(answer.sent > turns[-1].done for answer in asking.seen) > clients)
        _require_sound(asking.seen, turns, _expected(releases, rows), service.database)
    return asking.seen, turns


def _turn(ledger: Ledger, releases: dict[int, Release], number: int, service: Service) -> Turn:
    """One swap; each third one is a rollback."""
    champion = ledger.champion(MODEL)
    assert champion is not None
    back = ledger.previous(MODEL) if number % 3 == 2 else None
    version = back or champion % 3 + 1
    entry = crown(ledger, version, releases[version], "rollback" if back else "promote")
    # Each worker counts when it has switched; of what was sent after that, the old version answers nothing.
    service.until(lambda: _switched(service) == WORKERS * (number + 1), 120)
    done = time.time()
    with ledger.reading() as connection:
        at = connection.scalar(sa.select(SWITCHES.c.at).where(SWITCHES.c.sequence == entry.sequence))
        ready = list(connection.scalars(sa.select(READY.c.at).where(READY.c.sequence == entry.sequence)))
    assert len(ready) == WORKERS and at is not None
    return Turn(version, entry.time.timestamp(), max(ready), at, done, is_rollback=back is not None)


def _switched(service: Service) -> float:
    """How many switches all workers have counted."""
    page = service.ask("GET", "/metrics")[1]
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(s.value for s in samples if s.name == "gauntlet_swaps_total" and s.labels.get("outcome") == "switched")


def _longest_old(seen: list[Seen], turns: list[Turn]) -> float:
    """Seconds after a switch at which the last request was sent that the version before it answered; 0 for none."""
    old = [0.0]
    for answer in seen:
        place = max(place for place, turn in enumerate(turns) if turn.at <= answer.sent)
        possible = {turn.version for turn in turns[place:] if turn.at <= answer.done + 0.001}
        if answer.body["version"] not in possible:
            old.append(answer.sent - turns[place].at)
    return max(old)


def _expected(releases: dict[int, Release], rows: list[dict[str, Any]]) -> dict[tuple[int, Row], dict[str, float]]:
    """By version and row: the probabilities that the Release itself gives."""
    told = {}
    for version, release in releases.items():
        shares = release.answer(
            typed_rows([list(row.values()) for row in rows], release.schema.inputs).frame
        ).probabilities
        assert shares is not None
        for row, share in zip(rows, shares.tolist(), strict=True):
            told[version, tuple(row.items())] = dict(zip(release.schema.labels, share, strict=True))
    return told


def _require_sound(
    seen: list[Seen], turns: list[Turn], expected: dict[tuple[int, Row], dict[str, float]], database: str
) -> None:
    assert {answer.status for answer in seen} == {200}
    logged = find(database, [answer.body["prediction_id"] for answer in seen])
    assert len(logged) == len(seen)
    for answer in seen:
        entry = logged[answer.body["prediction_id"]]
        assert (entry.version, entry.answer) == (answer.body["version"], answer.body)
        assert answer.body["probabilities"] == pytest.approx(
            expected[entry.version, tuple(entry.inputs.items())], abs=1e-6
        )
        last = max(place for place, turn in enumerate(turns) if turn.done <= answer.sent)
        possible = {turn.version for turn in turns[last:] if turn.at <= answer.done + 0.001}
        assert answer.body["version"] in possible, f"asked at {answer.sent:.3f}, of {turns[last:][:4]}"
    assert {answer.body["version"] for answer in seen} == {turn.version for turn in turns}
