"""What people have to say about a verdict: approval, overrides, four eyes, refusals; on the real engines."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError, WorkError
from stacks import keys, registry
from stacks.ledger import Entry, current_actor, open_ledger
from steps import promote as module
from steps.approve import Refused
from steps.promote import decide, repair
from steps.refuse import refuse
from tests.steps.arena import Arena, against, config_of, evaluation_of, package_of

FOUR_EYES = {"four_eyes": True}


@pytest.fixture
def arena(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """A model with two versions and a ledger of its own."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    made = Arena(tmp_path, dict(os.environ))
    made.add_versions(2)
    return made


def _decide(arena: Arena, version: int, evaluation: Any, promotion: Any = None, **asked: Any) -> Any:
    gates = {"accuracy": {"min": 0.8}, "p95_ms": {"max": 1, "blocking": False}}
    config = config_of(arena.model, gates=gates, promotion=promotion or {})
    return decide(config, evaluation, package_of(version, arena.model), **asked)


def _better(arena: Arena) -> Any:
    return against(1, 0.5, 0.9, arena.model)


def _last(arena: Arena) -> Entry:
    return open_ledger().history(arena.model)[-1]


@pytest.mark.parametrize(
    ("promotion", "decision", "rule"),
    [
        ({}, "promoted", ""),
        ({"approval": "manual"}, "pending", "promotion.approval is manual"),
        ({"approval": "on_warning"}, "pending", "promotion.approval is on_warning, and p95_ms failed"),
        (FOUR_EYES, "pending", "promotion.four_eyes: who ran the training may not promote"),
    ],
)
def test_who_agrees_to_a_promotion(arena: Arena, promotion: Any, decision: str, rule: str) -> None:
    verdict = _decide(arena, 1, evaluation_of(arena.model), promotion, flow_run="run-1")
    assert verdict.decision == decision and rule in verdict.reason
    entry, standing = _last(arena), open_ledger().standing(arena.model)
    if decision == "promoted":
        assert standing.champion == 1 and entry.waits_until is None
        return
    assert (verdict.champion, standing.champion, standing.challenger) == (None, None, 1)
    assert entry.waits_until == entry.time + timedelta(days=14)
    assert entry.payload["flow_run"] == "run-1"
    assert registry.aliases(arena.model) == {"challenger": 1}


def test_what_was_set_of_gates_and_promotion_is_in_the_ledger(arena: Arena) -> None:
    _decide(arena, 1, evaluation_of(arena.model), settings=("gates.accuracy.blocking=false",))
    assert _last(arena).payload["settings"] == ["gates.accuracy.blocking=false"]


def test_on_warning_asks_nobody_where_no_warning_failed(arena: Arena) -> None:
    package = package_of(1, arena.model, p95_ms=0.5)
    gates = {"p95_ms": {"max": 1, "blocking": False}}
    config = config_of(arena.model, gates=gates, promotion={"approval": "on_warning"})
    assert decide(config, evaluation_of(arena.model), package).decision == "promoted"


@pytest.mark.parametrize("mode", ["manual", "on_warning"])
def test_what_is_kept_or_rejected_asks_nobody(arena: Arena, mode: str) -> None:
    _decide(arena, 1, evaluation_of(arena.model))
    promotion = {"approval": mode}
    assert _decide(arena, 2, against(1, 0.9, 0.9, arena.model), promotion).decision == "kept"
    assert _decide(arena, 2, against(1, 0.9, 0.1, arena.model), promotion).decision == "rejected"


def test_a_pending_version_is_approved_by_promoting_it(arena: Arena) -> None:
    promotion = {"approval": "manual"}
    _decide(arena, 1, evaluation_of(arena.model), promotion, actor="ada")
    verdict = _decide(arena, 1, evaluation_of(arena.model), promotion, actor="bob", by_hand=True, why="looked at it")
    assert (verdict.decision, verdict.champion, verdict.reason) == (
        "promoted",
        1,
        "v1 was promoted by hand: v1 is the first champion",
    )
    entry = _last(arena)
    assert (entry.action, entry.actor, entry.why) == ("promote", "bob", "looked at it")
    assert (entry.payload["by_hand"], entry.payload["overridden"]) == (True, [])
    assert registry.aliases(arena.model) == {"champion": 1, "production": 1}
    with pytest.raises(WorkError, match=r"v1 is the champion of .* already"):
        _decide(arena, 1, evaluation_of(arena.model), promotion, by_hand=True)


