"""What JAX's distributed runtime prints and does where a connection breaks."""

from __future__ import annotations

import subprocess
import sys
import time

FATAL = """\
E1125 20:29:06.886120    9006 coordination_service_agent.cc:289] Polled an error from coordination service.
F1125 20:29:06.886203    9006 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died.
:UNKNOWN:Error received from peer
*** Check failure stack trace: ***
    @     0x7f1206840634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""

CANCELLED = """\
W1126 22:05:57.047618    6451 pjrt_client.cc:1605] WatchTasksAsync failed for task 0: CANCELLED: CANCELLED
Additional GRPC error information from remote target coordination_service while calling /xla.coordination.\
CoordinationService/WatchTasks:
:CANCELLED:CANCELLED [type.googleapis.com/tensorflow.DerivedStatus='']
=== Source Location Trace: ===
external/xla+/xla/tsl/distributed_runtime/rpc/grpc_util.h:89

"""

COMPILER = "W1125 20:29:06.886120 9006 hlo.cc:9] of the compiler"
HELD_BACK = """
import os, sys, threading
from jgolf.train.runtime import RuntimeOutput
print("before", file=sys.stderr)
with RuntimeOutput().held_back() as output:
    told = threading.Event()
    output.on_fatal = lambda: (output.tell("a sentence"), told.set())
    print("in Python", file=sys.stderr, flush=True)
    os.write(2, b"{compiler}\\n")
    {rest}
print("after", file=sys.stderr)
"""


def _said(rest: str) -> list[str]:
    command = [sys.executable, "-c", HELD_BACK.format(compiler=COMPILER, rest=rest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr.splitlines()


def test_all_else_passes() -> None:
    assert _said("pass") == ["before", "in Python", COMPILER, "after"]
    assert _said(f"os.write(2, {FATAL.encode()!r}); told.wait(60)") == [
        *("before", "in Python", COMPILER),
        *("a sentence", "after"),
    ]
    assert _said(f"os.write(2, {CANCELLED.encode()!r} + b'and more\\n')") == [
        *("before", "in Python", COMPILER),
        *("and more", "after"),
    ]


def test_last_words_are_waited_for() -> None:
    late = f"threading.Timer(0.3, os.write, (2, {CANCELLED.encode()!r})).start()"
    assert _said(f"{late}; output.wait_for_last_words(60)")[2:] == [COMPILER, "after"]
    assert _said("output.wait_for_last_words(0.1)")[2:] == [COMPILER, "after"]  # none came


def test_an_abort_is_put_off() -> None:
    """Long enough for another thread to say why; without that, it happens after all."""
    script = (
        "import ctypes, os, threading, time\n"
        "from jgolf.train.runtime import delayed_abort\n"
        "with delayed_abort():\n"
        "    threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()\n"
        "    time.sleep(1)\n"
        "    os._exit(4)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 4


def test_afterwards_an_abort_is_an_abort_again() -> None:
    script = (
        "import os, time\n"
        "from jgolf.train.runtime import delayed_abort\n"
        "with delayed_abort():\n"
        "    pass\n"
        "print(time.monotonic(), flush=True)\n"
        "os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert done.returncode == -6
    assert time.monotonic() - float(done.stdout) < 5  # it would be put off by 6


def test_an_import_sets_no_handlers() -> None:
    script = (
        "def caught():  # the system's signals that have a handler, of Python or of C\n"
        "    return int(open('/proc/self/status').read().split('SigCgt:')[1].split()[0], 16) & (2**31 - 1)\n"
        "before = caught()\n"
        "import jgolf.train.loop\n"
        "assert caught() == before, (caught(), before)\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
