"""Seeded generators of raw rows, for models whose data cannot ship with the code."""

from collections.abc import Mapping

import pandas as pd

from models.config import SyntheticSource
from models.errors import ConfigError, guess
from steps.generators import heart_disease, obesity, personality, pipeline_errors
from steps.generators.knobs import Generator

GENERATORS: Mapping[str, Generator] = {
    "heart_disease": heart_disease.GENERATOR,
    "obesity": obesity.GENERATOR,
    "personality": personality.GENERATOR,
    "pipeline_errors": pipeline_errors.GENERATOR,
}


def generate(source: SyntheticSource) -> pd.DataFrame:
    """The rows of a synthetic source.

    Raises:
        ConfigError: No generator has that name, or a knob is unknown or out of bounds.
    """
    if source.generator not in GENERATORS:
        known = guess(source.generator, list(GENERATORS))
        raise ConfigError(f"source '{source.name}': unknown generator '{source.generator}'{known}")
    where = f"source '{source.name}', generator '{source.generator}'"
    return GENERATORS[source.generator].make(source.rows, source.seed, source.knobs, where)
