"""Rollbacks of the loop: a champion below its floor beside the one before it, with real Releases in real stores."""

import json
import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.outcomes import OutcomeItem, record
from bentos.release import Release
from flows import retrain
from flows.retrain import act
from models.config import Layer, ModelConfig, resolve
from models.errors import WorkError
from stacks import registry
from stacks.findings import Finding, Findings, record_findings
from stacks.ledger import Conflict, open_ledger
from steps.caching import parameter
from steps.deploy import publish
from steps.families import build_pipeline
from steps.promote import decide
from steps.rescore import below_floor
from steps.respond import LOOP, respond_to
from steps.response import Response
from steps.window import read_window
from tests.bentos.samples import HOUSES, frame_of, write
from tests.steps.arena import Arena, against, config_of, evaluation_of, package_of
from tests.steps.served import answers_of, batch_of, log_batches

NOW = datetime(2026, 11, 2, 4, tzinfo=UTC)
WEEK = timedelta(days=7)
ROWS = 150


def houses(name: str, **monitoring: Any) -> ModelConfig:
    own = {"gates": {"r2": {"min": 0.8}}, "monitoring": {"min_rows": 100, "min_labels": 100, **monitoring}}
    return resolve([Layer("test", {**HOUSES, "name": name}), Layer("test", own)]).config


@lru_cache
def releases(folder: Path) -> dict[str, Path]:
    """A sound model, one that was trained on shuffled prices, and one that reads a column more."""
    frame = frame_of("houses")
    shuffled = frame.assign(price=np.random.default_rng(1).permutation(frame["price"].to_numpy()))
    columns = {**HOUSES["columns"], "garden": {"type": "number"}}
    wide = resolve([Layer("test", {**HOUSES, "columns": columns})]).config
    grown = frame.assign(garden=np.arange(len(frame), dtype=float))
    made = {
        "sound": write(folder / "sound", "houses", "linear_regression"),
        "shuffled": _fitted(folder / "shuffled", houses("houses"), shuffled),
        "wide": _fitted(folder / "wide", wide, grown),
    }
    return {name: release.directory for name, release in made.items()}


