"""The processes of a run meet before JAX joins them, and say what is wrong where they cannot.

JAX's runtime would wait for minutes, and then abort with a stack trace. Here process 0 listens at the
coordinator's port, each process (0, too) says there who it is, and all get the same answer, by a line of JSON each
way. Then the port is JAX's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

import jax

from jgolf import __version__
from jgolf.errors import JgolfError
from jgolf.reading import parse_json
from jgolf.train.launch import Launch

MEETING_S = 45.0
"""For all to come, from the start of each."""
HELLO_S = 2.0
"""For a process that has connected to say who it is."""
LATE_S = 3.0
"""For those that come when it has shown already that they cannot meet."""
SLACK_S = 4.0
"""To wait for process 0's answer longer than it waits for the last of the others."""
_CONNECT_S, _PAUSE_S = 5.0, 0.3
_MAX_LINE_BYTES = 4096


@dataclass(frozen=True)
class _Hello:
    """What a process says about itself."""

    process_id: int
    num_processes: int
    host: str
    program: str


def meet(launch: Launch, within_s: float = MEETING_S) -> None:
    """Waits until all processes of a run are there and agree on how many they are.

    Raises:
      JgolfError: they are not, or do not; all that came raise the same.
    """
    program = f"jgolf {__version__} with JAX {jax.__version__}"
    hello = _Hello(launch.process_id, launch.num_processes, socket.gethostname(), program)
    problem = (_receive if launch.process_id == 0 else _attend)(launch, hello, within_s)
    if problem:
        raise JgolfError(problem)


# --- process 0 -------------------------------------------------------------------------------


def _receive(launch: Launch, own: _Hello, within_s: float) -> str:
    """Waits for all, and answers them; returns what is wrong, "" for nothing."""
    deadline_s = time.monotonic() + within_s
    came: dict[int, tuple[socket.socket, _Hello]] = {}
    connections: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(launch))
        stack.enter_context(_own_connection(launch, own))
        problem = ""
        while not problem and not _are_all_there(came, launch.num_processes):
            connection, hello = _next_hello(listener, deadline_s)
            if connection is None:
                problem = _absence(launch, set(came), within_s)
                break
            stack.enter_context(connection)
            if hello is not None:
                problem = _disagreement(own, hello) or _duplicate(came, hello)
                came.setdefault(hello.process_id, (connection, hello))
                connections.append(connection)
        for connection in connections:
            _answer(connection, problem)
        if problem:
            _answer_the_late(listener, problem)
    return problem


def _are_all_there(came: dict[int, tuple[socket.socket, _Hello]], number: int) -> bool:
    """Forgets those that have ended since, which may be started again."""
    if len(came) < number:
        return False
    for index in [index for index, (connection, _) in came.items() if _has_left(connection)]:
        del came[index]
    return len(came) == number


def _answer(connection: socket.socket, problem: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(_line({"problem": problem}))


def _answer_the_late(listener: socket.socket, problem: str) -> None:
    """Tells those, too, that come a little later."""
    until_s = time.monotonic() + LATE_S
    while (found := _next_hello(listener, until_s))[0] is not None:
        with found[0]:
            _answer(found[0], problem)


def _listener(launch: Launch) -> socket.socket:
    _, port = launch.address
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=launch.num_processes + 8,
        )
    except OSError as error:
        raise JgolfError(
            f"--coordinator {launch.coordinator}: process 0 cannot listen at port {port} of {socket.gethostname()}: "
            f"{os.strerror(error.errno)}; choose another port, that is free"
        ) from None


def _own_connection(launch: Launch, own: _Hello) -> socket.socket:
    """Process 0 comes to its own meeting, which shows that the address is its own."""
    try:
        connection = socket.create_connection(launch.address, timeout=_CONNECT_S)
        connection.sendall(_line(dataclasses.asdict(own)))
        return connection
    except OSError as error:
        raise JgolfError(
            f"--coordinator {launch.coordinator}: process 0, on {own.host}, does not reach itself there: "
            f"{_reason(error)}; expected an address of that host"
        ) from None


