"""A real web server on a free port, with the faults that a test asks for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    """A request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Answer:
    """What the server sends: `cut` bytes of the body before it drops the connection, all of it when None."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Website:
    """A running server: `respond` decides each answer, `asked` is what was asked for so far."""

    respond: Callable[[Asked], Answer]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    @property
    def ranges(self) -> list[str]:
        """The Range of each request, empty where it had none."""
        return [asked.headers.get("range", "") for asked in self.asked]


Serve = Callable[[Callable[[Asked], Answer]], Website]


@contextmanager
def website(respond: Callable[[Asked], Answer]) -> Iterator[Website]:
    """Serve `respond` on 127.0.0.1 until the block ends."""
    site = Website(respond)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, self._body())
            site.asked.append(asked)
            answer = site.respond(asked)
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
            self.close_connection = answer.cut is not None

        do_POST = do_GET

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ranged(body: bytes, tag: str = "", cut: int | None = None) -> Callable[[Asked], Answer]:
    """A server of one file that knows Range and If-Range, and drops each connection after `cut` bytes."""

    def respond(asked: Asked) -> Answer:
        headers = {"ETag": tag} if tag else {}
        wanted = asked.headers.get("range", "")
        same = asked.headers.get("if-range", tag) == tag
        if wanted and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return Answer(b"", 416)
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return Answer(body[start:], 206, headers, cut)
        return Answer(body, 200, headers, cut)

    return respond
