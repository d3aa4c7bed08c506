"""The terminal that a person watches a run on."""

import sys

from rich.console import Console


class _Unrecorded:
    """stderr past ZenML's wrapper around its `write`, which stores what is shown as errors of the running step."""

    def write(self, text: str) -> int:
        # While a progress bar is shown, rich puts a proxy in place of stderr that writes to our console again.
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return type(stream).write(stream, text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


def terminal() -> Console:
    """A console on stderr for progress and messages; what it shows is in no step's stored log."""
    return Console(file=_Unrecorded(), highlight=False, soft_wrap=True)  # type: ignore[arg-type]
