"""What `mlflow.pyfunc.load_model` runs: raw rows in, the service's answers out.

MLflow copies this script and the packages it imports beside every Release, and executes it to load one.
"""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class ReleaseModel(PythonModel):
    """A Release behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the Release: every sum is verified first."""
        _prefer_installed()
        from bentos.release import Release

        self.release = Release.open(Path(context.artifacts["release"]))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Answer raw rows as the service does, from the same pipeline.

        A column that may be missing may be left out. Ranges are for the service to enforce: a row outside them is
        answered here.

        Args:
            context: MLflow's.
            model_input: Raw rows: values as a CSV file, a Parquet file or JSON holds them.
            params: MLflow's.

        Returns:
            `prediction` (a label, or a number) and, for classes, `probabilities` (label to probability), one line per
            row, with the rows' index. A model that may abstain also says `abstained`; its prediction then is None.

        Raises:
            DataError: A column is missing, or values are not what the model's schema says.
        """
        from bentos.frame import to_frame
        from models.errors import DataError

        schema = self.release.schema
        left_out = [name for name, column in schema.inputs.items() if column.missing and name not in model_input]
        typed = to_frame(model_input.assign(**dict.fromkeys(left_out)), schema.inputs)
        if typed.problems:
            said = "; ".join(f"{p.column}: {p.count} rows, {p.reason}" for p in typed.problems[:5])
            raise DataError(f"{len(typed.problems)} columns cannot be read: {said}")
        answers = self.release.answer(typed.frame)
        table: dict[str, Any] = {"prediction": answers.told}
        if answers.abstained is not None:
            table["abstained"] = answers.abstained
        if answers.probabilities is not None:
            table["probabilities"] = [
                dict(zip(schema.labels, row, strict=True)) for row in answers.probabilities.tolist()
            ]
        return pd.DataFrame(table, index=model_input.index)


def _prefer_installed() -> None:
    """Take our packages from the environment where Gauntlet is installed, else from beside this script.

    MLflow puts the copies first on the path for good: in a clone they would shadow its own packages.
    """
    try:
        metadata.version("gauntlet")
    except metadata.PackageNotFoundError:
        return
    copies = str(Path(__file__).parent / "code")
    if copies in sys.path:
        sys.path.remove(copies)


set_model(ReleaseModel())
