"""Two judged versions that never met as champion and challenger, put on the same test rows now."""

from uuid import UUID

import pandas as pd

from bentos.release import Release
from models.errors import DataError, WorkError, bounded
from stacks import registry
from steps.compare import Comparison, compare, no_figures
from steps.families import one_thread
from steps.judged import TRAIN_RUN_TAG, Judged


def rematch(challenger: Judged, champion: Judged) -> Comparison:
    """Compare two versions of a model on the challenger's test rows, as `evaluate` compares a challenger.

    Both Releases are fetched and verified; the test rows are those that ZenML keeps of the challenger's training run.

    Returns:
        The figures on the rows that neither was trained on; without figures, and with notes that say why, where a
        Release or the rows are not at hand, or do not allow it.
    """
    try:
        ours, theirs = (_release(judged) for judged in (challenger, champion))
        test = _test_rows(challenger)
        with one_thread():
            return compare(ours.config, ours, theirs, f"v{champion.version}", test)
    except (DataError, WorkError) as error:
        return no_figures(bounded(str(error), 300))


def _release(judged: Judged) -> Release:
    """A version's Release.

    Raises:
        WorkError: It cannot be read.
    """
    try:
        return Release.open(registry.release_dir(judged.model, judged.version))
    except WorkError as error:
        raise WorkError(f"the Release of v{judged.version} cannot be read: {error}") from error


def _test_rows(judged: Judged) -> pd.DataFrame:
    """The typed test rows of a version's training run.

    Raises:
        WorkError: ZenML has them no more, or they lie in partitions.
    """
    from zenml.client import Client

    name = f"the test rows of v{judged.version}"
    run = judged.tags.get(TRAIN_RUN_TAG)
    if run is None:
        raise WorkError(f"{name} are not at hand: its MLflow run names no training run")
    try:
        (artifact,) = Client().get_pipeline_run(UUID(run)).steps["split"].outputs["test"]
        rows = artifact.load()
    except Exception as error:  # of ZenML's, or of whatever store the rows lie in
        raise WorkError(f"{name} are not at hand any more ({type(error).__name__})") from error
    if not isinstance(rows, pd.DataFrame):
        raise WorkError(f"{name} lie in partitions (compute: dask), which a report does not go through")
    return rows
