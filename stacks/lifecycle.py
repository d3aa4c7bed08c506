"""A version's life: seven states, derived from the ledger alone, and which commands each of them allows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from models.errors import WorkError

if TYPE_CHECKING:
    from stacks.ledger import Entry

State = Literal["experimentation", "development", "validation", "staging", "production", "monitoring", "retired"]
Stage = Literal["None", "Staging", "Production", "Archived"]
Command = Literal["promote", "reject", "rollback", "retire"]

CROWNING: Final = ("promote", "rollback")
AGAIN: Final = "training it again registers the same Release under a new number"
# What a version is by the newest of these, where it is neither champion nor previous; other actions change no state.
_AFTER: Final[Mapping[str, State]] = {
    "promote": "validation",
    "rollback": "validation",
    "keep": "validation",
    "reject": "development",
    "pending": "staging",
    "retire": "retired",
}


@dataclass(frozen=True)
class Meaning:
    """What a state says.

    Attributes:
        meaning: In words.
        aliases: The MLflow aliases that a version in it may have.
        stage: What MLflow's older registry called it.
        allows: The commands that may be given about it; some ask for more (see `require`).
    """

    meaning: str
    aliases: tuple[str, ...]
    stage: Stage
    allows: tuple[Command, ...]


STATES: Final[Mapping[State, Meaning]] = {
    "experimentation": Meaning("registered, no verdict yet", (), "None", ("retire",)),
    "development": Meaning(
        "failed a blocking gate, or a person refused it", (), "None", ("promote", "rollback", "retire")
    ),
    "validation": Meaning(
        "passed every blocking gate without being better, or was champion before the previous one",
        (),
        "None",
        ("promote", "rollback", "retire"),
    ),
    "staging": Meaning(
        "waits for a person, or is the previous champion that stands by",
        ("challenger", "previous"),
        "Staging",
        ("promote", "reject", "rollback"),
    ),
    "production": Meaning("champion", ("champion", "production"), "Production", ()),
    "monitoring": Meaning(
        "champion that was monitored since it became it", ("champion", "production"), "Production", ()
    ),
    "retired": Meaning("its evidence is archived, its files are gone", (), "Archived", ()),
}


@dataclass(frozen=True)
class Standing:
    """What a model's entries add up to.

    Attributes:
        sequence: The model's newest entry; 0 when it has none.
        champion: The version that serves.
        previous: The version that a rollback returns to.
        challenger: Of those that wait for a person the newest.
        waiting: Every version that waits for a person, in order of its number.
        crowned: Every version that was ever champion, in order of its first time.
        states: Lifecycle state of every version that an entry names.
        latest: Every version's newest entry that says what it is: what the loop saw of a champion does not.
    """

    sequence: int
    champion: int | None
    previous: int | None
    challenger: int | None
    waiting: tuple[int, ...]
    crowned: tuple[int, ...]
    states: Mapping[int, State]
    latest: Mapping[int, "Entry"]

    def state(self, version: int) -> State:
        """Lifecycle state of a version; `experimentation` when no entry names it."""
        return self.states.get(version, "experimentation")


def standing(entries: "Sequence[Entry]") -> Standing:
    """Derive champion, previous and the states of all versions from one model's entries, oldest first.

    Champions form a stack: a promotion puts its version on top, a rollback takes off what lies above its version, so
    that the one below is what the next rollback returns to.
    """
    stack: list[int] = []
    crowned: dict[int, None] = {}
    words: dict[int, str] = {}
    latest: dict[int, Entry] = {}
    monitored: int | None = None
    for entry in entries:
        if entry.version is None:
            continue
        version = entry.version
        if entry.action in _AFTER:
            words[version], latest[version] = entry.action, entry
        if entry.action in CROWNING:
            crowned[version] = monitored = None
            returns = entry.action == "rollback" and version in stack
            stack = stack[: stack.index(version) + 1] if returns else [v for v in stack if v != version] + [version]
        elif entry.action == "retire":
            stack = [v for v in stack if v != version]
        elif entry.action == "monitor":
            monitored = version
    champion = stack[-1] if stack else None
    previous = stack[-2] if len(stack) > 1 else None
    states: dict[int, State] = {entry.version: "experimentation" for entry in entries if entry.version is not None}
    states |= {version: _AFTER[word] for version, word in words.items()}
    if previous is not None:
        states[previous] = "staging"
    if champion is not None:
        states[champion] = "monitoring" if monitored == champion else "production"
    waiting = sorted(version for version, word in words.items() if word == "pending" and version != champion)
    return Standing(
        sequence=entries[-1].sequence if entries else 0,
        champion=champion,
        previous=previous,
        challenger=max(waiting, key=lambda version: latest[version].sequence, default=None),
        waiting=tuple(waiting),
        crowned=tuple(crowned),
        states=states,
        latest=latest,
    )


def _versions(numbers: Iterable[int]) -> str:
    return ", ".join(f"v{number}" for number in numbers) or "none"


def require(command: Command, stands: Standing, model: str, version: int) -> None:
    """Refuse a command that the state of a version does not allow.

    Besides its state, `reject` asks that the version waits for a person, `rollback` that it was champion before, and
    `retire` that no rollback would return to it and nobody is asked about it.

    Raises:
        WorkError: Says why, and what there is instead.
    """
    if reason := _refusal(command, stands, model, version):
        raise WorkError(reason)


def _refusal(command: Command, stands: Standing, model: str, version: int) -> str:
    state = stands.state(version)
    if command == "rollback" and version != stands.champion and version not in stands.crowned:
        were = _versions(v for v in stands.crowned if v != stands.champion and stands.state(v) != "retired")
        return f"v{version} was never champion of '{model}'; roll back to one that was: {were}"
    if command == "reject" and version not in stands.waiting:
        waiting = _versions(stands.waiting)
        return f"v{version} of '{model}' does not wait for a person (its state is {state}); waiting: {waiting}"
    if command in STATES[state].allows:
        return ""
    if state in ("production", "monitoring"):
        said = "; put another in its place first" if command == "retire" else " already"
        return f"v{version} is the champion of '{model}'{said}"
    if state == "retired":
        another = {"retire": " already", "rollback": "; roll back to another"}
        return f"v{version} of '{model}' is retired{another.get(command, f'; {AGAIN}')}"
    if state == "staging":
        if version == stands.previous:
            return f"v{version} of '{model}' is what a rollback returns to; it can be retired after the next promotion"
        return f"v{version} of '{model}' waits for a person; promote or reject it first"
    return f"v{version} of '{model}' has no verdict yet (its state is {state}): `gauntlet run {model}` judges it"
