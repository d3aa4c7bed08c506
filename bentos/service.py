"""The BentoML service: serves the Release that was packed into its Bento, beside this code."""

import logging
from pathlib import Path
from typing import Any

import bentoml
import click
from bentoml.exceptions import BentoMLException

from bentos.access import Access, AccessMiddleware, refusals
from bentos.app import Served, add_model, new_app
from bentos.release import Release
from models.errors import GauntletError, WorkError
from stacks import logs

log = logging.getLogger("gauntlet.service")

RELEASE = Path(__file__).absolute().parent.parent / "release"

app = new_app()
access = Access()


def packaged() -> Release:
    """The Release beside this code.

    Raises:
        WorkError: There is none, or it is damaged.
    """
    if not RELEASE.is_dir():
        raise WorkError(
            "there is no Release beside the service's code; serve a packaged model: bentoml serve <model>:latest"
            " (`bentoml list` names them, `gauntlet run` makes them)"
        )
    return Release.open(RELEASE)


def _describe() -> None:
    """Add the model's routes where a Release is: the Bento's own OpenAPI is written from an import alone."""
    try:
        release = packaged()
    except GauntletError:
        return  # said by `refuse_without_release`, before the port opens
    add_model(app, release.schema, release.config.serving.max_batch)


_describe()


@bentoml.service(name="Gauntlet", http={"host": "127.0.0.1"}, workers=1)
@bentoml.asgi_app(app)
class Gauntlet:
    """Answers for one model; see /docs.json for its inputs."""

    def __init__(self) -> None:
        """Load the Release into this worker."""
        release = packaged()
        logs.inherit()
        logs.identify(model=release.schema.model, version=str(bento_version()))
        refusals()
        access.watch()
        app.state.served = Served.load(release, bento_version())
        log.info("%s v%d answers", release.schema.model, bento_version())

    @bentoml.on_deployment
    @staticmethod
    def refuse_without_release() -> None:
        """Stop a bad start before the port opens: a worker that fails later leaves a port where nobody answers."""
        logs.inherit()
        try:
            packaged()
            bento_version()
            access.refuse_address(_host())
        except GauntletError as error:
            raise BentoMLException(str(error)) from None


# Not to the mounted app, which sees neither /metrics nor /docs.json.
Gauntlet.add_asgi_middleware(AccessMiddleware, access=access)  # type: ignore[attr-defined]


def _host() -> str:
    """The address that `bentoml serve` is about to open: its option, else what is configured (the service's own)."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    context = click.get_current_context(silent=True)
    return str((context and context.params.get("host")) or BentoMLContainer.http.host.get())


def bento_version() -> int:
    """Number of the version that the running Bento holds.

    Raises:
        WorkError: The code does not run from a Bento.
    """
    bento: Any = getattr(Gauntlet, "bento", None)
    if bento is None:
        raise WorkError("this code is served from a Bento only: bentoml serve <model>:latest")
    return int(bento.tag.version)
