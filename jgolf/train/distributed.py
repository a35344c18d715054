"""Starting several processes as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import jax

from jgolf.errors import EXIT_BAD_INPUT, JgolfError, first_line
from jgolf.train.launch import Launch
from jgolf.train.meeting import meet
from jgolf.train.peers import Peers, end_process
from jgolf.train.runtime import RuntimeOutput, delayed_abort

START_TIMEOUT_S = 60
"""For JAX to join processes that have met."""
SHUTDOWN_TIMEOUT_S = 10
"""For the others to say good-bye; all have reached the end by then, or one is lost."""
LAST_WORDS_S = 2.0
"""For a GPU's runtime to say that its calls are cancelled, which it does when the service in process 0 has ended."""


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[Peers]:
    """Joins the other processes, before JAX is used for the first time, and leaves them in order.

    Raises:
      JgolfError: they did not all come, do not agree, or the coordinator's port cannot be used.
    """
    if launch is None or launch.num_processes == 1:
        yield Peers()
        return
    meet(launch)
    with contextlib.ExitStack() as stack:
        stack.enter_context(delayed_abort())
        output = RuntimeOutput()
        if launch.process_id != 0:  # in that one, the service is part of the process, and its terminal shows bars
            stack.enter_context(output.held_back())
        _join(launch, output)
        # JAX has no public way to its key-value store; Orbax reaches it in this way too.
        client = jax._src.distributed.global_state.client
        with Peers(client, launch.coordinator, launch.process_id, launch.num_processes, output) as peers:
            yield peers
        if launch.process_id == 0:  # no bars any more
            stack.enter_context(output.held_back())
        jax.distributed.shutdown()
        if launch.process_id != 0 and jax.default_backend() == "gpu":
            output.wait_for_last_words(LAST_WORDS_S)


def _join(launch: Launch, output: RuntimeOutput) -> None:
    where = f"process {launch.process_id} of {launch.num_processes} met the others at {launch.coordinator}, but"

    def give_up() -> NoReturn:
        end_process(output, f"error: {where} lost process 0 again; start all of them again", EXIT_BAD_INPUT)

    output.on_fatal = give_up
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=launch.coordinator,
            num_processes=launch.num_processes,
            process_id=launch.process_id,
            local_device_ids=[] if launch.gpu is None else [launch.gpu],
            cluster_detection_method="deactivate",
            initialization_timeout=START_TIMEOUT_S,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )
    except RuntimeError as error:
        raise JgolfError(
            f"{where} JAX could not join them: {first_line(error)}; start all again, and choose another port "
            "if that does not help"
        ) from error
