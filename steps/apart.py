"""A place apart for BentoML's own processes: their own home, nothing of the user's settings."""

import os
from pathlib import Path


def apart(home: Path) -> dict[str, str]:
    """The environment of a BentoML process whose home is `home` (created), whatever the user's variables say.

    `bentoml serve` empties `prometheus_multiproc_dir` of its home, so two servers must not share one. Nor does it find
    the user's access keys: what is served for a moment, to the process that started it, asks for none.
    """
    home.mkdir(parents=True, exist_ok=True)
    dropped = ("BENTOML_", "PROMETHEUS_", "GAUNTLET_SERVE", "GAUNTLET_DATABASE", "OTEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    # The Bento's own code must be found before this clone's.
    kept.pop("PYTHONPATH", None)
    kept.pop("PYTHONSAFEPATH", None)
    own = {"GAUNTLET_HOME": str(home), "BENTOML_HOME": str(home)}
    return kept | own | {"BENTOML_DO_NOT_TRACK": "true", "DO_NOT_TRACK": "true"}
