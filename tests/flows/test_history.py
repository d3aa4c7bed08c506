"""`gauntlet history`, `show` and `retire` through the real command, on a ledger of one's own."""

import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacks import registry
from stacks.ledger import open_ledger
from stacks.registry import SEMVER_TAG
from tests.flows.conftest import TOY, Invoke
from tests.steps.arena import Arena, against, config_of, evaluation_of, package_of

SEMVERS = {1: "1.0.0", 2: "2.0.0", 3: "2.0.1", 4: "2.1.0"}


def _crowned(folder: Path, patch: pytest.MonkeyPatch) -> Arena:
    """A model with a YAML: v1 to v3 were promoted, v4 has no verdict yet."""
    from steps.promote import decide, repair

    patch.setenv("GAUNTLET_DATABASE", f"sqlite:///{folder / 'ledger.db'}")
    patch.setenv("GAUNTLET_MODELS", str(folder))
    made = Arena(folder, dict(os.environ))
    (folder / f"{made.model}.yaml").write_text(yaml.safe_dump({**TOY, "name": made.model}))
    made.add_versions(4)
    for version, label in SEMVERS.items():
        registry.set_tag(made.model, version, SEMVER_TAG, label)
    for version in (1, 2, 3):
        judged = evaluation_of(made.model) if version == 1 else against(version - 1, 0.5, 0.9, made.model)
        assert decide(config_of(made.model), judged, package_of(version, made.model)).decision == "promoted"
    repair(made.model)
    return made


@pytest.fixture(scope="module")
def arena(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """For the tests that read."""
    with pytest.MonkeyPatch.context() as patch:
        yield _crowned(tmp_path_factory.mktemp("read"), patch)


def test_states_and_labels_are_shown_and_in_the_json(arena: Arena, invoke: Invoke) -> None:
    states = {1: "validation", 2: "staging", 3: "production", 4: "experimentation"}
    shown = invoke(["show", arena.model])
    assert shown.json is not None, shown.printed
    found = {each["version"]: (each["state"], each["semver"]) for each in shown.json["versions"]}
    assert found == {version: (state, SEMVERS[version]) for version, state in states.items()}
    told = invoke(["history", arena.model])
    assert told.json is not None, told.printed
    wanted = [{"version": v, "semver": SEMVERS[v], "state": states[v]} for v in (1, 2, 3)]
    assert told.json["versions"] == wanted
    assert [entry["payload"]["semver"] for entry in told.json["entries"]] == ["1.0.0", "2.0.0", "2.0.1"]


def test_the_whole_ledger_is_exported_as_it_is_hashed(arena: Arena, invoke: Invoke) -> None:
    open_ledger().append("key", "", None, why="größer")
    done = invoke(["history", "--all"])
    assert done.json is not None, done.printed
    assert done.json["genesis"] == "0" * 64
    entries: list[dict[str, Any]] = done.json["entries"]
    assert [entry["sequence"] for entry in entries] == [1, 2, 3, 4]
    assert (entries[3]["model"], entries[3]["version"], entries[3]["why"]) == ("", None, "größer")
    assert all(isinstance(json.loads(entry["payload"]), dict) for entry in entries)
    assert entries == open_ledger().export()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["history"], "name a MODEL, or give --all"),
        (["history", "toy", "--all"], "--all is the whole ledger"),
        (["history", "--all", "--at", "2026-01-01"], "--all is the whole ledger"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str, invoke: Invoke) -> None:
    done = invoke(arguments)
    assert done.code == 2
    assert done.json is not None
    assert said in done.json["error"]


@pytest.fixture
def kolkata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine lies in Kolkata, five and a half hours before UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


def test_who_was_champion_at_a_time(arena: Arena, invoke: Invoke, kolkata: None) -> None:
    first, second, _ = open_ledger().history(arena.model)
    local = first.time.astimezone().replace(tzinfo=None)
    assert local - first.time.replace(tzinfo=None) == timedelta(hours=5, minutes=30)
    champions: dict[str, int | None] = {
        first.time.isoformat(): 1,
        second.time.isoformat().replace("+00:00", "Z"): 2,
        local.isoformat(): 1,
        "2001-01-01": None,
        "0001-01-01T00:00:00Z": None,
        "0999-12-31T23:59:59+00:00": None,
    }
    for at, champion in champions.items():
        done = invoke(["history", arena.model, "--at", at])
        assert done.json is not None, done.printed
        assert done.json["champion"] == champion, at
    for at, said in (
        ("yesterday", "is no time"),
        ("0001-01-01T00:00:00+14:00", "is no time"),
        ("9999-12-31T23:59:59-12:00", "is no time"),
        ("2999-01-01", "lies ahead"),
        ("", "is no time"),
    ):
        done = invoke(["history", arena.model, "--at", at])
        assert (done.code, done.json is not None) == (2, True), at
        assert said in str(done.json), at


def test_a_version_is_retired_and_what_a_crash_left_of_another_is_finished(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    model = _crowned(tmp_path, monkeypatch).model
    for version, said in (("3", "is the champion"), ("2", "is what a rollback returns to"), ("9", "has no version 9")):
        refused = invoke(["retire", model, version])
        assert refused.code == 1
        assert refused.json is not None
        assert said in refused.json["error"]
    done = invoke(["retire", model, "4", "--why", "nobody asked for it"])
    assert done.json is not None, done.printed
    assert (done.json["state"], done.json["was"], done.json["semver"]) == ("retired", "experimentation", "2.1.0")
    assert done.json["why"] == "nobody asked for it"
    # What a kill right after the ledger's entry leaves, and somebody who sets an alias by hand.
    open_ledger().append("retire", model, 1)
    registry.client().set_registered_model_alias(model, "champion", "1")
    back = invoke(["rollback", model, "--to", "1"])
    assert back.code == 1
    assert back.json is not None
    assert "is retired; roll back to another" in back.json["error"]
    assert f"repaired: {model}: aliases" in back.printed
    assert f"repaired: {model} v1: retired, its evidence archived, its files deleted" in back.printed
    assert (open_ledger().champion(model), registry.aliases(model)["champion"]) == (3, 3)
