"""`gauntlet promote` and `reject`, in this process: what is said before any engine starts, and a refusal."""

import json
import logging
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from flows.decide import waiting
from flows.monitor import monitor
from flows.release import promote_version
from flows.resolve import resolve_model
from flows.train import acting
from models.errors import ConfigError, WorkError
from stacks import keys, registry
from stacks.ledger import open_ledger, standing
from steps.promote import decide
from tests.flows.conftest import TOY, Invoke
from tests.steps.arena import Arena, config_of, evaluation_of, package_of


@pytest.fixture
def arena(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """A model with a YAML and a version that waits for a person."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("GAUNTLET_MODELS", str(tmp_path))
    made = Arena(tmp_path, dict(os.environ))
    (tmp_path / f"{made.model}.yaml").write_text(yaml.safe_dump({**TOY, "name": made.model}))
    made.add_versions(1)
    waiting = config_of(made.model, promotion={"approval": {"mode": "manual", "expires": "90d"}})
    decide(waiting, evaluation_of(made.model), package_of(1, made.model), why="nightly")
    return made


def test_reject_says_who_refused_and_history_keeps_it(
    arena: Arena, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.add("ada", "admin")
    shown = invoke(["show", arena.model]).json
    assert shown is not None and shown["challenger"] == 1
    assert shown["waits_until"] > "2026" and shown["expired"] is False
    (entry,) = open_ledger().history(arena.model)
    old = waiting(standing([replace(entry, time=entry.time - timedelta(days=91))]))
    assert (old["challenger"], old["expired"]) == (1, True)
    monkeypatch.setenv("GAUNTLET_KEY", secret)
    done = invoke(["reject", arena.model, "1", "--why", "too few rows"])
    assert done.code == 0, done.printed
    assert done.json is not None
    assert (done.json["verdict"], done.json["actor"], done.json["champion"]) == ("rejected", "key:ada", None)
    entries = invoke(["history", arena.model]).json["entries"]  # type: ignore[index]
    assert [(entry["action"], entry["why"]) for entry in entries] == [
        ("pending", "nightly"),
        ("reject", "too few rows"),
    ]
    assert secret[12:] not in done.printed + json.dumps(entries)
    again = invoke(["reject", arena.model, "1", "--why", "too few rows"])
    assert again.code == 1 and "does not wait for a person" in again.printed


@pytest.mark.parametrize("command", ["run", "promote", "reject", "rollback"])
def test_a_wrong_key_is_wrong_usage_and_nothing_starts(
    arena: Arena, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    _, secret = keys.add("shop", "predict")
    before = open_ledger().history(arena.model)
    monkeypatch.setenv("GAUNTLET_KEY", secret)
    rest = ["1", "--why", "x"] if command in ("promote", "reject") else []
    done = invoke([command, arena.model, *rest])
    assert done.code == 2
    assert done.json is not None and "the key 'shop' has the role predict" in done.json["error"]
    assert secret[12:] not in done.printed
    assert open_ledger().history(arena.model) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "MODEL", "1", "--why", " "], "--why is empty"),
        (["reject", "MODEL", "1", "--why", ""], "--why is empty"),
        (["promote", "nosuch", "1", "--why", "x"], "nosuch"),
        (["promote", "MODEL", "1"], "--why"),
        (["promote", "MODEL", "one", "--why", "x"], "VERSION"),
        (["reject", "MODEL", "0", "--why", "x"], "VERSION"),
    ],
)
def test_wrong_usage_is_exit_code_2(arena: Arena, invoke: Invoke, arguments: list[str], said: str) -> None:
    done = invoke([arena.model if word == "MODEL" else word for word in arguments])
    assert done.code == 2 and said in done.printed


def test_a_command_says_what_it_repaired_before_it_does_anything(
    arena: Arena, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> str:
        registry.client().set_registered_model_alias(arena.model, "challenger", "3")
        return f"repaired: {arena.model}: aliases"

    arena.add_versions(2)
    assert broken() in invoke(["reject", arena.model, "2", "--why", "x"]).printed
    assert registry.aliases(arena.model) == {"challenger": 1}
    said = broken()
    with caplog.at_level(logging.WARNING), pytest.raises(WorkError, match=r"v2 of .* was never judged"):
        promote_version(arena.model, 2, "x", (), "ada")
    assert said in caplog.messages
    caplog.clear()
    decide(config_of(arena.model), evaluation_of(arena.model), package_of(3, arena.model))
    said = broken()
    monkeypatch.setattr("flows.monitor.monitor_pipeline", None)
    with caplog.at_level(logging.WARNING), pytest.raises(AttributeError, match="with_options"):
        monitor.fn(arena.model)
    assert said in caplog.messages


def test_set_may_not_take_four_eyes_away(arena: Arena, tmp_path: Path) -> None:
    path = tmp_path / f"{arena.model}.yaml"
    path.write_text(yaml.safe_dump({**TOY, "name": arena.model, "promotion": {"four_eyes": True}}))
    assert resolve_model(arena.model, ["seed=3"]).config.promotion.four_eyes
    with pytest.raises(ConfigError, match=r"--set may not take promotion\.four_eyes away"):
        resolve_model(arena.model, ["promotion.four_eyes=false"])


@pytest.mark.parametrize(("asked", "given"), [("manual", "auto"), ("manual", "on_warning"), ("on_warning", "auto")])
def test_set_may_not_ask_fewer_people(arena: Arena, tmp_path: Path, asked: str, given: str) -> None:
    path = tmp_path / f"{arena.model}.yaml"
    path.write_text(yaml.safe_dump({**TOY, "name": arena.model, "promotion": {"approval": asked}}))
    said = rf"--set may not make promotion\.approval {given}, the YAML asks for {asked}"
    with pytest.raises(ConfigError, match=said):
        resolve_model(arena.model, [f"promotion.approval={given}"])
    with pytest.raises(ConfigError, match=said):
        resolve_model(arena.model, [f"promotion.approval.mode={given}"])
    path.write_text(yaml.safe_dump({**TOY, "name": arena.model, "promotion": {"approval": given}}))
    assert resolve_model(arena.model, [f"promotion.approval={asked}"]).config.promotion.approval.mode == asked


def test_a_parameter_does_not_make_anybody_the_owner_of_a_key(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = keys.add("ada", "admin")
    assert (acting("unverified:cron"), acting("cron")) == ("unverified:cron", "unverified:cron")
    with pytest.raises(ConfigError, match="set GAUNTLET_KEY to that key"):
        acting("key:ada")
    monkeypatch.setenv("GAUNTLET_KEY", secret)
    for given in ("key:ada", None, "somebody", "unverified:loop"):
        assert acting(given) == "key:ada", "four eyes: who has a key trains under no other name"
