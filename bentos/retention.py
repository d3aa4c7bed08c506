"""Forgetting: predictions older than a model's `serving.log.keep_months` leave the log, with their outcomes."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from models.errors import GauntletError

log = logging.getLogger("gauntlet.log")

EVERY_SECONDS: Final = 3_600.0


def forget(keep: Mapping[str, int | None]) -> None:
    """Drop what is older than may be kept; done again, or by several processes at once, it changes nothing more.

    Args:
        keep: Whole months besides the running one, by model; None keeps everything.
    """
    from bentos.predictions import drop_expired
    from stacks.ledger import database_url

    for model, months in keep.items():
        if months is None:
            continue
        try:
            gone = drop_expired(database_url(), model, months)
        except GauntletError as error:
            log.error("old predictions of %s could not be dropped: %s; tried again in an hour", model, error)
        else:
            for table in gone:
                log.info("the prediction log has dropped %s: older than %d months", table, months)


def forget_hourly(keep: Callable[[], Mapping[str, int | None]], ended: threading.Event) -> None:
    """Forget in a thread of its own, now and every hour until the process ends."""

    def follow() -> None:
        while not ended.is_set():
            forget(keep())
            ended.wait(EVERY_SECONDS)

    threading.Thread(target=follow, name="gauntlet-retention", daemon=True).start()
