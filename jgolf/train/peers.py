"""The processes of a run among themselves: agreeing on a text, and noticing when one is gone.

JAX's own reaction to a lost process is to abort the others, see `jgolf.train.runtime`; or they wait in a
collective operation for as long as its time-outs allow. Here, every process counts up a number in the key-value
store of JAX's coordinator and watches the others' numbers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import traceback
from typing import Any, NoReturn

import jax

from jgolf.errors import EXIT_PROCESS_LOST, JgolfError, first_line
from jgolf.train.launch import split_address
from jgolf.train.runtime import RuntimeOutput

BEAT_S = 1.0
PATIENCE_S = 20.0
"""A process that is not heard from for so long is taken for lost."""
HURRIED_PATIENCE_S = 5.0
"""The same, once a collective operation has failed."""
LAST_LINES_S = 0.2
"""For what was printed before to pass."""
BARRIER_TIMEOUT_S = 24 * 3600
"""No more than a formality: a process that is gone is noticed long before."""

_PORTS, _BEATS, _FAILURES, _AGREED = "jgolf/port", "jgolf/beat", "jgolf/failed", "jgolf/agreed"


class Peers:
    """The other processes of a run. As a context manager it watches them, and tells them of an error here."""

    def __init__(
        self,
        client: Any = None,
        coordinator: str = "",
        index: int = 0,
        count: int = 1,
        output: RuntimeOutput | None = None,
    ):
        """For several processes: the client of JAX's distributed runtime, and host:port of its service."""
        self._output = output or RuntimeOutput()
        self._coordinator = coordinator
        self.index = index
        self.count = count
        self._client = client
        self._patience_s = PATIENCE_S
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and takes the decisions."""
        return self.index == 0

    def agree(self, name: str, value: str) -> str:
        """The first process's `value`, in every process; each `name` is good for one use."""
        if self._client is None:
            return value
        if not self.is_first:
            return self._client.blocking_key_value_get(f"{_AGREED}/{name}", 1000 * BARRIER_TIMEOUT_S)
        self._client.key_value_set(f"{_AGREED}/{name}", value)
        return value

    def exchange(self, name: str, value: str) -> list[str]:
        """The `value` of each process, in their order; each `name` is good for one use."""
        if self._client is None:
            return [value]
        self._client.key_value_set(f"{_AGREED}/{name}/{self.index}", value)
        return [
            self._client.blocking_key_value_get(f"{_AGREED}/{name}/{index}", 1000 * BARRIER_TIMEOUT_S)
            for index in range(self.count)
        ]

    def barrier(self, name: str) -> None:
        """Waits until every process is here; each `name` is good for one use."""
        if self._client is not None:
            self._client.wait_at_barrier(f"jgolf/{name}", 1000 * BARRIER_TIMEOUT_S)

    def __enter__(self) -> Peers:
        self._output.on_fatal = lambda: self._ended.is_set() or self._leave(0, "its connection broke")
        self._contact_at = time.monotonic()
        self._heard_at = dict.fromkeys(range(self.count), self._contact_at)
        self._ports: dict[int, tuple[str, int]] = {}
        for thread in self._threads:
            thread.start()
        self._publish_port()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: object) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely a collective operation that another process has left: the watch ends this one.
            self._patience_s = HURRIED_PATIENCE_S
            time.sleep(HURRIED_PATIENCE_S + 3 * BEAT_S)
        if error is not None:
            self._fail(error)
        self.barrier("end")
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _fail(self, error: BaseException) -> NoReturn:
        """Tells of an error, to the user and to the others, and ends this process.

        Without the usual way out of Python, on which JAX waits for the others and then aborts.
        """
        self._ended.set()
        known = isinstance(error, JgolfError)
        text = f"error: {error}" if known else "".join(traceback.format_exception(error))
        self._output.tell(text)
        telling = threading.Thread(target=self._tell_others, args=(first_line(error),), daemon=True)
        telling.start()  # which may take long, where process 0 is the one that is gone
        time.sleep(3 * BEAT_S)  # with process 0, the store itself would be gone before the others can read it
        os._exit(error.exit_code if known else 1)

    def _tell_others(self, text: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_FAILURES}/{self.index}", text)

    def _beat(self) -> None:
        """Says that this process is there, and listens to the others."""
        numbers: dict[int, str] = {}
        count = 0
        while not self._ended.wait(BEAT_S):
            count += 1
            try:
                self._client.key_value_set(f"{_BEATS}/{self.index}", str(count), allow_overwrite=True)
                beats = self._client.key_value_dir_get(_BEATS)
                failures = self._client.key_value_dir_get(_FAILURES)
            except jax.errors.JaxRuntimeError:
                if not self._ended.is_set():
                    self._leave(0, "it coordinates the others and cannot be reached")
                return
            self._contact_at = time.monotonic()
            for key, number in beats:
                index = int(key.rpartition("/")[2])
                if numbers.get(index) != number:
                    numbers[index], self._heard_at[index] = number, self._contact_at
            for key, text in failures:
                index = int(key.rpartition("/")[2])
                if index != self.index and not self._ended.wait(BEAT_S):  # the same may be about to happen here
                    self._leave(index, f"it ended with an error: {text}")

    def _watch(self) -> None:
        """Ends this process when another one has been silent for too long."""
        while not self._ended.wait(BEAT_S):
            now, contact_at = time.monotonic(), self._contact_at
            for index, heard_at in list(self._heard_at.items()):
                # Without contact to the coordinator, process 0, there is no news of the others, good or bad.
                silent_s = now - contact_at if index == 0 else contact_at - heard_at
                if index == self.index or silent_s < 2 * BEAT_S:
                    continue
                if self._is_gone(index):
                    self._leave(index, "it has ended")
                if silent_s > self._patience_s:
                    self._leave(index, f"it has not been heard from for {silent_s:.0f} s")

    def _publish_port(self) -> None:
        """Opens a port at which the others can see that this process exists, and learns of theirs."""
        with socket.create_connection(split_address(self._coordinator)) as connection:
            own_host, family = connection.getsockname()[0], connection.family
        self._listener = socket.create_server((own_host, 0), family=family)
        self._client.key_value_set(f"{_PORTS}/{self.index}", f"{own_host}:{self._listener.getsockname()[1]}")
        self._ports = {
            index: split_address(self._client.blocking_key_value_get(f"{_PORTS}/{index}", 1000 * BARRIER_TIMEOUT_S))
            for index in range(self.count)
        }

    def _is_gone(self, index: int) -> bool:
        """Whether a process has ended for certain: its host says that nobody listens at its port."""
        if index not in self._ports:
            return False
        try:
            socket.create_connection(self._ports[index], timeout=BEAT_S).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # not known
        return False

    def _leave(self, index: int, text: str) -> NoReturn:
        """Ends this process at once: its main thread may be waiting for the lost one for ever."""
        end_process(
            self._output,
            f"error: process {index} of {self.count} is lost: {text}. Process {self.index} ends too. Start all of them "
            "again with --resume, to go on from the newest checkpoint",
            EXIT_PROCESS_LOST,
        )


_ending = threading.Lock()


def end_process(output: RuntimeOutput, text: str, exit_code: int) -> NoReturn:
    """Ends this process at once, with some last words; of several threads that want to, the first does."""
    _ending.acquire()
    time.sleep(LAST_LINES_S)
    output.tell(text)
    os._exit(exit_code)
