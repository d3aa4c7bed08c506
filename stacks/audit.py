"""Auditing: what was done to a ledger behind its back, told from the chain and from what this home wrote itself.

The chain shows what was changed in its middle. It does not show entries that were cut off at its end, nor a chain that
somebody computed anew from an altered entry on; so each home keeps a line for every entry that it wrote.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.errors import bounded

if TYPE_CHECKING:
    from stacks.ledger import Entry

GENESIS: Final = "0" * 64
_NAMED = 3
_TEXTS: Final = ("previous", "hash", "time", "actor", "action", "model", "why", "payload")


@dataclass(frozen=True)
class Memory:
    """An entry as this home remembers it."""

    hash: str
    named: str = ""


def remember(path: Path, entry: "Entry") -> None:
    """Note an entry that was written from here, apart from the database.

    Each note begins its own line, so that one which a crash cut short spoils no other.
    """
    note = {"sequence": entry.sequence, "hash": entry.hash}
    note |= {"named": _described(entry.action, entry.model, entry.version)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(note)}")
    except OSError:
        # The entry is written; a full disk must not make it look as if it were not.
        return


def recall(path: Path) -> dict[int, Memory]:
    """What was noted in a file, by sequence; empty when nothing was."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[int, Memory] = {}
    for line in lines:
        try:
            note = json.loads(line)
            found[int(note["sequence"])] = Memory(str(note["hash"]), str(note.get("named", "")))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def audit(rows: Iterable[Any], memory: Mapping[int, Memory], digest: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """What is wrong with which entry, in words.

    Args:
        rows: The stored entries in order of their sequence.
        memory: What this home wrote.
        digest: The hash that an entry should have.
    """
    faults: list[str] = []
    sequence, previous, moment, rewritten = 0, GENESIS, "", False
    for row in rows:
        fields = dict(row._mapping)
        name = f"entry {fields['sequence']} ({_described(fields['action'], fields['model'], fields['version'])})"
        if strange := _strange(fields):
            faults.append(f"{name}: was changed (its {strange} is of another type)")
            sequence = fields["sequence"] if isinstance(fields["sequence"], int) else sequence + 1
            previous = str(fields["hash"])
            continue
        faults += _links(fields, name, sequence + 1, previous, moment, memory)
        faults += [f"{name}: was changed (its hash is another)"] if fields["hash"] != digest(fields) else []
        known = memory.get(fields["sequence"])
        if known and known.hash != fields["hash"] and not rewritten:
            faults.append(f"{name}: is not the one that this home wrote ({known.named or 'its hash is another'})")
            rewritten = True  # those after it were chained to it anew
        sequence, previous, moment = fields["sequence"], fields["hash"], fields["time"]
    return faults + list(_cut_off(sequence, memory))


def _links(
    row: Mapping[str, Any], name: str, sequence: int, previous: str, moment: str, memory: Mapping[int, Memory]
) -> list[str]:
    """What is wrong with an entry's place in the chain."""
    faults = []
    if row["sequence"] < sequence:
        faults.append(f"{name}: stands there twice")
    elif row["sequence"] > sequence:
        faults.append(_missing(sequence, row["sequence"] - 1, memory))
    elif row["previous"] != previous:
        faults.append(f"{name}: does not follow the entry before it")
    if row["time"] < moment:
        faults.append(f"{name}: is dated before the entry before it")
    return faults


def _missing(first: int, last: int, memory: Mapping[int, Memory]) -> str:
    where = f"entry {first}" if first == last else f"entry {first} to {last}"
    known = [memory[number].named for number in range(first, last + 1) if number in memory and memory[number].named]
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    named = f" ({', '.join(known[:_NAMED])}{more})" if known else ""
    return f"{where}{named}: missing"


def _cut_off(last: int, memory: Mapping[int, Memory]) -> Iterator[str]:
    """What this home wrote after the last entry that there is."""
    if gone := sorted(number for number in memory if number > last):
        written = "which this home wrote last" if len(gone) == 1 else "which this home wrote"
        yield f"{_missing(gone[0], gone[-1], memory).removesuffix(': missing')}, {written}, is gone"


def _strange(row: Mapping[str, Any]) -> str | None:
    """Name of a field that is not of its type: SQLite stores any type anywhere."""
    wrong = [name for name in _TEXTS if not isinstance(row[name], str)]
    wrong += [name for name in ("sequence", "version") if not isinstance(row[name], int | None)]
    return wrong[0] if wrong else None


def _described(action: Any, model: Any, version: Any) -> str:
    """An entry in a few words: `promote of wine v3`."""
    of = f" of {bounded(str(model), 60)}" if model else ""
    return f"{bounded(str(action), 40)}{of}{'' if version is None else f' v{bounded(str(version), 20)}'}"
