"""Prediction logs of made-up traffic, written as the service writes them: each call is one batch."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from bentos.inputs import plain_rows
from bentos.prediction_log import PredictionLog, Record, new_id
from bentos.schema import Schema


def batch_of(
    schema: Schema, frame: pd.DataFrame, answers: Sequence[dict[str, Any]], at: datetime, **fields: Any
) -> Record:
    """One batch of typed rows and their answers."""
    rows = plain_rows(frame, {name: schema.inputs[name] for name in schema.inputs if name in frame.columns})
    content = {"columns": list(rows[0]), "inputs": [list(row.values()) for row in rows], "answers": list(answers)}
    plain: dict[str, Any] = {"model": schema.model, "version": 1, "variant": "champion", "rows": len(rows)}
    moment, body = at.timestamp(), json.dumps(content).encode()
    return Record(new_id(moment), moment, entity=None, trace=None, content=body, **{**plain, **fields})


def log_batches(url: str, records: Sequence[Record]) -> None:
    """Write records to a prediction log and wait until they are durable."""

    async def write() -> None:
        log = PredictionLog(url)
        try:
            await asyncio.gather(*map(log.write, records))
        finally:
            assert log.close(30)

    asyncio.run(write())


def answers_of(schema: Schema, scores: Any) -> list[dict[str, Any]]:
    """Answers with these probabilities, shape (n, k), or numbers, shape (n,)."""
    if scores.ndim == 1:
        return [{"prediction": float(value)} for value in scores]
    shares = [dict(zip(schema.labels, row, strict=True)) for row in scores.tolist()]
    return [{"prediction": max(share, key=share.__getitem__), "probabilities": share} for share in shares]
