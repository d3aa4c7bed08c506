"""The BentoML service. From a Bento it serves the Release packed beside this code; else it follows the ledger."""

import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException

from bentos.access import Access
from bentos.access_log import access_log
from bentos.app import add_model, base_of, describe_model, new_app
from bentos.bodies import Bodies, most_held
from bentos.canonical import search_no_types
from bentos.desk import Desk
from bentos.fleet import Fleet
from bentos.front import Front, take_down_refusal
from bentos.lifecycle import Lifecycle, LifecycleMiddleware
from bentos.metrics import metrics
from bentos.release import Release
from bentos.retention import forget_hourly
from bentos.served import Served
from bentos.settings import Following, following
from bentos.startup import Listening, bound_connections, require_answers, require_workers, supervise, workers
from models.errors import GauntletError, WorkError
from stacks import logs
from stacks.home import home_dir
from stacks.served import use_served_stack

log = logging.getLogger("gauntlet.service")

RELEASE = Path(__file__).absolute().parent.parent / "release"
TIMEOUT_SECONDS = 30

access = Access()
lifecycle = Lifecycle()
desk = Desk(Fleet())
app = new_app(desk)


def packaged() -> Release | None:
    """The Release beside this code; None where this code is not in a Bento.

    Raises:
        WorkError: It is damaged.
    """
    return Release.open(RELEASE) if RELEASE.is_dir() else None


def _describe() -> None:
    """Add the model's routes where a Release is: the Bento's own OpenAPI is written from an import alone."""
    try:
        release = packaged()
    except GauntletError:
        return  # said by `refuse_bad_start`, before the port opens
    if release:
        add_model(app, release, at_root=True)


_describe()
bound_connections()


@bentoml.service(
    name="Gauntlet",
    http={"host": "127.0.0.1"},
    workers=workers(),
    # BentoML keeps a timer for each request until this has passed, answered or not.
    traffic={"timeout": TIMEOUT_SECONDS},
    # Ours are by model and version, and bounded; BentoML's are by whatever path a caller made up.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Without an exporter nobody sees the spans, which take longer to make than most answers.
    tracing={} if any(name.startswith("OTEL_") for name in os.environ) else {"excluded_urls": ".*"},
)
@bentoml.asgi_app(app)
class Gauntlet:
    """Answers for the models of Gauntlet; see /docs.json for their inputs."""

    def __init__(self) -> None:
        """Load the Release into this worker, or begin to follow."""
        use_served_stack()
        search_no_types()
        desk.bodies = Bodies(most_held())
        lifecycle.attend()
        logs.inherit()
        metrics().watch(_measure)
        access.watch()
        lifecycle.on_drained(desk.predictions.close)
        release = packaged()
        if release:
            _serve(release)
        else:
            follow(following())
        desk.predictions.start()
        forget_hourly(desk.fleet.keep_months, ended := threading.Event())
        desk.gauges.watch(lambda: desk.fleet.models, ended)
        lifecycle.on_drained(ended.set)
        lifecycle.on_drained(access_log().flush)

    @bentoml.on_deployment
    @staticmethod
    def refuse_bad_start() -> None:
        """Stop a bad start before the port opens: a worker that fails later leaves a port where nobody answers."""
        logs.inherit()
        listening = Listening.planned()
        try:
            # The workers inherit it.
            use_served_stack()
            require_workers()
            most_held()
            if packaged():
                bento_version()
            else:
                following().require()
            access.refuse_address(listening.host)
            listening.require_tls()
            if packaged():
                require_answers(RELEASE.parent, RELEASE)
            listening.require_port()
        except GauntletError as error:
            raise BentoMLException(str(error)) from None
        supervise()

    async def __is_ready__(self) -> bool:
        """What `/readyz` answers."""
        return _is_ready()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Close what was opened, after the last answer."""
        lifecycle.close()


# Not to the mounted app, which sees neither /metrics nor /docs.json.
Gauntlet.add_asgi_middleware(  # type: ignore[attr-defined]
    LifecycleMiddleware, lifecycle=lifecycle, refused=partial(take_down_refusal, desk)
)
Gauntlet.add_asgi_middleware(Front, access=access, desk=desk)  # type: ignore[attr-defined]


def _serve(release: Release) -> None:
    name, version = release.schema.model, bento_version()
    logs.identify(model=name, version=str(version))
    desk.fleet.put(name, Served.load(release, version))
    lifecycle.warm = True
    # Publishing dates the champion's Bento.
    metrics().champion(name, version, _bento().info.creation_time.timestamp())
    log.info("%s v%d answers", name, version)


def follow(settings: Following) -> None:
    """Begin to follow the ledger, in this worker."""
    from bentos.follow import Follower
    from stacks.ledger import Ledger, database_url

    alone = len(settings.models) == 1
    follower = Follower(
        Ledger(database_url(), keep_connection=True),
        desk.fleet,
        home_dir() / "serving",
        names=settings.models,
        limit=settings.resident,
        describe=lambda release: describe_model(app, release, at_root=alone),
    )
    desk.fleet.bring_back_with(follower.load, settings.resident)
    lifecycle.on_drained(follower.stop)
    for name in settings.models:
        # Asked before its first Release was fetched, a model says that it is not loaded, and not that it is none.
        desk.open(name, base_of(name, alone))
    follower.start()
    follower.wait()


def _is_ready() -> bool:
    # Once it was, it stays so: models may leave memory, and come back when they are asked.
    lifecycle.warm = lifecycle.warm or desk.fleet.answers
    return lifecycle.ready


def _measure() -> None:
    """Set the gauges that nobody sets when they change."""
    metrics().ready(_is_ready())
    metrics().resident(desk.fleet.resident)
    metrics().log_queue(desk.predictions.depth)
    metrics().log_lost(desk.predictions.take_lost())


def _bento() -> Any:
    return getattr(Gauntlet, "bento", None)


def bento_version() -> int:
    """Number of the version that the running Bento holds.

    Raises:
        WorkError: The code does not run from a Bento.
    """
    if _bento() is None:
        raise WorkError("this code is served from a Bento only: bentoml serve <model>:latest")
    return int(_bento().tag.version)
