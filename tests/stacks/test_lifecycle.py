"""States of versions, derived from entries alone, and the commands that they allow."""

from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from models.errors import WorkError
from stacks import registry
from stacks.home import clone_dir
from stacks.ledger import Entry
from stacks.lifecycle import STATES, Command, Stage, Standing, State, require, standing


def _after(*actions: tuple[str, int]) -> Standing:
    """What these actions on versions add up to."""
    return standing([_entry(sequence, *each) for sequence, each in enumerate(actions, 1)])


def _entry(sequence: int, action: str, version: int | None) -> Entry:
    return Entry(sequence, "", "", datetime.now(UTC), "ada", action, "wine", version, "", {})


@pytest.mark.parametrize(
    ("actions", "states"),
    [
        ([], {}),
        ([("promote", 1)], {1: "production"}),
        ([("promote", 1), ("promote", 2)], {1: "staging", 2: "production"}),
        ([("promote", 1), ("promote", 2), ("promote", 3)], {1: "validation", 2: "staging", 3: "production"}),
        ([("promote", 1), ("keep", 2)], {1: "production", 2: "validation"}),
        ([("promote", 1), ("keep", 1)], {1: "production"}),
        ([("reject", 1)], {1: "development"}),
        ([("pending", 1)], {1: "staging"}),
        ([("pending", 1), ("reject", 1)], {1: "development"}),
        ([("pending", 1), ("promote", 1)], {1: "production"}),
        ([("promote", 1), ("monitor", 1)], {1: "monitoring"}),
        ([("promote", 1), ("monitor", 1), ("keep", 2), ("keep", 1)], {1: "monitoring", 2: "validation"}),
        ([("promote", 1), ("monitor", 1), ("promote", 2)], {1: "staging", 2: "production"}),
        ([("promote", 1), ("promote", 2), ("monitor", 1)], {1: "staging", 2: "production"}),
        ([("promote", 1), ("monitor", 1), ("promote", 2), ("rollback", 1)], {1: "production", 2: "validation"}),
        ([("promote", 1), ("promote", 2), ("rollback", 1), ("monitor", 1)], {1: "monitoring", 2: "validation"}),
        ([("promote", 1), ("promote", 2), ("reject", 1)], {1: "staging", 2: "production"}),
        ([("promote", 1), ("promote", 2), ("promote", 3), ("reject", 1)], {1: "development", 2: "staging"}),
        ([("promote", 1), ("promote", 2), ("promote", 3), ("retire", 1)], {1: "retired", 2: "staging"}),
        ([("reject", 1), ("retire", 1)], {1: "retired"}),
        ([("look", 1)], {1: "experimentation"}),
        ([("promote", 1), ("keep", 2), ("look", 2)], {2: "validation"}),
    ],
)
def test_the_state_of_every_version(actions: list[tuple[str, int]], states: dict[int, str]) -> None:
    found = _after(*actions).states
    assert {version: found[version] for version in states} == states


def test_a_version_that_no_entry_names_and_entries_that_name_none() -> None:
    stands = standing([_entry(1, "key", None)])
    assert (stands.states, stands.sequence, stands.state(7)) == ({}, 1, "experimentation")


def test_who_waits_for_a_person() -> None:
    stands = _after(("promote", 1), ("pending", 3), ("pending", 2), ("pending", 4), ("reject", 4))
    assert (stands.waiting, stands.challenger) == ((2, 3), 2)
    stands = _after(("promote", 1), ("promote", 2), ("pending", 1))
    assert (stands.previous, stands.waiting, stands.challenger) == (1, (1,), 1)
    assert _after(("promote", 1), ("pending", 1)).waiting == ()


def test_what_the_loop_says_of_a_version_does_not_hide_that_it_waits() -> None:
    """A failed training is noted about the version that was champion, also where that waits by now."""
    stands = _after(("promote", 1), ("promote", 2), ("pending", 1), ("monitor", 1))
    assert (stands.waiting, stands.latest[1].action) == ((1,), "pending")


