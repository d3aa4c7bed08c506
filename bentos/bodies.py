"""Bodies of requests: how large one may be, how much may be in it, and how many bytes a worker holds at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bentos.reply import Refused, fault
from models.errors import ConfigError

MAX_BODY: Final = 64 * 2**20
VARIABLE: Final = "GAUNTLET_BODIES"
USUALLY_MIB: Final = 256


class Bodies:
    """Counts the bytes of the bodies that are in memory, of requests that are not answered yet. One object a process.

    Attributes:
        held: Bytes, just now.
    """

    def __init__(self, most: int = USUALLY_MIB * 2**20) -> None:
        """Hold at most `most` bytes."""
        self.held = 0
        self._most = most

    @contextmanager
    def claim(self) -> Iterator["Claim"]:
        """Room for one body until the block ends."""
        claim = Claim(self)
        try:
            yield claim
        finally:
            self.held -= claim.taken

    def take(self, size: int) -> None:
        """Count bytes that are about to be kept.

        Raises:
            Refused: There is no room for them.
        """
        if self.held + size > self._most:
            raise Refused(fault(503, "too many large requests at once; try again", "overloaded", retry_after=1))
        self.held += size


class Claim:
    """What one body takes up.

    Attributes:
        taken: Bytes.
    """

    __slots__ = ("_bodies", "taken")

    def __init__(self, bodies: Bodies) -> None:
        """Nothing yet."""
        self._bodies = bodies
        self.taken = 0

    def take(self, size: int) -> None:
        """Take up some more, see `Bodies.take`."""
        self._bodies.take(size)
        self.taken += size


def holds_more(body: bytes, most: int) -> bool:
    """Whether a body of JSON holds more than so many values (and lists and objects), told without parsing it.

    A parser needs some hundred bytes for the shortest of them: 64 MiB of `{},{},` become gigabytes.

    Args:
        body: JSON, or what claims to be. Of what is none, the values before the first fault are counted.
        most: From 1.
    """
    if _separators(body) < most:
        return False
    # Texts may hold commas and braces: leave them out, for which quotes that are part of one must go first.
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 4 * most:
        return True
    return _separators(b"".join(bare.split(b'"')[::2])) >= most


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def most_held() -> int:
    """How many bytes of bodies a worker holds at most, as `GAUNTLET_BODIES` says in MiB.

    Raises:
        ConfigError: It is no such number.
    """
    given, least = os.environ.get(VARIABLE) or str(USUALLY_MIB), MAX_BODY // 2**20
    if not given.isdecimal() or not least <= int(given) <= 2**20:
        raise ConfigError(f"{VARIABLE} is how many MiB of request bodies a worker holds at once: {least} or more")
    return int(given) * 2**20
