"""The plain functions behind the figures of `benchmarks.serve`; the figures themselves are asserted nowhere."""

import asyncio
import statistics
from random import Random

import pytest

from benchmarks._load import Ask, Load, keep_pace, percentile, poisson, read_wrk, zipf
from benchmarks.serve import Row
from models.errors import WorkError


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(value) for value in range(20, 0, -1)]

    assert [percentile(values, share) for share in (0.5, 0.95, 1.0, 0.0)] == [10, 19, 20, 1]
    assert percentile([3.0], 0.95) == 3.0


def test_poisson_times_rise_at_the_rate_and_have_gaps_as_spread_as_they_are_long() -> None:
    times = poisson(Random(7), 10.0, 1_000.0)
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]

    assert times == sorted(times) and times[0] > 0 and times[-1] < 1_000
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    assert poisson(Random(7), 10.0, 1_000.0) == times != poisson(Random(8), 10.0, 1_000.0)


def test_zipf_draws_the_second_half_as_often_as_the_first_and_reaches_the_last() -> None:
    drawn = zipf(Random(7), 100, 100_000)
    counts = [drawn.count(rank) for rank in range(100)]

    assert counts[1] / counts[0] == pytest.approx(1 / 2, rel=0.05)
    assert counts[9] / counts[0] == pytest.approx(1 / 10, rel=0.1)
    assert min(counts) > 0


def test_wrk_is_read_and_its_silence_is_an_error() -> None:
    printed = '{"requests": 900, "seconds": 3.0, "errors": 300, "p50_ms": 1.5, "p95_ms": 9.0}'
    load = read_wrk(f"Running 3s test\n  900 requests in 3.00s\n{printed}\n")

    assert load == Load(900, 3.0, 300, 1.5, 9.0)
    assert load.rate == 200  # errors are no work done
    with pytest.raises(WorkError, match="unable to connect"):
        read_wrk("", "unable to connect to 127.0.0.1")


def test_a_row_is_measured_by_its_ratio_where_there_is_another_and_by_itself_where_not() -> None:
    assert Row("singles", 8.0, 2.0, limit=4.0).met is True
    assert Row("singles", 7.0, 2.0, limit=4.0).met is False
    assert Row("p95", 8.0, 2.0, limit=0.5, at_least=False).met is False
    assert Row("errors", 0, limit=0, at_least=False).met is True
    assert Row("p95", 8.0).met is None


def test_what_waits_behind_a_slow_answer_counts_as_late_and_a_refusal_as_an_error() -> None:
    asked = len(poisson(Random(7), 20.0, 0.5))

    async def measured() -> Load:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for number in range(asked):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
                if number == 0:
                    await asyncio.sleep(0.6)
                status = b"503 Away" if number == 1 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.to_thread(
                keep_pace, port, [Ask.of("/predict", {})], users=1, rate=20.0, seconds=0.5, seed=7
            )

    load = asyncio.run(measured())

    assert load.requests == asked > 3
    assert load.errors == 1
    # Only the first answer was slow, and half of all were late by much of it.
    assert load.p50_ms > 150
