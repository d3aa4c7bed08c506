"""What the environment says to a service that follows the ledger."""

import os
from dataclasses import dataclass

from bentos.access import has_database
from models.errors import ConfigError

MODELS = "GAUNTLET_SERVE"
RESIDENT = "GAUNTLET_RESIDENT"
DATABASE = "GAUNTLET_DATABASE"
USUALLY_RESIDENT = 20


@dataclass(frozen=True)
class Following:
    """What is followed.

    Attributes:
        models: Names; empty for all of the ledger.
        resident: Models in memory at most.
    """

    models: tuple[str, ...]
    resident: int

    def require(self) -> None:
        """Refuse to start where nothing could ever be served.

        Raises:
            ConfigError: There is no ledger, or it has no champion of a model that is named.
            WorkError: The ledger cannot be read.
        """
        from stacks.ledger import open_ledger

        if not has_database():
            raise ConfigError(
                "there is no Release beside the service's code, and no ledger to follow: make a champion with "
                f"`gauntlet run <model>`, or name the database in {DATABASE}; a packaged model is served by "
                "`bentoml serve <model>:latest`"
            )
        ledger = open_ledger()
        champions = [model for model in ledger.models() if ledger.champion(model) is not None]
        if lacking := [model for model in self.models if model not in champions]:
            raise ConfigError(
                f"{MODELS} names {', '.join(lacking[:5])}, of which the ledger has no champion; "
                f"it has those of: {', '.join(champions[:20]) or 'no model'}"
            )
        if not champions:
            raise ConfigError("the ledger has no champion of any model yet; make one: gauntlet run <model>")


def following() -> Following:
    """Read the environment.

    Raises:
        ConfigError: A value is not what it should be.
    """
    resident = os.environ.get(RESIDENT, str(USUALLY_RESIDENT))
    if not resident.isdigit() or not 1 <= int(resident) <= 10_000:
        raise ConfigError(f"{RESIDENT} is the number of models in memory at most: write one from 1 to 10000")
    names = tuple(dict.fromkeys(name.strip() for name in os.environ.get(MODELS, "").split(",") if name.strip()))
    return Following(names, int(resident))