def test_every_state_is_in_the_table_and_every_older_stage_is_used() -> None:
    assert tuple(STATES) == get_args(State)
    assert {meaning.stage for meaning in STATES.values()} == set(get_args(Stage))
    aliases = {alias for meaning in STATES.values() for alias in meaning.aliases}
    assert aliases == {registry.CHAMPION, registry.PRODUCTION, registry.PREVIOUS, registry.CHALLENGER}


# Every kind of version that there is: what it is called, what leads to it, and the commands that may be given about it.
LIFE = [("promote", 1), ("promote", 2), ("promote", 3), ("pending", 4), ("reject", 5), ("keep", 6), ("keep", 8)]
ALLOWED: dict[int, tuple[str, set[str]]] = {
    1: ("validation", {"promote", "rollback", "retire"}),
    2: ("staging", {"promote", "rollback"}),
    3: ("production", set()),
    4: ("staging", {"promote", "reject"}),
    5: ("development", {"promote", "retire"}),
    6: ("validation", {"promote", "retire"}),
    7: ("experimentation", {"retire"}),
    8: ("retired", set()),
}


@pytest.mark.parametrize("command", get_args(Command))
@pytest.mark.parametrize("version", ALLOWED)
def test_a_command_is_allowed_by_the_state_or_refused_with_the_reason(version: int, command: Any) -> None:
    stands = _after(*LIFE, ("retire", 8))
    state, allowed = ALLOWED[version]
    assert stands.state(version) == state
    if command in allowed:
        require(command, stands, "wine", version)
        return
    with pytest.raises(WorkError) as caught:
        require(command, stands, "wine", version)
    said = str(caught.value)
    assert f"v{version} " in said
    assert "'wine'" in said


@pytest.mark.parametrize(
    ("command", "version", "said"),
    [
        ("promote", 3, "v3 is the champion of 'wine' already"),
        ("promote", 7, "v7 of 'wine' has no verdict yet (its state is experimentation): `gauntlet run wine` judges it"),
        ("promote", 8, "v8 of 'wine' is retired; training it again registers the same Release under a new number"),
        ("reject", 6, "v6 of 'wine' does not wait for a person (its state is validation); waiting: v4"),
        ("rollback", 5, "v5 was never champion of 'wine'; roll back to one that was: v1, v2"),
        ("rollback", 3, "v3 is the champion of 'wine' already"),
        ("retire", 3, "v3 is the champion of 'wine'; put another in its place first"),
        ("retire", 2, "v2 of 'wine' is what a rollback returns to; it can be retired after the next promotion"),
        ("retire", 4, "v4 of 'wine' waits for a person; promote or reject it first"),
        ("retire", 8, "v8 of 'wine' is retired already"),
    ],
)
def test_what_a_person_is_told(command: Any, version: int, said: str) -> None:
    with pytest.raises(WorkError) as caught:
        require(command, _after(*LIFE, ("retire", 8)), "wine", version)
    assert str(caught.value) == said


def test_a_champion_that_waited_and_was_retired_is_neither_rolled_back_to_nor_offered() -> None:
    stands = _after(("promote", 1), ("promote", 2), ("promote", 3), ("retire", 1))
    with pytest.raises(WorkError, match="v1 of 'wine' is retired; roll back to another"):
        require("rollback", stands, "wine", 1)
    with pytest.raises(WorkError, match=r"roll back to one that was: v2$"):
        require("rollback", stands, "wine", 9)


def test_the_table_of_the_docs_is_this_one() -> None:
    text = (clone_dir() / "docs" / "ledger.md").read_text(encoding="utf-8")
    for state, means in STATES.items():
        aliases, allows = (", ".join(each) or "–" for each in (means.aliases, means.allows))
        assert f"| {state} | {means.meaning} | {aliases} | {means.stage} | {allows} |" in text