def _fitted(folder: Path, config: ModelConfig, train: pd.DataFrame) -> Release:
    pipeline = build_pipeline(config, "linear_regression", {}).fit(train, train["price"].to_numpy())
    return write(folder, "houses", "linear_regression", pipeline=pipeline, config=config, train=train)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def arena(home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    return Arena(tmp_path, dict(os.environ))


def crown(arena: Arena, *paths: Path) -> None:
    """Promote a version with each of these Releases, one after the other."""
    for path in paths:
        arena.add_versions(1, path)
        score = 0.5 + arena.count / 10
        judged = evaluation_of(arena.model)
        if arena.count > 1:
            judged = against(arena.count - 1, score - 0.1, score, arena.model, challenger={"accuracy": 0.9})
        verdict = decide(config_of(arena.model), judged, package_of(arena.count, arena.model))
        assert verdict.decision == "promoted"
        publish(arena.model)


def serve(url: str, path: Path, version: int, labels: int = ROWS) -> None:
    """Rows that a version answered in the week, and what came true of some."""
    release = Release.open(path)
    rows = frame_of("houses").tail(ROWS).reset_index(drop=True)
    said = answers_of(release.schema, release.answer(rows).values)
    log_batches(url, [batch_of(release.schema, rows, said, NOW - WEEK / 2, version=version)])
    ids = read_window(url, release.schema, NOW, WEEK, 1).ids
    prices = rows["price"].tolist()
    items = [OutcomeItem(prediction_id=i, outcome=p) for i, p in zip(ids[:labels], prices[:labels], strict=True)]
    record(url, items, (NOW - WEEK / 4).timestamp())


def performance(model: str, version: int, ends: datetime = NOW, **figures: float) -> Finding:
    told = {"r2": 0.0, "r2_low": -0.1, "r2_high": 0.1, "labels": float(ROWS), **figures}
    return Finding(
        model=model,
        version=version,
        check="performance",
        since=ends - WEEK,
        until=ends,
        looked=ends,
        state="found",
        said="r2 is 0.00, on the holdout it was 0.95",
        figures=told,
    )


def look(config: ModelConfig, finding: Finding, now: datetime = NOW) -> Response:
    record_findings(open_ledger(), [finding])
    return respond_to(config, Findings(of=(finding,)), now)


def test_a_champion_below_its_floor_gives_way_to_one_that_does_better(
    arena: Arena, url: str, made: dict[str, Path]
) -> None:
    crown(arena, made["sound"], made["shuffled"])
    serve(url, made["shuffled"], 2)
    config = houses(arena.model)
    response = look(config, performance(arena.model, 2))
    assert (response.decision, response.to, response.checks) == ("rollback", 1, ("performance",))
    assert (
        "below its floor: r2 is at most 0.1 on 150 labelled rows to 2026-11-02, at least 0.8 is asked" in response.why
    )
    assert "on the same 150 rows v1 has r2 0.9" in response.why and "it is better by at least" in response.why
    entry = open_ledger().history(arena.model)[-1]
    assert (entry.action, entry.actor, entry.payload["to"]) == ("monitor", LOOP, 1)
    assert entry.payload["rescored"]["difference_low"] > 0 and entry.payload["rescored"]["rows"] == ROWS
    assert [f["check"] for f in entry.payload["findings"]] == ["performance"]

    second = look(config, performance(arena.model, 2, NOW + timedelta(minutes=5)), NOW + timedelta(minutes=5))
    assert (second.decision, second.reasons) == ("wait", ("floor", "rollback"))

    done = act(parameter(config.model_dump(mode="json")), response)
    assert (done["decision"], done["champion"], done["former"]) == ("rollback", 1, 2)
    rolled = open_ledger().history(arena.model)[-1]
    assert (rolled.action, rolled.version, rolled.actor, rolled.payload) == ("rollback", 1, LOOP, {"from": 2})
    assert rolled.why == f"{response.why} (monitor entry {entry.sequence})"
    assert registry.aliases(arena.model)["champion"] == 1
    with pytest.raises(WorkError, match=r"v2 of .* was to be rolled back, but the champion is v1 by now"):
        act(parameter(config.model_dump(mode="json")), response)


def test_one_that_was_promoted_after_the_decision_is_not_rolled_back(
    arena: Arena, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(arena, made["sound"], made["shuffled"])
    decided = Response(model=arena.model, version=2, decision="rollback", why="below its floor", to=1, budget_left=4)
    monkeypatch.setattr(retrain, "repair_first", lambda model: open_ledger().append("promote", model, 3))
    with pytest.raises(Conflict, match="the champion is v3 by now"):
        retrain.act("{}", decided)
    assert open_ledger().champion(arena.model) == 3


def test_one_that_is_no_better_stays_where_it_is(arena: Arena, url: str, made: dict[str, Path]) -> None:
    crown(arena, made["shuffled"], made["shuffled"])
    serve(url, made["shuffled"], 2)
    response = look(houses(arena.model), performance(arena.model, 2))
    assert (response.decision, response.to, response.reasons) == ("watch", None, ("floor",))
    assert "not surely better" in response.why


@pytest.mark.parametrize(
    ("before", "labels", "said"),
    [
        ("wide", ROWS, "v1 cannot be compared: the rows lack 1 columns that it reads: garden"),
        ("sound", 40, "only 40 rows that v2 answered have an outcome now"),
    ],
)
def test_rows_that_cannot_be_scored_again_roll_nothing_back(
    arena: Arena, url: str, made: dict[str, Path], before: str, labels: int, said: str
) -> None:
    crown(arena, made[before], made["shuffled"])
    serve(url, made["shuffled"], 2, labels)
    response = look(houses(arena.model), performance(arena.model, 2))
    assert response.decision == "watch" and said in response.why


def test_without_a_champion_before_there_is_nothing_to_go_back_to(arena: Arena, made: dict[str, Path]) -> None:
    crown(arena, made["shuffled"])
    assert "there is no champion before it" in look(houses(arena.model), performance(arena.model, 1)).why


def test_what_was_rolled_back_is_not_returned_to_by_the_loop(arena: Arena, made: dict[str, Path]) -> None:
    crown(arena, made["sound"], made["sound"])
    ledger = open_ledger()
    ledger.append("rollback", arena.model, 1, payload={"from": 2})
    ledger.append("promote", arena.model, 2, why="a person thought better of it")
    ledger.append("promote", arena.model, 3)
    assert ledger.previous(arena.model) == 2
    response = look(houses(arena.model), performance(arena.model, 3))
    assert response.decision == "watch" and "v2, the champion before it, was rolled back itself" in response.why


def test_a_version_that_is_gone_is_said(arena: Arena, made: dict[str, Path]) -> None:
    crown(arena, made["sound"], made["shuffled"])
    registry.delete_version(arena.model, 1)
    response = look(houses(arena.model), performance(arena.model, 2))
    assert response.decision == "watch" and "v1 could not be scored on the same rows" in response.why


def test_switched_off_or_without_this_looks_performance_nothing_is_rescored(
    arena: Arena, url: str, made: dict[str, Path]
) -> None:
    crown(arena, made["sound"], made["shuffled"])
    serve(url, made["shuffled"], 2)
    finding = performance(arena.model, 2)
    assert look(houses(arena.model, rollback=False), finding).reasons == ()
    assert respond_to(houses(arena.model), Findings(), NOW).decision == "watch"
    assert respond_to(houses(arena.model), Findings(of=(finding,)), NOW).decision == "rollback"


@pytest.mark.parametrize(
    ("gate", "figures", "below"),
    [
        ({"min": 0.8}, {}, True),
        ({"min": 0.8}, {"r2_high": 0.81}, False),
        ({"min": 0.8}, {"labels": 99.0}, False),
        ({"min": 0.8, "blocking": False}, {}, False),
        (None, {}, False),
    ],
)
def test_the_near_end_of_the_interval_and_enough_labels_decide(gate: Any, figures: Any, below: bool) -> None:
    config = houses("houses")
    gates = {} if gate is None else {"r2": gate}
    config = ModelConfig.model_validate_json(json.dumps({**config.model_dump(mode="json"), "gates": gates}))
    assert bool(below_floor(config, performance("houses", 1, **figures))) is below


def test_of_an_error_the_lower_end_counts() -> None:
    config = houses("houses").model_dump(mode="json")
    config = {**config, "metric": "mae", "gates": {"mae": {"max": 10.0}}}
    parsed = ModelConfig.model_validate_json(json.dumps(config))
    assert "mae is at least 11" in below_floor(parsed, performance("houses", 1, mae=12, mae_low=11, mae_high=13))
    assert not below_floor(parsed, performance("houses", 1, mae=12, mae_low=9, mae_high=13))
    assert not below_floor(parsed, None)