def test_a_failed_gate_refuses_until_it_is_overridden_and_that_is_recorded(arena: Arena) -> None:
    _decide(arena, 1, evaluation_of(arena.model))
    weak = against(1, 0.5, 0.7, arena.model)
    with pytest.raises(Refused, match=r"v2 of .* is not promoted: accuracy: 0\.7, at least 0\.8 is asked.*--override"):
        _decide(arena, 2, weak, by_hand=True)
    assert len(open_ledger().history(arena.model)) == 1
    verdict = _decide(arena, 2, weak, by_hand=True, overrides=["accuracy", "smoke_test"])
    assert verdict.decision == "promoted"
    marks = {gate.name: (gate.verdict, gate.overridden) for gate in verdict.gates}
    assert marks["accuracy"] == ("failed", True)
    assert marks["smoke_test"] == ("passed", False), "nothing had to be overridden there"
    assert _last(arena).payload["overridden"] == ["accuracy"]
    assert "overridden: accuracy (0.7, at least 0.8 is asked)" in verdict.reason


def test_what_does_not_serve_is_promoted_by_nobody(arena: Arena) -> None:
    package = package_of(1, arena.model, smoke="the port never answered")
    asked: dict[str, Any] = {"by_hand": True, "overrides": ["smoke_test"]}
    with pytest.raises(Refused, match="does not serve, and no override changes that: the port never answered"):
        decide(config_of(arena.model), evaluation_of(arena.model), package, **asked)
    assert open_ledger().champion(arena.model) is None


def test_an_unknown_gate_is_an_error_that_lists_those_there_are(arena: Arena) -> None:
    with pytest.raises(ConfigError, match=r"no gate 'acuracy'; did you mean 'accuracy'\? \(there is: smoke_test"):
        _decide(arena, 1, evaluation_of(arena.model), by_hand=True, overrides=["acuracy"])
    assert open_ledger().history(arena.model) == ()


@pytest.mark.parametrize("evaluation", ["none", "other", "kept"])
def test_no_better_than_this_champion_needs_an_override(arena: Arena, evaluation: str) -> None:
    _decide(arena, 1, evaluation_of(arena.model))
    judged = {
        "none": evaluation_of(arena.model),
        "other": against(7, 0.5, 0.9, arena.model),
        "kept": against(1, 0.9, 0.9, arena.model),
    }[evaluation]
    with pytest.raises(Refused, match=r"--override improvement promotes it all the same, `gauntlet run") as refused:
        _decide(arena, 2, judged, by_hand=True)
    if evaluation == "other":
        assert "v1 is champion now, but v7 was champion when it was evaluated" in str(refused.value)
    verdict = _decide(arena, 2, judged, by_hand=True, overrides=["improvement"])
    assert (verdict.decision, verdict.former, open_ledger().champion(arena.model)) == ("promoted", 1, 2)
    assert _last(arena).payload["overridden"] == ["improvement"]