def _next_hello(listener: socket.socket, deadline_s: float) -> tuple[socket.socket | None, _Hello | None]:
    """The next connection, and who that is; None where the time is over, and where it is another program's."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        return None, None
    listener.settimeout(left_s)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None, None
    connection.settimeout(HELLO_S)
    try:
        hello = _Hello(**_read_line(connection))
    except TypeError:
        return connection, None
    numbers, texts = (hello.process_id, hello.num_processes), (hello.host, hello.program)
    is_one = all(type(number) is int for number in numbers) and all(
        isinstance(text, str) and text.isprintable() and len(text) < 256 for text in texts
    )
    return connection, hello if is_one else None


def _has_left(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _disagreement(own: _Hello, other: _Hello) -> str:
    if own.num_processes != other.num_processes:
        return (
            f"process 0, on {own.host}, was started as one of {own.num_processes}, and process {other.process_id}, on "
            f"{other.host}, as one of {other.num_processes}: give all the same --num-processes"
        )
    if own.program != other.program:
        return (
            f"process 0, on {own.host}, is {own.program}, and process {other.process_id}, on {other.host}, is "
            f"{other.program}: install the same on all hosts"
        )
    return ""


def _duplicate(came: dict[int, tuple[socket.socket, _Hello]], hello: _Hello) -> str:
    """What is wrong where another process has come as the same; one that has ended is forgotten."""
    if hello.process_id not in came:
        return ""
    connection, earlier = came[hello.process_id]
    if _has_left(connection):
        del came[hello.process_id]
        return ""
    return (
        f"two processes, on {earlier.host} and {hello.host}, were both started as process {hello.process_id}: give "
        f"each a --process-id of its own, from 0 to {hello.num_processes - 1}"
    )


def _absence(launch: Launch, came: set[int], within_s: float) -> str:
    if 0 not in came:
        return (
            f"--coordinator {launch.coordinator}: another host than that of process 0 ({socket.gethostname()}) answers "
            "there; expected an address of process 0's host"
        )
    missing = [index for index in range(launch.num_processes) if index not in came]
    names = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
    return (
        f"process {names} of {launch.num_processes} did not come to {launch.coordinator} within {within_s:.0f} s: "
        "expected all to be started within that time of one another, and to reach that address"
    )


# --- the others ------------------------------------------------------------------------------


def _attend(launch: Launch, own: _Hello, within_s: float) -> str:
    """Comes to process 0 and waits for its answer."""
    deadline_s = time.monotonic() + within_s
    reason = "nothing answers"
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            with socket.create_connection(launch.address, timeout=min(_CONNECT_S, left_s)) as connection:
                # With nobody there, a system may connect a port of this very host to itself.
                if connection.getsockname() != connection.getpeername():
                    connection.sendall(_line(dataclasses.asdict(own)))
                    connection.settimeout(within_s + SLACK_S)
                    answer = _read_line(connection)
                    if isinstance(answer.get("problem"), str):
                        return answer["problem"]
                    reason = "what answers is no process 0 of a run that is starting"
        except OSError as error:
            reason = _reason(error)
        time.sleep(min(_PAUSE_S, max(0.0, deadline_s - time.monotonic())))
    return (
        f"process {own.process_id} of {own.num_processes}, on {own.host}, did not meet process 0 at "
        f"{launch.coordinator} within {within_s:.0f} s: {reason}; expected process 0 to be started at that address "
        "within that time, its port free and open to this host"
    )


# --- both ------------------------------------------------------------------------------------


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """The object on the next line; an empty one where there is none."""
    try:
        with connection.makefile("rb") as file:
            values = parse_json(file.readline(_MAX_LINE_BYTES))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _reason(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
