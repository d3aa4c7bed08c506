"""`gauntlet report`: the page of a decision, written to a file or the terminal."""

import os
import sys
from pathlib import Path
from typing import get_args

from flows.console import out, print_json, quiet_home
from models.config import load_model
from models.errors import ConfigError, WorkError, guess


def write_report(model: str, versions: str | None, form: str, output: Path | None, as_json: bool) -> None:
    """Write the report of a model's last decision, or of the versions given.

    Args:
        model: The model.
        versions: `B`, or `A,B`: B beside A.
        form: "html" or "md".
        output: The file; for Markdown the terminal when left out.
        as_json: Print where it is, or the Markdown itself, as JSON.

    Raises:
        ConfigError: The model, the versions or the form is none.
        WorkError: A version was never judged, or the file cannot be written.
    """
    load_model(model)
    numbers = _numbers(versions)
    quiet_home()
    from steps.report import Format, report

    if form not in get_args(Format):
        raise ConfigError(f"--format {form!r}: unknown{guess(form, get_args(Format))}")
    text = report(model, numbers, form)  # type: ignore[arg-type]
    path = output or (Path(f"{model}-report.html") if form == "html" else None)
    if path is not None:
        _write(path, text)
    if as_json:
        told = {"path": str(path.absolute())} if path else {"text": text}
        print_json({"model": model, "versions": list(numbers), "format": form, **told})
    elif path is None:
        sys.stdout.write(text)
    else:
        out.print(f"Wrote {os.path.relpath(path)}", markup=False)


def _numbers(versions: str | None) -> tuple[int, ...]:
    parts = [part.strip().removeprefix("v") for part in versions.split(",")] if versions else []
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--versions {versions!r}: give one version or two, for example --versions 3,4")
    return tuple(int(part) for part in parts)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkError(f"the report cannot be written to {path.name}: {error.strerror}") from None