def test_an_expired_approval_is_refused_and_a_new_judgement_waits_anew(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion = {"approval": {"mode": "manual", "expires": "30m"}}
    _decide(arena, 1, evaluation_of(arena.model), promotion)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(minutes=31)

    with monkeypatch.context() as later:
        later.setattr(module, "datetime", Later)
        with pytest.raises(Refused, match=r"waited for a person until .* and has expired .*`gauntlet run"):
            _decide(arena, 1, evaluation_of(arena.model), promotion, by_hand=True, overrides=["improvement"])
    _decide(arena, 1, evaluation_of(arena.model), promotion)
    waits = _last(arena).waits_until
    assert waits is not None and waits > datetime.now(UTC) + timedelta(minutes=29)
    assert _decide(arena, 1, evaluation_of(arena.model), promotion, by_hand=True).decision == "promoted"


def test_four_eyes_refuses_the_trainer_and_whoever_has_no_key(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {name: keys.add(name, "admin")[1] for name in ("ada", "bob")}

    def by_hand() -> Any:
        return _decide(arena, 1, evaluation_of(arena.model), FOUR_EYES, by_hand=True)

    monkeypatch.setenv("GAUNTLET_KEY", secrets["ada"])
    assert _decide(arena, 1, evaluation_of(arena.model), FOUR_EYES).decision == "pending"
    assert _last(arena).actor == "key:ada"
    with pytest.raises(Refused, match=r"promotion\.four_eyes: key:ada ran the training of v1"):
        by_hand()
    monkeypatch.delenv("GAUNTLET_KEY")
    with pytest.raises(Refused, match=r"promotion\.four_eyes: unverified:\w+ is not known by a key"):
        by_hand()
    monkeypatch.setenv("GAUNTLET_KEY", secrets["bob"])
    assert by_hand().decision == "promoted"
    assert _last(arena).actor == "key:bob"
    assert secrets["bob"][12:] not in str(open_ledger().history(arena.model))


def test_a_refused_version_waits_no_more_and_may_be_promoted_later(arena: Arena) -> None:
    promotion = {"approval": "manual"}
    _decide(arena, 1, evaluation_of(arena.model), promotion, request="training", flow_run="run-1")
    entry = refuse(arena.model, 1, why="the data looked odd", actor="bob")
    assert (entry.action, entry.actor, entry.why) == ("reject", "bob", "the data looked odd")
    assert entry.payload["verdict"]["decision"] == "rejected"
    assert entry.waits_until is None and "flow_run" not in entry.payload
    repair(arena.model)
    assert registry.aliases(arena.model) == {}
    assert registry.version(arena.model, 1).tags["gauntlet.reason"].startswith("rejected: refused by bob")
    with pytest.raises(WorkError, match=r"v1 of .* does not wait for a person .* waiting: none"):
        refuse(arena.model, 1)
    assert _decide(arena, 1, evaluation_of(arena.model), promotion, by_hand=True).decision == "promoted"


def test_of_two_that_wait_the_older_is_superseded_and_the_history_says_so(arena: Arena) -> None:
    promotion = {"approval": "manual"}
    _decide(arena, 1, evaluation_of(arena.model), promotion)
    for _ in range(2):
        _decide(arena, 2, evaluation_of(arena.model), promotion, request="second")
    actions = [(entry.action, entry.version, entry.why) for entry in open_ledger().history(arena.model)]
    assert actions[1:] == [("pending", 2, ""), ("reject", 1, "superseded by v2, which waits now")]
    assert open_ledger().history(arena.model)[-1].payload["superseded_by"] == 2
    assert open_ledger().standing(arena.model).challenger == 2
    assert registry.aliases(arena.model) == {"challenger": 2}
    assert repair() == ()


@pytest.mark.parametrize("by_hand", [True, False])
def test_what_waits_is_superseded_by_a_promotion_too_and_what_waits_since_is_not(arena: Arena, by_hand: bool) -> None:
    arena.add_versions(1)
    _decide(arena, 1, evaluation_of(arena.model))
    better = against(1, 0.5, 0.9, arena.model)
    assert _decide(arena, 2, better, {"approval": "manual"}, flow_run="r2").decision == "pending"
    promoted = _decide(arena, 3, better, by_hand=by_hand, why="it is better", actor="ada", request="third")
    assert promoted.decision == "promoted"
    refused = _last(arena)
    assert (refused.action, refused.version, refused.actor) == ("reject", 2, "ada")
    assert refused.why == refused.payload["verdict"]["reason"] == "superseded by v3, which is champion now"
    assert refused.payload["superseded_by"] == 3 and "flow_run" not in refused.payload
    assert registry.aliases(arena.model) == {"champion": 3, "production": 3, "previous": 1}
    assert _decide(arena, 2, against(3, 0.5, 0.9, arena.model), {"approval": "manual"}).decision == "pending"
    _decide(arena, 3, better, by_hand=by_hand, request="third")
    assert open_ledger().standing(arena.model).waiting == (2,), "asked twice, the promotion refuses nobody else"
    assert open_ledger().verify() == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unknown", "there is no such key in this database"),
        ("empty", "there is no such key in this database"),
        ("expired", "that key has expired"),
        ("revoked", "that key was revoked"),
        ("predict", "the key 'shop' has the role predict; this needs an admin's"),
    ],
)
def test_a_wrong_key_is_never_a_fallback(arena: Arena, monkeypatch: pytest.MonkeyPatch, state: str, said: str) -> None:
    span = timedelta(microseconds=1) if state == "expired" else None
    _, secret = keys.add("shop", "predict" if state == "predict" else "admin", valid_for=span)
    if state == "revoked":
        keys.revoke("shop")
    presented = {"unknown": "gk_aaaaaaaa_" + "b" * 43, "empty": ""}.get(state, secret)
    before = open_ledger().history("")
    monkeypatch.setenv("GAUNTLET_KEY", presented)
    for act in (
        lambda: _decide(arena, 1, evaluation_of(arena.model)),
        lambda: open_ledger().append("retire", arena.model, 1),
        lambda: keys.add("other", "admin"),
        current_actor,
    ):
        with pytest.raises(ConfigError, match=said) as error:
            act()
        assert error.value.exit_code == 2
        assert secret[12:] not in str(error.value)
    monkeypatch.delenv("GAUNTLET_KEY")
    assert (open_ledger().history(arena.model), open_ledger().history("")) == ((), before)
