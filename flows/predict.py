"""The Prefect flow `predict`: a table scored by the champion, for schedules and workers."""

from typing import Any, Literal

from prefect import flow

from models.config import load_model
from stacks.active import use_stack
from stacks.home import use_home


@flow(name="predict", flow_run_name="predict-{model}")
def predict(
    model: str,
    input: str,
    output: str,
    query: str | None = None,
    table: str | None = None,
    keep: list[str] | None = None,
    key: list[str] | None = None,
    separator: str = ",",
    on_bad_row: Literal["stop", "skip"] = "stop",
    force: bool = False,
) -> dict[str, Any]:
    """Answer all rows of a table with the champion, as `gauntlet predict` does; a retried run goes on where it ended.

    Args:
        model: Name of a YAML in `models/`.
        input: A CSV or Parquet file, or the URL of a database; best absolute, a worker may start anywhere.
        output: Likewise.
        query: What the input database is asked.
        table: Of the output database.
        keep: Input columns that are handed on; one that identifies a person as a pseudonym.
        key: Input columns that are handed on as they are, whatever they hold.
        separator: Of an input CSV.
        on_bad_row: Whether a row that the model cannot be asked about stops the run or is left out.
        force: Whether to begin anew where another output is in the way.

    Returns:
        What `gauntlet predict --json` prints.

    Raises:
        GauntletError: See `steps.batch.predict`.
    """
    load_model(model)
    use_home()
    use_stack()
    from steps import batch
    from steps.resume import Order

    order = Order(
        model=model,
        input=input,
        output=output,
        query=query,
        table=table,
        keep=tuple(keep or ()),
        key=tuple(key or ()),
        separator=separator,
    )
    return batch.predict(order, on_bad_row, force).model_dump()
