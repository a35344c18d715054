"""Processes that meet before they train, or cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from jgolf import __version__
from jgolf.errors import JgolfError
from jgolf.train import meeting
from jgolf.train.launch import Launch
from jgolf.train.meeting import meet
from tests.train.runs import free_port

SOON_S = 1.0
"""Where they wait in vain."""
PROGRAM = f"jgolf {__version__} with JAX {jax.__version__}"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LATE_S", 1.5)
    monkeypatch.setattr(meeting, "SLACK_S", 1.0)


def _met(*launches: Launch, within_s: float = 60.0) -> list[str]:
    """What each of them is told, "" where all is well, by threads in the place of processes."""

    def one(launch: Launch) -> str:
        try:
            meet(launch, within_s)
        except JgolfError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(launches)) as pool:
        return list(pool.map(one, launches))


def _launches(counts: list[int], ids: list[int]) -> list[Launch]:
    port = free_port()
    return [Launch(count, index, f"localhost:{port}") for count, index in zip(counts, ids, strict=True)]


@contextlib.contextmanager
def _other_program(answer: bytes | None) -> Iterator[int]:
    """A port at which something else answers, or is silent."""
    with socket.create_server(("localhost", 0)) as server:

        def serve() -> None:
            kept = []
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    if answer is not None:
                        connection.sendall(answer)
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def _connection(launch: Launch) -> socket.socket:
    """To process 0, as soon as that listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(launch.address, timeout=60)
        time.sleep(0.01)


def test_all_come() -> None:
    assert _met(*_launches([3, 3, 3], [2, 0, 1])) == ["", "", ""]


def test_the_port_is_free_afterwards() -> None:
    launches = _launches([2, 2], [0, 1])
    for _ in range(3):
        assert _met(*launches) == ["", ""]


def test_another_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for counts, ids in (([2, 3, 3], [0, 1, 2]), ([2, 3], [0, 1]), ([3, 2], [0, 1])):
        if len(ids) == 2:
            monkeypatch.setattr(meeting, "LATE_S", 0.0)  # the second, which shows it, is the last
        told = _met(*_launches(counts, ids))
        assert len(set(told)) == 1
        assert f"was started as one of {counts[0]}, and process" in told[0]
        assert f"as one of {counts[1]}: give all the same --num-processes" in told[0]


def test_one_does_not_come() -> None:
    told = _met(*_launches([3, 3], [0, 2]), within_s=3.0)
    assert told[0] == told[1]
    assert told[0].startswith("process 1 of 3 did not come to localhost:")


def test_two_come_as_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LATE_S", 0.0)  # the last shows it
    told = _met(*_launches([3, 3, 3], [0, 1, 1]))
    assert len(set(told)) == 1
    assert "were both started as process 1: give each a --process-id of its own, from 0 to 2" in told[0]


def test_another_version() -> None:
    first = meeting._Hello(0, 2, "a", "jgolf 1 with JAX 2")
    second = dataclasses.replace(first, process_id=1, host="b", program="jgolf 1 with JAX 3")
    assert "on b, is jgolf 1 with JAX 3: install the same" in meeting._disagreement(first, second)


@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"[]\n", b'{"problem": 3}\n'])
def test_another_program_at_the_port(answer: bytes | None) -> None:
    with _other_program(answer) as port:
        (told,) = _met(Launch(2, 1, f"localhost:{port}"), within_s=SOON_S)
    assert f"did not meet process 0 at localhost:{port} within 1 s: what answers is no process 0" in told


def test_other_programs_come_too() -> None:
    launches = _launches([2, 2], [0, 1])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_met, launches[0])
        with _connection(launches[0]) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert _met(launches[1]) == [""]
        assert first.result() == [""]


def test_nobody_there() -> None:
    (told,) = _met(Launch(2, 1, f"localhost:{free_port()}"), within_s=SOON_S)
    assert "within 1 s: Connection refused; expected process 0 to be started at that address" in told
    (told,) = _met(Launch(2, 1, "no-such-host.invalid:7733"), within_s=SOON_S)
    assert "process 1 of 2" in told and "no-such-host.invalid:7733" in told and "\n" not in told


def test_an_address_that_is_not_process_0_s() -> None:
    (told,) = _met(Launch(2, 0, f"no-such-host.invalid:{free_port()}"))
    assert "does not reach itself there" in told and "expected an address of that host" in told


def test_a_port_in_use() -> None:
    with socket.create_server(("", 0)) as server:
        (told,) = _met(Launch(2, 0, f"localhost:{server.getsockname()[1]}"))
    assert "cannot listen at port" in told and "Address already in use; choose another port" in told


def test_one_that_left_may_come_again() -> None:
    launches = _launches([3, 3, 3], [0, 1, 2])  # process 2 comes last, so that process 1 leaves before all are there
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_met, launches[0])
        hello = dataclasses.asdict(meeting._Hello(1, 3, "a", PROGRAM))
        with _connection(launches[0]) as ended:
            ended.sendall(json.dumps(hello).encode() + b"\n")
        assert _met(*launches[1:]) == ["", ""]
        assert first.result() == [""]
