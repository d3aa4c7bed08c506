import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from models.errors import WorkError
from stacks import registry
from stacks.ledger import Conflict, Ledger, open_ledger
from steps import promote as module
from steps.build import bento_version
from steps.deploy import publish, stage, store_dir
from steps.doctor import check_retired
from steps.promote import decide, repair, rollback
from tests.steps.arena import Arena, against, config_of, evaluation_of, package_of, say, start_script


@pytest.fixture
def arena(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """A model with three versions and a ledger of its own."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    made = Arena(tmp_path, dict(os.environ))
    made.add_versions(3)
    return made


def _decide(arena: Arena, version: int, evaluation: Any, **kwargs: Any) -> Any:
    return decide(config_of(arena.model), evaluation, package_of(version, arena.model), **kwargs)


def _crown(arena: Arena, *versions: int) -> None:
    """Promote versions one after the other, each clearly better than the one before."""
    champion = None
    for version in versions:
        score = 0.5 + version / 10
        evaluation = (
            against(champion, score - 0.1, score, arena.model, challenger={"accuracy": 0.9})
            if champion
            else evaluation_of(arena.model)
        )
        assert _decide(arena, version, evaluation).decision == "promoted"
        publish(arena.model)
        champion = version


def _latest(arena: Arena) -> str:
    return (store_dir() / arena.model / "latest").read_text()


def _assert_agreed(arena: Arena, champion: int | None, previous: int | None) -> None:
    """Ledger, aliases, states and `latest` say the same, and nothing is left to repair."""
    ledger = open_ledger()
    assert ledger.verify() == []
    assert (ledger.champion(arena.model), ledger.previous(arena.model)) == (champion, previous)
    wanted = {"champion": champion, "production": champion, "previous": previous}
    assert registry.aliases(arena.model) == {alias: number for alias, number in wanted.items() if number}
    states = ledger.standing(arena.model).states
    tags = {v.number: v.tags.get("gauntlet.state") for v in registry.versions(arena.model)}
    assert {number: tags[number] for number in states} == states
    if champion:
        assert _latest(arena) == bento_version(champion)
    assert repair() == ()


def test_a_promotion_is_in_ledger_aliases_tags_and_evidence(arena: Arena, tmp_path: Path) -> None:
    verdict = _decide(arena, 1, evaluation_of(arena.model), why="the first", actor="ada")
    assert (verdict.decision, verdict.sequence) == ("promoted", 1)
    (entry,) = open_ledger().history(arena.model)
    assert (entry.action, entry.version, entry.why, entry.actor) == ("promote", 1, "the first", "ada")
    assert entry.payload["verdict"] == json.loads(verdict.model_dump_json(exclude={"sequence"}))
    publish(arena.model)
    _assert_agreed(arena, 1, None)
    evidence = registry.fetch_file(arena.model, 1, "evidence/verdict-000001.json", tmp_path / "fetched")
    assert json.loads(evidence.read_text()) == json.loads(verdict.model_dump_json())


def test_losers_keep_their_evidence_and_their_state(arena: Arena, tmp_path: Path) -> None:
    _crown(arena, 1)
    kept = _decide(arena, 2, against(1, 0.9, 0.9, arena.model))
    rejected = _decide(arena, 3, against(1, 0.9, 0.1, arena.model))
    assert (kept.decision, rejected.decision) == ("kept", "rejected")
    publish(arena.model)
    _assert_agreed(arena, 1, None)
    for number, word, sequence, state in [(2, "kept", 2, "validation"), (3, "rejected", 3, "development")]:
        tags = registry.version(arena.model, number).tags
        assert tags["gauntlet.state"] == state
        assert tags["gauntlet.reason"].startswith(word)
        path = f"evidence/verdict-{sequence:06d}.json"
        evidence = json.loads(registry.fetch_file(arena.model, number, path, tmp_path).read_text())
        assert [gate["name"] for gate in evidence["gates"]][:2] == ["smoke_test", "beats_dummy"]


def test_evidence_of_every_verdict_is_written_whatever_the_ledger_says_after_it(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after the ledger's entry, and the loop writes before anybody repairs."""
    with monkeypatch.context() as killed:
        killed.setattr(module, "_mirror", lambda *_: None)
        _decide(arena, 1, evaluation_of(arena.model, champion_version=None), why="the first")
        _decide(arena, 1, evaluation_of(arena.model))
    open_ledger().append("monitor", arena.model, 1, payload={"decision": "watch"})
    said = repair(arena.model)
    name = f"{arena.model} v1"
    assert [f"{name}: evidence of entry {number}" in said for number in (1, 2, 3)] == [True, True, False]
    for sequence, decision in ((1, "promoted"), (2, "kept")):
        path = registry.fetch_file(arena.model, 1, f"evidence/verdict-{sequence:06d}.json", tmp_path / "fetched")
        assert json.loads(path.read_text())["decision"] == decision
        card = registry.fetch_file(arena.model, 1, f"evidence/card-{sequence:06d}.md", tmp_path / "fetched")
        assert decision in card.read_text().lower()
    assert registry.version(arena.model, 1).tags["gauntlet.reason"].startswith("kept")
    _assert_agreed(arena, 1, None)


def test_what_waits_for_a_person_is_the_challenger(arena: Arena) -> None:
    _crown(arena, 1)
    assert _decide(arena, 2, evaluation_of(arena.model)).decision == "pending"
    assert registry.aliases(arena.model) == {"champion": 1, "production": 1, "challenger": 2}
    assert _decide(arena, 2, against(1, 0.5, 0.9, arena.model)).decision == "promoted"
    publish(arena.model)
    _assert_agreed(arena, 2, 1)


def test_a_retry_of_the_same_request_gets_the_verdict_it_has(arena: Arena) -> None:
    first = _decide(arena, 1, evaluation_of(arena.model), request="run-1")
    assert _decide(arena, 1, evaluation_of(arena.model), request="run-1") == first
    again = _decide(arena, 1, evaluation_of(arena.model), request="run-2")
    assert (first.decision, again.decision) == ("promoted", "kept")
    assert len(open_ledger().history(arena.model)) == 2


def test_a_figure_that_is_no_number_is_no_json_in_the_ledger(arena: Arena) -> None:
    evaluation = evaluation_of(arena.model, challenger={"accuracy": 0.9, "roc_auc": math.nan, "log_loss": math.inf})
    _decide(arena, 1, evaluation)
    assert open_ledger().history(arena.model)[0].payload["metrics"] == {"accuracy": 0.9}


def test_a_champion_that_changes_while_judging_is_judged_anew(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    _crown(arena, 1)
    judged: list[int | None] = []
    real = module.judge

    def overtaken(config: Any, evaluation: Any, package: Any, champion: int | None) -> Any:
        if not judged:
            open_ledger().append("promote", arena.model, 3, why="somebody else was faster")
        judged.append(champion)
        return real(config, evaluation, package, champion)

    monkeypatch.setattr(module, "judge", overtaken)
    verdict = _decide(arena, 2, against(1, 0.5, 0.9, arena.model))
    assert judged == [1, 3]
    assert (verdict.decision, verdict.champion) == ("pending", 3)
    assert "v3 is champion now, but v1 was champion when it was evaluated" in verdict.reason


PROMOTER = """
import json, sys
from steps.promote import decide
from steps.deploy import publish
from tests.steps.arena import against, config_of, package_of

model, version = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
verdict = decide(config_of(model), against(1, 0.5, 0.9, model), package_of(version, model))
publish(model)
print(verdict.model_dump_json())
"""


def test_of_two_promotions_at_once_one_wins(arena: Arena) -> None:
    _crown(arena, 1)
    racers = [start_script(arena.folder, PROMOTER, arena.model, str(version)) for version in (2, 3)]
    for racer in racers:
        say(racer)
    verdicts = [json.loads(racer.communicate(timeout=100)[0].splitlines()[-1]) for racer in racers]
    assert sorted(verdict["decision"] for verdict in verdicts) == ["pending", "promoted"]
    winner = next(verdict["version"] for verdict in verdicts if verdict["decision"] == "promoted")
    loser = 5 - winner
    assert registry.aliases(arena.model) == {
        "champion": winner,
        "production": winner,
        "previous": 1,
        "challenger": loser,
    }
    assert _latest(arena) == bento_version(winner)
    assert repair() == ()
    assert open_ledger().verify() == []


# Lives through all rounds: for each line it reads it decides on one version, as a run does, and says what came of it.
DECIDER = """
import json, sys
from steps.deploy import publish
from steps.promote import decide
from tests.steps.arena import against, config_of, package_of

print("ready", flush=True)
for line in sys.stdin:
    model, version, champion = json.loads(line)
    verdict = decide(config_of(model), against(champion, 0.5, 0.9, model), package_of(version, model))
    publish(model)
    print("decided", verdict.decision, flush=True)
"""
RACERS, ROUNDS = 8, 50


@pytest.mark.prove
@pytest.mark.timeout(3_400)
def test_of_eight_processes_one_wins_each_of_fifty_rounds(
    url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: Callable[[str, object, str], None]
) -> None:
    """Real decisions on the real MLflow store and the real BentoML store: all judged against the same champion.

    Who comes second was compared with a champion that is none any more: it waits for a person, until the next one does.
    """
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    arena = Arena(tmp_path, dict(os.environ))
    arena.add_versions(1 + 2 * RACERS)
    _crown(arena, 1)
    with ExitStack() as stack:
        processes = [start_script(arena.folder, DECIDER) for _ in range(RACERS)]
        for process in processes:
            stack.callback(process.communicate, timeout=60)
        champion, earlier = 1, list[int]()
        for number in range(ROUNDS):
            # Two teams take turns, so that the champion is never among the challengers.
            first = 2 + number % 2 * RACERS
            challengers = list(range(first, first + RACERS))
            sequence = open_ledger().tip(arena.model)
            # Another one is told first in each round: whoever wins, it is not by his place.
            told = [(number + place) % RACERS for place in range(RACERS)]
            for place in told:
                say(processes[place], json.dumps([arena.model, challengers[place], champion]))
            decisions = [_told(process) for process in processes]
            assert sorted(decisions) == ["pending"] * (RACERS - 1) + ["promoted"], number
            winner, former = challengers[decisions.index("promoted")], champion
            champion = winner
            written = [entry for entry in open_ledger().history(arena.model) if entry.sequence > sequence]
            judged = [entry for entry in written if entry.action != "reject"]
            assert [entry.action for entry in judged] == ["promote"] + ["pending"] * (RACERS - 1)
            assert {entry.version for entry in judged} == set(challengers)
            stands = open_ledger().standing(arena.model)
            refused = [entry.version for entry in written if entry.action == "reject"]
            assert stands.waiting == (judged[-1].version,), "one waits at a time: the newest"
            assert sorted(refused) == sorted(earlier + [entry.version for entry in judged[1:-1]]), "each one once"
            earlier = list(stands.waiting)
            assert (stands.champion, stands.previous) == (winner, former)
            wanted = {"champion": winner, "production": winner, "previous": former, "challenger": stands.challenger}
            assert registry.aliases(arena.model) == wanted
            assert _latest(arena) == bento_version(winner)
            assert repair(arena.model) == ()
    assert open_ledger().verify() == []
    engine = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
    line = f"Eight processes that live through all rounds promote different challengers at once (ledger on {engine})"
    counted = f"{ROUNDS} winners, one waits at a time; chain intact, aliases and `latest` equal to the ledger"
    proof(line, f"{RACERS} x {ROUNDS}", counted)


def _told(process: Any) -> str:
    """The decision, past what ZenML says of its own on standard output."""
    for line in process.stdout:
        if line.startswith("decided "):
            return str(line.split()[1])
    raise AssertionError("a process ended in the middle of a round")


# Each line it reads is done by a forked child, which kills itself right before its n-th write of any kind. The process
# that forks has nothing but imported: SQLite's locks and its shared memory do not survive a fork.
MORTAL = """
import json, os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from stacks.ledger import Ledger
from steps.deploy import publish
from steps.promote import decide, rollback
from steps.retire import retire
from tests.steps.arena import against, config_of, package_of
import alembic.command, mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store

WRITES = [(Ledger, "append"), (Path, "rename"), (Path, "replace"), (LocalArtifactRepository, "delete_artifacts")] + [
    (MlflowClient, name)
    for name in (
        "set_registered_model_alias",
        "delete_registered_model_alias",
        "set_model_version_tag",
        "log_model_artifacts",
    )
]

def arm(nth):
    left = [nth]
    def mortal(real):
        def write(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return write
    for owner, name in WRITES:
        setattr(owner, name, mortal(getattr(owner, name)))

def work(model, action, version, champion):
    if action == "promote":
        decide(config_of(model), against(champion, 0.5, 0.9, model), package_of(version, model))
        publish(model)
    elif action == "retire":
        retire(model, version)
    else:
        rollback(model, version)

def open_files():
    return [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]

print("ready", flush=True)
for line in sys.stdin:
    nth, *task = json.loads(line)
    assert not [name for name in open_files() if ".db" in name], "a database is open: it would not survive the fork"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arm(nth)
            work(*task)
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def mortal(arena: Arena) -> Iterator[Callable[[int, str, int, int], int]]:
    """Does a change in a process that dies before its n-th write; its exit code."""
    process = start_script(arena.folder, MORTAL)

    def run(nth: int, action: str, version: int, champion: int) -> int:
        say(process, json.dumps([nth, arena.model, action, version, champion]))
        assert process.stdout is not None
        return int(process.stdout.readline())

    yield run
    process.communicate(timeout=20)


def test_a_promotion_killed_before_any_write_is_repaired(arena: Arena, mortal: Callable[..., int]) -> None:
    _crown(arena, 1)
    arena.add_versions(20)
    champion, previous, nth, took_effect = 1, None, 0, 0
    while True:
        nth += 1
        challenger = nth + 1
        assert challenger <= arena.count, "a promotion has more writes than there are versions to try it with"
        code = mortal(nth, "promote", challenger, champion)
        assert code in (0, -signal.SIGKILL)
        repair()
        if open_ledger().champion(arena.model) == challenger:
            took_effect += 1
            champion, previous = challenger, champion
        _assert_agreed(arena, champion, previous)
        if code == 0:
            break
    assert nth > 8, "too few writes were seen for this to have been a promotion"
    assert took_effect == nth - 1, "all but the kill before the ledger's entry must have taken effect"


def test_a_rollback_killed_before_any_write_is_repaired(arena: Arena, mortal: Callable[..., int]) -> None:
    _crown(arena, 1, 2)
    pair, nth, took_effect = (2, 1), 0, 0
    while True:
        nth += 1
        code = mortal(nth, "rollback", pair[1], pair[0])
        assert code in (0, -signal.SIGKILL)
        repair()
        if open_ledger().champion(arena.model) == pair[1]:
            took_effect += 1
            pair = (pair[1], pair[0])
        previous = open_ledger().previous(arena.model)
        _assert_agreed(arena, pair[0], previous)
        if code == 0:
            break
    assert nth > 5, "too few writes were seen for this to have been a rollback"
    assert took_effect == nth - 1


def test_a_retirement_killed_before_any_write_is_repaired(arena: Arena, mortal: Callable[..., int]) -> None:
    _crown(arena, 1)
    arena.add_versions(12)
    nth, took_effect = 0, 0
    while True:
        nth += 1
        doomed = nth + 1
        assert doomed <= arena.count, "a retirement has more writes than there are versions to try it with"
        _decide(arena, doomed, against(1, 0.9, 0.9, arena.model))
        stage(arena.model, doomed)
        publish(arena.model)
        code = mortal(nth, "retire", doomed, 1)
        assert code in (0, -signal.SIGKILL)
        took = open_ledger().state(arena.model, doomed) == "retired"
        if code and took:
            took_effect += 1
            (leftover,) = (finding for finding in check_retired() if arena.model in finding.said)
            assert not leftover.ok, leftover.said
            said = " ".join(repair())
            assert f"{arena.model} v{doomed}: retired, its evidence archived" in said
        _assert_agreed(arena, 1, None)
        bento = store_dir() / arena.model / bento_version(doomed)
        assert bento.exists() != took
        kept = {"archive", "evidence"} if took else {"artifacts", "bento", "evidence"}
        assert set(registry.stored(arena.model, doomed)) == kept
        if code == 0:
            break
    assert nth > 6, "too few writes were seen for this to have been a retirement"
    assert took_effect == nth - 2, "all but the kill before the ledger's entry must have taken effect"


def test_repair_brings_back_what_somebody_changed(arena: Arena) -> None:
    _crown(arena, 1, 2)
    store = registry.client()
    store.set_registered_model_alias(arena.model, "champion", "3")
    store.delete_registered_model_alias(arena.model, "previous")
    store.set_model_version_tag(arena.model, "2", "gauntlet.state", "archived")
    (store_dir() / arena.model / "latest").write_text(bento_version(1))
    done = repair(arena.model)
    assert len(done) == 3, done
    _assert_agreed(arena, 2, 1)


def test_repair_goes_on_after_what_it_cannot_repair(arena: Arena) -> None:
    _crown(arena, 1)
    open_ledger().append("promote", "aardvark", 1)
    (store_dir() / arena.model / "latest").unlink()
    with pytest.raises(WorkError, match="aardvark"):
        repair()
    assert _latest(arena) == bento_version(1)


def test_rollback_returns_to_the_previous_champion(arena: Arena) -> None:
    _crown(arena, 1, 2, 3)
    entry = rollback(arena.model, why="v3 was wrong about rain", actor="ada")
    assert (entry.action, entry.version, entry.payload) == ("rollback", 2, {"from": 3})
    assert (entry.why, entry.actor) == ("v3 was wrong about rain", "ada")
    _assert_agreed(arena, 2, 1)
    rollback(arena.model)
    _assert_agreed(arena, 1, None)
    rollback(arena.model, 3)
    _assert_agreed(arena, 3, 1)


def test_a_rollback_that_another_promotion_overtook_changes_nothing(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    _crown(arena, 1, 2, 3)
    with pytest.raises(Conflict, match=r"v2 of .* was to be rolled back, but the champion is v3 by now"):
        rollback(arena.model, 1, expect_champion=2)
    assert open_ledger().champion(arena.model) == 3
    monkeypatch.setattr(module, "stage", lambda model, _: open_ledger().append("promote", model, 4))
    with pytest.raises(Conflict):
        rollback(arena.model, 1, expect_champion=3)
    assert open_ledger().champion(arena.model) == 4


def test_rollback_without_anywhere_to_go(arena: Arena) -> None:
    with pytest.raises(WorkError, match="has no champion yet: there is nothing to roll back"):
        rollback(arena.model)
    _crown(arena, 1)
    with pytest.raises(WorkError, match=r"v1 of .* has no champion before it: there is nothing to roll back to"):
        rollback(arena.model)
    _decide(arena, 2, against(1, 0.5, 0.9, arena.model))
    with pytest.raises(WorkError, match=r"v2 is the champion of .* already"):
        rollback(arena.model, 2)
    with pytest.raises(WorkError, match=r"v3 was never champion of .*; roll back to one that was: v1"):
        rollback(arena.model, 3)
    open_ledger().append("retire", arena.model, 1)
    with pytest.raises(WorkError, match=r"v1 of .* is retired"):
        rollback(arena.model, 1)
    assert open_ledger().champion(arena.model) == 2


def test_rollback_to_what_cannot_be_served_changes_nothing(arena: Arena) -> None:
    _crown(arena, 1, 2)
    registry.delete_version(arena.model, 1)
    before = open_ledger().history(arena.model)
    with pytest.raises(WorkError, match="has no version 1"):
        rollback(arena.model)
    assert open_ledger().history(arena.model) == before
    assert _latest(arena) == bento_version(2)


def test_old_versions_may_be_deleted_from_mlflow_but_not_the_champion(arena: Arena) -> None:
    _crown(arena, 1, 2)
    registry.delete_version(arena.model, 1)
    assert repair() == ()
    assert registry.aliases(arena.model) == {"champion": 2, "production": 2}
    registry.delete_version(arena.model, 2)
    with pytest.raises(WorkError, match=r"v2, is not in MLflow any more \(there is: v3\).*--to VERSION"):
        repair()


def test_other_models_in_the_same_ledger_are_left_alone(arena: Arena) -> None:
    _crown(arena, 1)
    ledger: Ledger = open_ledger()
    ledger.append("promote", "other", 7)
    _decide(arena, 2, against(1, 0.5, 0.9, arena.model))
    assert ledger.champion("other") == 7
