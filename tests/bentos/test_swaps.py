"""Champions are replaced under load: no request fails, none is answered by an old version, every answer is logged."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bentos.inputs import typed_rows
from bentos.predictions import find
from bentos.release import Release
from stacks.handover import SWITCHES
from stacks.ledger import Ledger
from tests.bentos.following import Clients, Seen, Service, crown, following, is_ready
from tests.bentos.samples import write

Row = tuple[tuple[str, Any], ...]

MODEL = "wine"
WITHIN = 2.0


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Release]:
    folder = tmp_path_factory.mktemp("registry")
    families: list[Any] = ["logistic_regression", "random_forest", "xgboost"]
    return {number: write(folder / family, MODEL, family) for number, family in enumerate(families, 1)}


def test_swaps_and_a_rollback_under_load(tmp_path: Path, releases: dict[int, Release]) -> None:
    _, turns = _swap(tmp_path, releases, swaps=4, clients=8)
    assert len(turns) == 5


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_fifty_swaps_under_a_hundred_clients(
    tmp_path: Path, releases: dict[int, Release], proof: Callable[[str, object, str], None]
) -> None:
    seen, turns = _swap(tmp_path, releases, swaps=50, clients=100)
    back = max(turn.seconds for number, turn in enumerate(turns[1:]) if number % 3 == 2)
    proof("champion swaps under 100 clients: no answer failed or was of a version that had gone", 50, f"{seen:,}")
    proof(
        "from a rollback's entry in the ledger to the moment at which all switch, under that load", 16, f"{back:.2f} s"
    )


@dataclass(frozen=True)
class Turn:
    """A version's turn to answer.

    Attributes:
        version: Its number.
        at: When all were told to switch to it, in seconds since 1970.
        seconds: From the ledger's entry to that moment.
    """

    version: int
    at: float
    seconds: float


def _swap(folder: Path, releases: dict[int, Release], swaps: int, clients: int) -> tuple[int, list[Turn]]:
    """Crown one version after the other while clients ask; how many answers were seen, and the swaps."""
    ledger = Ledger(f"sqlite:///{folder / 'gauntlet.db'}")
    crown(ledger, 1, releases[1])
    rows = [golden.inputs for golden in releases[1].golden]
    turns = [Turn(1, 0.0, 0.0)]
    with following(folder, GAUNTLET_SERVE=MODEL, GAUNTLET_ACCESS_LOG="off") as service:
        service.until(lambda: is_ready(service) and service.versions() == {1}, 180)
        with Clients(service.port, "/predict", rows, clients, pause=0.02) as asking:
            turns += [_turn(ledger, releases, number, service) for number in range(swaps)]
            time.sleep(WITHIN)
        _require_sound(asking.seen, turns, _expected(releases, rows), service.database)
    return len(asking.seen), turns


def _turn(ledger: Ledger, releases: dict[int, Release], number: int, service: Service) -> Turn:
    """One swap; each third one is a rollback."""
    champion = ledger.champion(MODEL)
    assert champion is not None
    back = ledger.previous(MODEL) if number % 3 == 2 else None
    version = back or champion % 3 + 1
    entry = crown(ledger, version, releases[version], "rollback" if back else "promote")
    service.until(lambda: service.versions() == {version}, 120)
    with ledger.reading() as connection:
        at = connection.scalar(sa.select(SWITCHES.c.at).where(SWITCHES.c.sequence == entry.sequence))
    assert at is not None
    return Turn(version, at, at - entry.time.timestamp())


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
        last = max(place for place, turn in enumerate(turns) if turn.at <= answer.sent - WITHIN)
        possible = {turn.version for turn in turns[last:] if turn.at <= answer.done + 0.001}
        assert answer.body["version"] in possible, f"asked at {answer.sent:.3f}, of {turns[last:][:4]}"
    assert {answer.body["version"] for answer in seen} == {turn.version for turn in turns}
