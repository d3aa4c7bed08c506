"""Following the ledger: a new champion is fetched, checked and loaded beside the old one, and all switch together.

Nothing but the ledger decides: an alias that was moved by hand changes nothing here. All of it is decided in one thread
beside the event loop; what is served by `Fleet` changes at the moment that the hand-over wrote down. A few more threads
fetch, so that a store which does not answer stops one model and not all.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bentos.fetch import fetch, forget_others
from bentos.fleet import Fleet
from bentos.metrics import metrics
from bentos.reply import Reply, fault
from bentos.served import where
from models.errors import GauntletError
from stacks.handover import Crown, Handover, Reign, reign_of

if TYPE_CHECKING:
    from bentos.metrics import Swap
    from bentos.release import Release
    from bentos.served import Served
    from stacks.ledger import Ledger

log = logging.getLogger("gauntlet.service")

EVERY_SECONDS: Final = 0.25
AWAY_SECONDS: Final = 1.0
FIRST_RETRY_SECONDS: Final = 5.0
LAST_RETRY_SECONDS: Final = 60.0
FIRST_SECONDS: Final = 20.0
FETCHES_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Face:
    """What is told of a version, in memory or not.

    Attributes:
        sums: Of the files that say it.
        keep_months: How long its predictions are kept.
        show: Has OpenAPI tell of its inputs from now on.
    """

    sums: tuple[str | None, ...]
    keep_months: int | None
    show: Callable[[], None]


@dataclass
class Course:
    """How far one model is on its way to its champion.

    Attributes:
        reign: What the ledger says.
        serving: Whose turn it is here.
        reported: Sequence that this process has reported ready.
        work: Versions that are being loaded, or were.
        faces: What is told of each version that was fetched.
        shown: Which of them is.
        failed: Attempts that failed in a row, by version, and when the next one is due.
        settled: Whether nothing is to be done until the ledger changes.
    """

    reign: Reign
    serving: Crown | None = None
    reported: int = 0
    work: dict[int, "Future[Served | None]"] = field(default_factory=dict)
    faces: dict[int, Face] = field(default_factory=dict)
    shown: Face | None = None
    failed: dict[int, tuple[int, float]] = field(default_factory=dict)
    settled: bool = False


class Follower:
    """Keeps a fleet at what the ledger says. One object and one thread a process."""

    def __init__(
        self,
        ledger: "Ledger",
        fleet: Fleet,
        cache: Path,
        *,
        names: Collection[str] = (),
        limit: int | None = None,
        describe: Callable[["Release"], Callable[[], None]] = lambda _: lambda: None,
        swapped: "Callable[[str, Swap], None] | None" = None,
    ) -> None:
        """Follow nothing yet.

        Args:
            ledger: What says who is champion; best one that keeps its connection.
            fleet: What is kept up to it.
            cache: Folder for fetched Releases.
            names: Models to serve; empty for all of the ledger.
            limit: Models in memory at most: of more, the later ones are loaded when they are asked.
            describe: Prepares what tells of a Release; what it returns is called when the Release is about to answer.
            swapped: Told what becomes of each new champion; counts them when left out.
        """
        self.handover = Handover(ledger, names)
        self.fault: str | None = None
        self._ledger = ledger
        self._fleet = fleet
        self._cache = cache
        self._names = frozenset(names)
        self._limit = limit
        self._describe = describe
        self._swapped = swapped or metrics().swapped
        self._sequence = 0
        self._courses: dict[str, Course] = {}
        self._loader = ThreadPoolExecutor(FETCHES_AT_ONCE, "gauntlet-load")
        self._building = threading.Lock()
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="gauntlet-follow", daemon=True)

    def start(self) -> None:
        """Follow from now on; of models that were named, nothing answers until their champion is loaded."""
        for name in self._names:
            self._fleet.refuse(name, fault(503, "the champion is still being loaded", "loading", retry_after=1))
        self._thread.start()

    def wait(self, seconds: float = FIRST_SECONDS) -> None:
        """Wait until each champion answers, or could not be loaded at the first attempt; no longer than some seconds.

        A worker that takes the place of a dead one must not refuse meanwhile what the others would answer.
        """
        self._begun.wait(seconds)

    def stop(self) -> None:
        """Follow no more; no other process waits for this one."""
        self._ended.set()
        self._loader.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(2)
        try:
            self.handover.leave()
        except GauntletError:
            log.warning("the database is away: others may wait a moment for this process")

    def load(self, crown: Crown) -> "Served":
        """Fetch a version, check it and make it warm.

        Raises:
            WorkError: It cannot be reached, is not what was promoted, or does not answer as it did.
        """
        from bentos.served import Served

        return Served.load(fetch(crown, self._cache), crown.version)

    def step(self) -> float:
        """Do what is due now; how many seconds to wait for what comes next.

        Raises:
            WorkError: The database cannot be used.
        """
        self.handover.beat()
        newest, changed = self._ledger.changed_since(self._sequence)
        for model in sorted(changed):
            if model and (not self._names or model in self._names):
                reign = reign_of(self._ledger.history(model))
                course = self._courses.setdefault(model, Course(reign))
                course.reign, course.failed, course.settled = reign, {}, False
        self._sequence = newest
        waits = [self._advance(model, c) for model, c in self._courses.items() if not c.settled]
        return max(0.0, min([EVERY_SECONDS, *waits]))

    def _follow(self) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            try:
                wait = self.step()
                if self.fault:
                    log.info("the ledger can be read again")
                self.fault = None
                if all(course.serving or course.failed or course.settled for course in self._courses.values()):
                    self._begun.set()
            except Exception as error:
                # Whatever it is: what serves goes on, and this thread must not end.
                said = str(error) if isinstance(error, GauntletError) else f"{type(error).__name__} in {where(error)}"
                if said != self.fault:
                    log.error("following the ledger failed, what serves goes on: %s", said)
                self.fault, wait = said, AWAY_SECONDS

    def _advance(self, model: str, course: Course) -> float:
        """Bring one model nearer to its champion; seconds until it is worth another look."""
        champion = course.reign.champion
        if champion is None:
            self._fleet.refuse(model, _no_champion(model))
            course.serving, course.settled = None, True
            return EVERY_SECONDS
        if course.serving is None:
            self._join(model, course, champion)
        if course.serving == champion:
            self._settle(course, champion)
            return EVERY_SECONDS
        is_warm = self._warm(course, champion)
        if is_warm and course.reported != champion.sequence:
            self.handover.ready(champion)
            course.reported = champion.sequence
        at = self.handover.decide(champion)
        if at is None:
            return EVERY_SECONDS
        if (left := at - time.time()) > 0:
            return left
        if is_warm:
            self._switch(course, champion)
        elif course.serving is not None:
            self._be_late(model, course)
        return EVERY_SECONDS

    def _settle(self, course: Course, champion: Crown) -> None:
        """Have the previous champion warm as well, for a rollback, where the model is in memory; forget all others."""
        previous = course.reign.previous
        wanted = previous if self._fleet.kept(champion) else None
        if self._warm(course, wanted) or (wanted and wanted.version in course.failed):
            staying = [crown for crown in (champion, previous) if crown]
            course.work.clear()
            course.faces = {c.version: course.faces[c.version] for c in staying if c.version in course.faces}
            forget_others(staying, self._cache)
            course.settled = True

    def _join(self, model: str, course: Course, champion: Crown) -> None:
        """Begin with what the others serve; or alone, with the champion, unless it was refused."""
        told = course.reign.at(self.handover.switched(model))
        alone = not self.handover.others(model)
        if told is None or (told != champion and alone and champion.version not in course.failed):
            return
        if self._warm(course, told):
            self._switch(course, told)

    def _switch(self, course: Course, crown: Crown) -> None:
        first = course.serving is None
        self._show(course, crown)
        self._fleet.switch(crown, course.reign.previous if crown == course.reign.champion else None)
        course.serving = crown
        course.work.pop(crown.version, None)
        metrics().champion(crown.model, crown.version, crown.since)
        log.info("%s v%d answers (entry %d of the ledger)", crown.model, crown.version, crown.sequence)
        if not first:
            self._swapped(crown.model, "switched")

    def _show(self, course: Course, crown: Crown) -> None:
        """Tell of a version that is about to answer, however it became warm."""
        if face := course.faces.get(crown.version):
            self._fleet.remember(crown.model, face.keep_months)
            if face is not course.shown:
                face.show()
                course.shown = face

    def _be_late(self, model: str, course: Course) -> None:
        """The others have switched; the old version must not answer beside them."""
        course.serving = None
        self._fleet.refuse(model, fault(503, "the new champion is still being loaded", "loading", retry_after=1))
        log.error("%s: the others have switched, and the new champion is not loaded here yet", model)
        self._swapped(model, "late")

    def _warm(self, course: Course, crown: Crown | None) -> bool:
        """Whether a version is ready to answer; where not, it is being loaded when this returns."""
        if crown is None:
            return True
        if self._fleet.kept(crown):
            return True
        if crown.version in course.work:
            return self._finished(course, crown)
        _, due = course.failed.get(crown.version, (0, 0.0))
        if time.monotonic() >= due:
            course.work[crown.version] = self._loader.submit(self._prepare, course, crown)
        return False

    def _prepare(self, course: Course, crown: Crown) -> "Served | None":
        """Load a version; of a model that is not to be in memory now only fetch it."""
        from bentos.served import Served

        release = fetch(crown, self._cache)
        with self._building:
            course.faces[crown.version] = self._face(course, release)
            if course.serving is None and self._limit is not None and self._fleet.resident >= self._limit:
                return None
            return Served.load(release, crown.version)

    def _face(self, course: Course, release: "Release") -> Face:
        """What is told of a Release; the same as of another version where that says the same."""
        sums = tuple(release.manifest["files"].get(name) for name in ("schema.json", "config.yaml"))
        same = next((face for face in list(course.faces.values()) if face.sums == sums), None)
        return same or Face(sums, release.config.serving.log.keep_months, self._describe(release))

    def _finished(self, course: Course, crown: Crown) -> bool:
        """What became of loading a version, if it is over."""
        work = course.work[crown.version]
        if not work.done():
            return False
        if (error := work.exception()) is not None:
            del course.work[crown.version]
            self._failed(course, crown, error)
            return False
        course.failed.pop(crown.version, None)
        if served := work.result():
            self._fleet.keep(crown, served)
        return True

    def _failed(self, course: Course, crown: Crown, error: BaseException) -> None:
        times = course.failed.get(crown.version, (0, 0.0))[0] + 1
        wait = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (times - 1))
        course.failed[crown.version] = (times, time.monotonic() + wait)
        said = str(error) if isinstance(error, GauntletError) else f"{type(error).__name__} in {where(error)}"
        old = f"v{course.serving.version} goes on" if course.serving else "nothing of it serves"
        log.error("%s v%d does not serve, %s: %s; next attempt in %.0f s", crown.model, crown.version, old, said, wait)
        if times == 1:
            self._swapped(crown.model, "refused")


def _no_champion(model: str) -> Reply:
    return fault(503, f"'{model}' has no champion", "no_champion", retry_after=60)
