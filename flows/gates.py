"""The gate table as a terminal shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.console import number, table


def print_gates(gates: Sequence[Mapping[str, Any]]) -> None:
    """Print the gates of a verdict; a failed one that does not block is a warning."""
    rows = [
        (
            gate["name"],
            *(number(gate[figure]) for figure in ("value", "threshold", "margin")),
            _word(gate),
            gate["reason"],
        )
        for gate in gates
    ]
    table("Gates", ("gate", "value", "threshold", "margin", "verdict", "reason"), rows, whole=5)


def _word(gate: Mapping[str, Any]) -> str:
    word = "warning" if gate["verdict"] == "failed" and not gate["blocking"] else str(gate["verdict"])
    return f"{word}, overridden" if gate.get("overridden") else word
