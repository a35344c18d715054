"""Starting several processes as one: who they are, from options or from the launcher's environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax

from jgolf.errors import ConfigError, JgolfError
from jgolf.train.peers import Peers

START_TIMEOUT_S = 300
SHUTDOWN_TIMEOUT_S = 10
"""For the others to say good-bye; all have reached the end by then, or one is lost."""


@dataclass(frozen=True)
class Launch:
    """This process among those of a run.

    Attributes:
      num_processes: how many there are.
      process_id: which this is, from 0.
      coordinator: host:port at which process 0 is reached; None where JAX knows it from the launcher.
      launcher: JAX's name of the launcher; None where the options say it all.
      gpu: the only GPU of this host to use, where each of its processes takes one; None for all that are visible.
    """

    num_processes: int
    process_id: int
    coordinator: str | None
    launcher: str | None = None
    gpu: int | None = None


def find_launch(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> Launch | None:
    """The processes of this run; None where there is only this one.

    Options win over what Slurm's `srun` or Open MPI's `mpirun` put into the environment.

    Raises:
      ConfigError: the options are not complete, or contradict one another.
    """
    found = _slurm(environ) or _open_mpi(environ)
    if found is None and (coordinator, num_processes, process_id) == (None, None, None):
        return None
    num_processes = found.num_processes if num_processes is None and found else num_processes
    process_id = found.process_id if process_id is None and found else process_id
    coordinator = coordinator or (found.coordinator if found else None)
    launcher = found.launcher if found and not coordinator else None
    _check(coordinator, num_processes, process_id, launcher)
    return Launch(num_processes, process_id, coordinator, launcher, found.gpu if found else None)


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    """A step that `srun` started with more than one task."""
    num_processes = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if num_processes == 1 or "SLURM_PROCID" not in environ:
        return None
    one_a_gpu = num_processes > int(environ.get("SLURM_STEP_NUM_NODES", 1))
    gpu = _own_gpu(environ, environ.get("SLURM_LOCALID", "0")) if one_a_gpu else None
    return Launch(num_processes, int(environ["SLURM_PROCID"]), None, "slurm", gpu)


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    """A program that Open MPI's `mpirun` started more than once."""
    num_processes = int(environ.get("OMPI_COMM_WORLD_SIZE", 1))
    if num_processes == 1:
        return None
    one_a_gpu = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1)) > 1
    gpu = _own_gpu(environ, environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")) if one_a_gpu else None
    # Version 5 no longer says where the first process is.
    launcher = "ompi" if "OMPI_MCA_orte_hnp_uri" in environ else None
    return Launch(num_processes, int(environ["OMPI_COMM_WORLD_RANK"]), None, launcher, gpu)


def _own_gpu(environ: Mapping[str, str], local_rank: str) -> int | None:
    """The GPU of the process `local_rank` of this host, unless the launcher shows it that one alone."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is not None and "," not in visible else int(local_rank)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None, launcher: str | None) -> None:
    options = {"--coordinator": coordinator or launcher, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise ConfigError(
            f"several processes: {', '.join(missing)} missing, and no launcher that says it was found: expected "
            "--coordinator HOST:PORT (of process 0), --num-processes N and --process-id I (from 0) together, or a "
            "start by srun or mpirun"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator is {coordinator!r}: expected HOST:PORT, such as 10.0.0.1:7733")
    if num_processes < 1:
        raise ConfigError(f"--num-processes is {num_processes}: expected at least 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"--process-id is {process_id}: expected from 0 to {num_processes - 1}, one for each process")


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[Peers]:
    """Joins the other processes, before JAX is used for the first time, and leaves them in order.

    Raises:
      JgolfError: they did not all come, or the coordinator's port cannot be used.
    """
    if launch is None or launch.num_processes == 1:
        yield Peers()
        return
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=launch.coordinator,
            num_processes=launch.num_processes,
            process_id=launch.process_id,
            local_device_ids=[] if launch.gpu is None else [launch.gpu],
            cluster_detection_method=launch.launcher or "deactivate",
            initialization_timeout=START_TIMEOUT_S,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )
    except RuntimeError as error:
        raise JgolfError(
            f"process {launch.process_id} of {launch.num_processes} could not join the others at "
            f"{launch.coordinator or launch.launcher}: {str(error).splitlines()[0]}; expected all to be started within "
            f"{START_TIMEOUT_S} s, with a port of process 0's host that is free and can be reached"
        ) from error
    # JAX has no public way to its key-value store; Orbax reaches it in this way too.
    runtime = jax._src.distributed.global_state
    with Peers(runtime.client, runtime.coordinator_address, launch.process_id, launch.num_processes) as peers:
        yield peers
    jax.distributed.shutdown()


def launch_from_environment(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Launch | None:
    """See `find_launch`."""
    return find_launch(coordinator, num_processes, process_id, os.environ)
