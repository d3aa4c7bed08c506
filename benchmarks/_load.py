"""Load on a server of this machine: as fast as some connections allow (by `wrk`), or at intended times."""

import asyncio
import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from random import Random
from typing import Any

from models.errors import ConfigError, WorkError

# uvicorn closes a connection that was idle for five seconds: a client who used one then would meet its end.
IDLE_SECONDS = 4.0
_PATIENCE = 30
_SCRIPT = """
local requests, at = {}, 0
function init(args)
  for line in io.lines(args[1]) do
    local path, body = line:match("^(%S+) (.*)$")
    requests[#requests + 1] = wrk.format("POST", path, nil, body)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('{"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p95_ms": %.3f}\\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3))
end
"""


@dataclass(frozen=True)
class Ask:
    """One request: a POST of JSON."""

    path: str
    body: str

    @classmethod
    def of(cls, path: str, content: Any) -> "Ask":
        """A request whose body is `content` as JSON."""
        return cls(path, json.dumps(content, separators=(",", ":")))


@dataclass(frozen=True)
class Load:
    """What came of load.

    Attributes:
        requests: Answers that came.
        seconds: How long it took.
        errors: Answers that were no success, and requests without one.
        p50_ms: Median latency.
        p95_ms: 95th percentile of it.
    """

    requests: int
    seconds: float
    errors: int
    p50_ms: float
    p95_ms: float

    @property
    def rate(self) -> float:
        """Requests a second that were answered well; errors are no work done."""
        return max(0, self.requests - self.errors) / self.seconds


def require_wrk() -> None:
    """Refuse to begin without the load tool.

    Raises:
        ConfigError: `wrk` is not installed.
    """
    if shutil.which("wrk") is None:
        raise ConfigError("the load is made by wrk, which is not installed: apt-get install wrk (or brew install wrk)")


def saturate(port: int, asks: Sequence[Ask], *, connections: int, seconds: float, key: str | None = None) -> Load:
    """Send requests in turn, on each connection the next one as soon as the last was answered.

    Raises:
        WorkError: `wrk` failed, or nothing was answered well.
    """
    with tempfile.TemporaryDirectory(prefix="gauntlet-wrk-") as folder:
        script, requests = Path(folder) / "load.lua", Path(folder) / "requests"
        # Not as options: what a command is started with, everybody on the machine may read.
        script.write_text("".join(f'wrk.headers["{k}"] = "{v}"\n' for k, v in _headers(key).items()) + _SCRIPT)
        requests.write_text("".join(f"{ask.path} {ask.body}\n" for ask in asks))
        options = ["-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", f"--timeout={_PATIENCE}s", "-s", str(script)]
        done = subprocess.run(
            ["wrk", *options, f"http://127.0.0.1:{port}", "--", str(requests)],
            capture_output=True,
            text=True,
            check=False,
        )
    load = read_wrk(done.stdout, done.stderr)
    if not load.rate:
        raise WorkError(
            f"port {port} answered nothing well in {load.seconds:.0f} s ({load.errors} errors): {asks[0].path}"
        )
    return load


def read_wrk(output: str, said: str = "") -> Load:
    """What `wrk` counted: the last line of what our script has it print.

    Raises:
        WorkError: It printed none.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise WorkError(f"wrk told no figures; it said: {' '.join((said or output).split())[-300:]}")
    return Load(**json.loads(lines[-1]))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def poisson(random: Random, rate: float, seconds: float) -> list[float]:
    """Times within `seconds`, in seconds from the begin, of events that happen independently `rate` times a second."""
    return list(takewhile(lambda at: at < seconds, accumulate(_gaps(random, rate))))


def zipf(random: Random, count: int, size: int) -> list[int]:
    """`size` draws out of 0 to `count` - 1; the k-th (from 0) is 1 / (k + 1) times as likely as the first."""
    return random.choices(range(count), [1 / (rank + 1) for rank in range(count)], k=size)


def keep_pace(
    port: int, asks: Sequence[Ask], *, users: int, rate: float, seconds: float, key: str | None = None, seed: int = 7
) -> Load:
    """Users who each send `rate` requests a second at random times, whether or not the server keeps up.

    A latency counts from the time a request was meant to be sent, so that what waits behind a slow answer is counted
    as late too.
    """
    random = Random(seed)
    texts = [_bytes_of(ask, key) for ask in asks]
    times = [poisson(random, rate, seconds) for _ in range(users)]
    latencies, errors = asyncio.run(_all_users(port, texts, times))
    return Load(
        sum(map(len, times)), seconds, errors, percentile(latencies, 0.5) * 1e3, percentile(latencies, 0.95) * 1e3
    )


async def _all_users(port: int, texts: Sequence[bytes], times: Sequence[Sequence[float]]) -> tuple[list[float], int]:
    begin = time.perf_counter() + 0.2
    done = await asyncio.gather(*(_user(port, texts, user, each, begin) for user, each in enumerate(times)))
    return [latency for latencies, _ in done for latency in latencies], sum(errors for _, errors in done)


async def _user(
    port: int, texts: Sequence[bytes], first: int, times: Sequence[float], begin: float
) -> tuple[list[float], int]:
    """Latencies in seconds, of failures too, and how many failed."""
    latencies: list[float] = []
    errors, used, connection = 0, -math.inf, None
    for number, at in enumerate(times, first):
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        try:
            if connection is None or time.perf_counter() - used > IDLE_SECONDS:
                if connection:
                    connection[1].close()
                connection = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(_PATIENCE):
                good = await _exchange(*connection, texts[number % len(texts)])
        except (OSError, EOFError, TimeoutError):
            connection, good = None, False
        used = time.perf_counter()
        latencies.append(used - begin - at)
        errors += not good
    if connection:
        connection[1].close()
    return latencies, errors


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bool:
    """Send a request and read the whole answer; whether it was a success."""
    writer.write(text)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head.startswith(b"http/1.1 200 ")


def _bytes_of(ask: Ask, key: str | None) -> bytes:
    body = ask.body.encode()
    headers = {"Host": "127.0.0.1", **_headers(key), "Content-Length": str(len(body))}
    lines = [f"POST {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def _headers(key: str | None) -> dict[str, str]:
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def _gaps(random: Random, rate: float) -> Iterator[float]:
    while True:
        yield random.expovariate(rate)
