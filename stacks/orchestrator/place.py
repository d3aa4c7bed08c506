"""Where the process of a step comes from: the seam between a run (`parallel`) and the machines that it may use."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol


class PlaceError(RuntimeError):
    """No process for a step could be had, or it was lost; the text says why."""


class StepProcess(Protocol):
    """A process for one step, from its start to the news of its end."""

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it started, if it still runs; keep it from starting if it waits."""

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it sends (`child`), as it comes, the last one of kind `exit`.

        Besides: `waits`, when no place is free yet, and `place`, with the name of the one that has started it.

        Raises:
            PlaceError: The process is lost.
        """


class Place(Protocol):
    """What starts processes for the steps of one run."""

    def __enter__(self) -> "Place":
        """Get ready; see whether every step can run here.

        Raises:
            PlaceError: It can not, or the place does not answer.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing of the run behind."""

    def start(self, job: Mapping[str, Any]) -> StepProcess:
        """Start a process, or queue for one.

        Args:
            job: Ids and plain values: `snapshot`, `step`, `orchestrator_run_id`, `flow_run_url`, `zenml_run_id`,
                `levels` (of loggers).

        Raises:
            PlaceError: None can be had.
        """
