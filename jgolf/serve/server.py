"""The server of the page: on this machine only, and for its own page only.

A page of any other site may send requests to this address, and a name of that site may be made to mean this machine
(DNS rebinding). So a request has to name the server by an address or a name of this machine, and what makes the model
work has to be JSON, which a browser lets no other page send.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, NamedTuple

from jgolf.errors import JgolfError, first_line, is_out_of_memory
from jgolf.reading import Unreadable, excerpt, parse_json

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
"""By which a request may name the server."""
MOST_BODY_BYTES = 1 << 20
IDLE_S = 30
"""After which a connection that says nothing is closed: browsers open some in advance."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Asked(NamedTuple):
    """What a page asks for."""

    prompt: str
    tokens: int
    temperature: float
    top_p: float
    seed: int


Continue = Callable[[Asked], Iterator[str]]
"""Yields the text that follows a prompt, in pieces; raises JgolfError, at once, for what makes no sense."""


class PageServer(ThreadingHTTPServer):
    """Serves the page; one continuation at a time, others are told to wait."""

    daemon_threads = True

    def __init__(self, port: int, about: str, go_on: Continue):
        """
        Args:
          port: to listen at; 0 for any that is free.
          about: what the page says of the model.
          go_on: continues a text.

        Raises:
          JgolfError: the port is taken, or not to be had.
        """
        self.about, self.go_on = about, go_on
        self.busy = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            why = "taken by another program" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise JgolfError(f"--port {port}: {why}; give another, or 0 for any that is free") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of who went away in the middle."""
        if not isinstance(error := sys.exception(), OSError):
            self.failed(error)

    def failed(self, error: BaseException) -> str:
        """Tells the terminal of an error, in a line, and goes on; what the page is to say of it."""
        if is_out_of_memory(error):
            text = f"out of memory: {first_line(error)}: ask for fewer tokens, or take a smaller model"
        else:
            text = f"the model failed: {type(error).__name__}: {first_line(error)}"
        print(f"error: {text}", file=sys.stderr, flush=True)
        return text

    @property
    def port(self) -> int:
        """That it listens at."""
        return self.server_address[1]

    @property
    def hosts(self) -> set[str]:
        """What the header Host may be."""
        return {f"{name}:{self.port}" for name in NAMES} | ({*NAMES} if self.port == 80 else set())


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "jgolf"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """The page, and what it says of the model."""
        if not self._is_ours():
            return
        if self.path == "/":
            page = resources.files("jgolf.serve").joinpath("page.html").read_bytes()
            self._answer(HTTPStatus.OK, page, "text/html")
        elif self.path == "/model":
            self._answer(HTTPStatus.OK, self.server.about)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing here but the page, /")

    def do_POST(self) -> None:
        """Continues a text: a line of JSON for every piece, {"text": …}, and at last {"end": …} or {"error": …}."""
        if not self._is_ours():
            return
        if self.path != "/continue":
            self._answer(HTTPStatus.NOT_FOUND, "expected a POST to /continue")
            return
        try:
            asked = _asked(self._body())
        except Unreadable as error:
            self._answer(HTTPStatus.BAD_REQUEST, str(error))
            return
        try:
            pieces = self.server.go_on(asked)
        except JgolfError as error:
            self._answer(HTTPStatus.BAD_REQUEST, str(error))
            return
        except Exception as error:  # the model's, of any kind
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, self.server.failed(error))
            return
        if not self.server.busy.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "busy with another text: one at a time")
            return
        try:
            self._start(HTTPStatus.OK, "application/x-ndjson", None)
            for line in self._lines(pieces):
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            pass  # no one reads it any more
        finally:
            self.server.busy.release()
            self.close_connection = True

    def _lines(self, pieces: Iterator[str]) -> Iterator[dict[str, str]]:
        """The pieces of the text, and how it ended: by itself, or with an error."""
        try:
            for piece in pieces:
                yield {"text": piece}
        except Exception as error:  # the model's, of any kind: the next text may go well
            yield {"error": self.server.failed(error)}
        else:
            yield {"end": "of the text"}

    def _is_ours(self) -> bool:
        """Whether the request is the page's own; answers it where it is not."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.lower() in self.server.hosts and origin in (None, f"http://{host}"):
            return True
        text = f"expected a request to {' or '.join(sorted(self.server.hosts))} by its own page"
        self._answer(HTTPStatus.FORBIDDEN, text)
        return False

    def _body(self) -> bytes:
        """Raises Unreadable where it is no JSON by its header, or too long."""
        if self.headers.get_content_type() != "application/json":
            raise Unreadable("expected Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MOST_BODY_BYTES):
            raise Unreadable(f"Content-Length {excerpt(length)}: expected a number up to {MOST_BODY_BYTES:,}")
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, content: str | bytes, kind: str = "text/plain") -> None:
        body = content.encode() if isinstance(content, str) else content
        self._start(status, kind, len(body))
        self.wfile.write(body)

    def _start(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the terminal is for errors."""


def _asked(body: bytes) -> Asked:
    """What a body asks for; raises Unreadable where it is no such request."""
    found = parse_json(body)
    kinds = {"prompt": (str,), "tokens": (int,), "temperature": (int, float), "top_p": (int, float), "seed": (int,)}
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        raise Unreadable(f"expected an object of {', '.join(kinds)}, found {excerpt(found)}")
    for name, kind in kinds.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise Unreadable(
                f"{name}: expected {' or '.join(one.__name__ for one in kind)}, found {excerpt(found[name])}"
            )
    try:
        found["prompt"].encode()  # JSON can spell half a surrogate pair, which is no text
    except UnicodeEncodeError as error:
        raise Unreadable(f"prompt: not UTF-8 text: {excerpt(found['prompt'][error.start], 8)}") from None
    return Asked(**found | {name: float(found[name]) for name in ("temperature", "top_p")})
