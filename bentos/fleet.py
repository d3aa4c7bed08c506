"""The models that a process serves: which version of each answers, and which of them are in memory."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from bentos.reply import Refused, Reply, fault

if TYPE_CHECKING:
    from bentos.served import Served
    from stacks.handover import Crown

Load = Callable[["Crown"], "Served"]


@dataclass
class Slot:
    """One model.

    Attributes:
        crown: Whose turn it is; None for the one Release of a Bento.
        current: What answers; None while it is not in memory.
        warm: What is in memory, by version: the current one, the previous, the coming.
        refusal: What is answered instead while nothing may.
        loading: The one attempt to bring the current version back.
    """

    crown: "Crown | None" = None
    current: "Served | None" = None
    warm: dict[int, "Served"] = field(default_factory=dict)
    refusal: Reply | None = None
    loading: "asyncio.Task[Served] | None" = None


class Fleet:
    """What answers for which model. Requests ask on the event loop, a follower changes it from its own thread."""

    def __init__(self) -> None:
        """Begin empty."""
        self._load: Load | None = None
        self._limit: int | None = None
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._gate: CapacityLimiter | None = None
        self._keep_months: dict[str, int | None] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are served, sorted."""
        return tuple(sorted(self._slots))

    @property
    def resident(self) -> int:
        """How many models are in memory."""
        return sum(1 for slot in list(self._slots.values()) if slot.warm)

    @property
    def answers(self) -> bool:
        """Whether any model answers."""
        return any(slot.current for slot in list(self._slots.values()))

    def current(self, model: str) -> "Served | None":
        """What answers for a model, if it is in memory; it counts as used."""
        slot = self._slots.get(model)
        if slot is None or slot.current is None:
            return None
        if self._limit is not None:
            with self._lock:
                self._slots.move_to_end(model)
        return slot.current

    async def summon(self, model: str) -> "Served":
        """What answers for a model, brought back into memory first where it has left it.

        Raises:
            Refused: There is no such model here, or nothing answers for it just now.
        """
        if served := self.current(model):
            return served
        slot = self.slot(model)
        crown = slot.crown
        if crown is None:
            raise Refused(_not_ready())
        if slot.loading is None:
            slot.loading = asyncio.ensure_future(self._bring_back(model, slot, crown))
        served = await asyncio.shield(slot.loading)
        # While it was loaded, another version's turn may have come.
        return served if slot.crown is crown and not slot.refusal else await self.summon(model)

    def slot(self, model: str) -> Slot:
        """Of a model that something answers for, in memory or not.

        Raises:
            Refused: There is no such model here, or nothing answers for it just now.
        """
        slot = self._slots.get(model)
        if slot is None or slot.refusal or not (slot.current or slot.crown):
            raise Refused((slot and slot.refusal) or _not_ready())
        return slot

    def bring_back_with(self, load: Load, limit: int) -> None:
        """Let models leave memory and come back.

        Args:
            load: Brings a version into memory, checked and warm.
            limit: Models in memory at most; those longest unused leave it, and come back on demand.
        """
        self._load, self._limit = load, limit

    def put(self, model: str, served: "Served") -> None:
        """Have a Release answer for good: that of a Bento."""
        with self._lock:
            self._slots[model] = Slot(current=served, warm={served.version: served})
        self.remember(model, served.release.config.serving.log.keep_months)

    def keep(self, crown: "Crown", served: "Served") -> None:
        """Have a version warm that does not answer yet."""
        with self._lock:
            slot = self._slots.setdefault(crown.model, Slot())
            slot.warm[crown.version] = served
            self._make_room(crown.model)

    def kept(self, crown: "Crown") -> "Served | None":
        """A version that is warm."""
        slot = self._slots.get(crown.model)
        return slot.warm.get(crown.version) if slot else None

    def switch(self, crown: "Crown", previous: "Crown | None") -> None:
        """Have a version answer from the next request on; of the others only the previous one stays warm."""
        with self._lock:
            slot = self._slots.setdefault(crown.model, Slot())
            staying = {crown.version, previous.version if previous else crown.version}
            slot.crown, slot.refusal, slot.loading = crown, None, None
            slot.warm = {version: served for version, served in slot.warm.items() if version in staying}
            if served := slot.warm.get(crown.version):
                slot.warm[crown.version] = served.from_now()
            slot.current = slot.warm.get(crown.version)

    def refuse(self, model: str, reply: Reply) -> None:
        """Have nothing answer for a model until the next switch."""
        with self._lock:
            slot = self._slots.setdefault(model, Slot())
            slot.current, slot.refusal = None, reply

    def remember(self, model: str, keep_months: int | None) -> None:
        """Note how long predictions of a model are kept, which is asked when it may have left memory."""
        self._keep_months[model] = keep_months

    def keep_months(self) -> dict[str, int | None]:
        """How long predictions are kept, by model, as the version says that answers; in memory or not."""
        return dict(self._keep_months)

    def health(self) -> Mapping[str, Slot]:
        """All models, for those who tell of them."""
        return dict(self._slots)

    async def _bring_back(self, model: str, slot: Slot, crown: "Crown") -> "Served":
        assert self._load is not None
        self._gate = self._gate or CapacityLimiter(1)
        try:
            served = await to_thread.run_sync(partial(self._load, crown), limiter=self._gate)
        finally:
            slot.loading = None
        with self._lock:
            if slot.crown is crown and slot.refusal is None:
                slot.warm[crown.version] = slot.current = served
                self._slots.move_to_end(model)
                self._make_room(model)
        return served

    def _make_room(self, newest: str) -> None:
        """Let models leave memory, the one first that was unused longest, until no more are there than may be."""
        if self._limit is None:
            return
        resident = [name for name, slot in self._slots.items() if slot.warm and name != newest]
        for name in resident[: max(0, len(resident) + 1 - self._limit)]:
            slot = self._slots[name]
            slot.warm, slot.current = {}, None


def _not_ready() -> Reply:
    return fault(503, "no model is loaded yet", "not_ready", retry_after=1)
