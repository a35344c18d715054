"""The page's server: whom it answers, what it takes, and what it does while it is busy."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jgolf.data.pure_bytes import ByteTokenizer, byte_tokenizer_file
from jgolf.errors import JgolfError
from jgolf.evaluate.sample import continued_text
from jgolf.serve.server import ADDRESS, Asked, PageServer

JSON = {"Content-Type": "application/json"}
END = '{"end": "of the text"}\n'
FAILURES = {
    "memory": RuntimeError("RESOURCE_EXHAUSTED: no 3 GB\nmore of it"),
    "host": MemoryError(),
    "file": OSError(5, "Input/output error"),
    "any": KeyError("x"),
}
"""Prompt → what the model raises in the middle of its answer."""
ASKED = {"prompt": "ä", "tokens": 3, "temperature": 0.5, "top_p": 1, "seed": 7}


@pytest.fixture
def released() -> threading.Event:
    """Set where a continuation may end."""
    event = threading.Event()
    event.set()
    return event


@pytest.fixture
def server(released: threading.Event) -> Iterator[PageServer]:
    def go_on(asked: Asked) -> Iterator[str]:
        if asked.tokens < 0:
            raise JgolfError("fewer than none")

        def pieces() -> Iterator[str]:
            yield f"{asked.prompt}1"
            assert released.wait(60)
            if asked.prompt in FAILURES:
                raise FAILURES[asked.prompt]
            yield f"{asked.tokens} {asked.temperature} {asked.top_p} {asked.seed}"

        if asked.prompt == "at once":
            raise RuntimeError("of the model\nand where it is in the code")
        return pieces()

    with PageServer(0, "a model", go_on) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def send(server: PageServer, method: str, path: str, body: object = None, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, ({} if data is None else JSON) | names)
    return connection.getresponse()


def texts(answer: http.client.HTTPResponse) -> str:
    """What was continued, to its end."""
    *pieces, end = answer.read().decode().splitlines(keepends=True)
    assert end == END
    return "".join(json.loads(piece)["text"] for piece in pieces)


def test_the_page_loads_nothing_from_elsewhere(server: PageServer) -> None:
    answer = send(server, "GET", "/")
    page = answer.read().decode()
    assert answer.status == 200 and page.startswith("<!doctype html>")
    assert not re.search(r"https?:|//\w|src=|href=|@import|innerHTML", page)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert send(server, "GET", "/model").read() == b"a model"
    assert send(server, "GET", "/../etc/passwd").status == 404
    assert server.server_address[0] == "127.0.0.1"


def test_a_text_is_streamed(server: PageServer, released: threading.Event) -> None:
    released.clear()
    answer = send(server, "POST", "/continue", ASKED)
    assert answer.status == 200 and json.loads(answer.readline()) == {"text": "ä1"}  # before the rest is there
    busy = send(server, "POST", "/continue", ASKED)
    assert busy.status == 503 and b"one at a time" in busy.read()
    assert send(server, "GET", "/model").status == 200
    released.set()
    assert answer.read().decode() == f'{{"text": "3 0.5 1.0 7"}}\n{END}'
    assert texts(send(server, "POST", "/continue", ASKED)) == "ä13 0.5 1.0 7"
    asked = {**ASKED, "temperature": 10**60}  # as a float, as no 64 bits hold it otherwise
    assert texts(send(server, "POST", "/continue", asked)) == "ä13 1e+60 1.0 7"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("memory", "out of memory: RESOURCE_EXHAUSTED: no 3 GB: ask for fewer tokens, or take a smaller model"),
        ("host", "out of memory: MemoryError: ask for fewer tokens, or take a smaller model"),
        ("file", "the model failed: OSError: [Errno 5] Input/output error"),
        ("any", "the model failed: KeyError: 'x'"),
    ],
)
def test_a_model_that_fails_in_the_middle_is_told_of(
    server: PageServer, prompt: str, message: str, capfd: pytest.CaptureFixture
) -> None:
    """On the page, and in a line of the terminal; the next text is continued as if nothing had been."""
    answer = send(server, "POST", "/continue", {**ASKED, "prompt": prompt})
    assert [json.loads(line) for line in answer.read().splitlines()] == [{"text": f"{prompt}1"}, {"error": message}]
    assert texts(send(server, "POST", "/continue", ASKED)) == "ä13 0.5 1.0 7"
    assert capfd.readouterr().err == f"error: {message}\n"


def test_a_model_that_fails_at_once_is_told_of(server: PageServer, capfd: pytest.CaptureFixture) -> None:
    answer = send(server, "POST", "/continue", {**ASKED, "prompt": "at once"})
    message = "the model failed: RuntimeError: of the model"
    assert answer.status == 500 and answer.read().decode() == message
    assert texts(send(server, "POST", "/continue", ASKED)) == "ä13 0.5 1.0 7"
    assert capfd.readouterr().err == f"error: {message}\n"


def test_who_goes_away_makes_room(server: PageServer, released: threading.Event) -> None:
    released.clear()
    answer = send(server, "POST", "/continue", ASKED)
    answer.read(3)
    answer.close()
    released.set()
    until = time.monotonic() + 60
    while (again := send(server, "POST", "/continue", ASKED)).status != 200:
        assert time.monotonic() < until, "still busy"
        again.read()


def test_who_breaks_off_is_passed_over_in_silence(server: PageServer, capfd: pytest.CaptureFixture) -> None:
    """A browser that is closed resets its connections, at any moment."""
    before = {*threading.enumerate()}
    head = f"Host: 127.0.0.1:{server.port}\r\n"
    post = f"POST /continue HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    for sent in ("GET / HT", f"GET / HTTP/1.0\r\n{head}\r\n", post, f"{post}{{"):
        with socket.create_connection((ADDRESS, server.port)) as connection:
            connection.sendall(sent.encode())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset when closed
    until = time.monotonic() + 60
    while any("process_request_thread" in thread.name for thread in {*threading.enumerate()} - before):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert send(server, "GET", "/model").read() == b"a model"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "localhost:1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/model"), ("POST", "/continue")])
def test_other_pages_and_names_are_refused(server: PageServer, headers: dict, method: str, path: str) -> None:
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    answer = send(server, method, path, ASKED if method == "POST" else None, **headers)
    assert answer.status == 403 and b"a model" not in answer.read()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_its_own_names_are_taken(server: PageServer, host: str) -> None:
    named = f"{host}:{server.port}"
    assert send(server, "POST", "/continue", ASKED, Host=named, Origin=f"http://{named}").status == 200


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"{", {}, "not JSON"),
        (b"", {}, "not JSON"),
        (b'"x"', {}, "expected an object of prompt, tokens"),
        ({**ASKED, "more": 1}, {}, "expected an object of prompt, tokens"),
        ({**ASKED, "tokens": "3"}, {}, "tokens: expected int, found '3'"),
        ({**ASKED, "tokens": True}, {}, "tokens: expected int, found True"),
        ({**ASKED, "seed": 1.5}, {}, "seed: expected int, found 1.5"),
        ({**ASKED, "temperature": None}, {}, "temperature: expected int or float, found None"),
        (
            b'{"prompt": "a\\ud800", "tokens": 1, "temperature": 1, "top_p": 1, "seed": 1}',
            {},
            "prompt: not UTF-8 text: '",
        ),
        ({**ASKED, "tokens": -1}, {}, "fewer than none"),
        (ASKED, {"Content_Type": "text/plain"}, "expected Content-Type: application/json"),
        (ASKED, {"Content_Length": "99999999"}, "Content-Length '99999999': expected a number up to 1,048,576"),
        (ASKED, {"Content_Length": "-1"}, "Content-Length '-1': expected"),
    ],
)
def test_requests_that_make_no_sense(server: PageServer, body: object, headers: dict, message: str) -> None:
    answer = send(server, "POST", "/continue", body, **headers)
    assert answer.status == 400 and message in answer.read().decode()


def test_a_port_that_is_taken(server: PageServer) -> None:
    with pytest.raises(JgolfError, match=f"--port {server.port}: taken by another program; give another, or 0"):
        PageServer(server.port, "", lambda asked: iter(()))


def test_pieces_are_whole_characters_up_to_the_end_of_the_document(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer(tmp_path / "x.json", byte_tokenizer_file())
    start, new = tokenizer.encode("a"), tokenizer.encode("ü€b")
    pieces = list(continued_text(tokenizer, [tokenizer.bos_id, *start], [*new, tokenizer.bos_id, *new]))
    assert pieces == ["ü", "€", "b"]
