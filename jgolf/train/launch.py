"""Who the processes of a run are, from options or from what the launcher puts into the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from jgolf.errors import ConfigError

LAST_PORT = 65_535
_FIRST_OWN_PORT, _OWN_PORTS = 61_440, 4_096
"""Ports from which a job's number chooses: above those that Linux hands out by itself."""


@dataclass(frozen=True)
class Launch:
    """This process among those of a run.

    Attributes:
      num_processes: how many there are.
      process_id: which this is, from 0.
      coordinator: host:port at which process 0 is reached.
      gpu: the only GPU of this host to use, where each of its processes takes one; None for all that are visible.
      told_by: what said so: a launcher and its variables, or options.
    """

    num_processes: int
    process_id: int
    coordinator: str
    gpu: int | None = None
    told_by: str = field(default="", compare=False)

    def __str__(self) -> str:
        devices = "all devices" if self.gpu is None else f"GPU {self.gpu}"
        return (
            f"process {self.process_id} of {self.num_processes}, by {self.told_by}: joins the others at "
            f"{self.coordinator}, with {devices} of this host"
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        return split_address(self.coordinator)


def split_address(text: str) -> tuple[str, int]:
    """The parts of host:port; the host may be an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class _Found:
    """What a launcher says; it need not say where process 0 is."""

    num_processes: int
    process_id: int
    coordinator: str | None
    gpu: int | None
    told_by: str


def launch_from_environment(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Launch | None:
    """See `find_launch`."""
    return find_launch(coordinator, num_processes, process_id, os.environ)


def find_launch(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> Launch | None:
    """The processes of this run; None where there is only this one.

    Options win over what launchers put into the environment: torchrun, Slurm's srun, the mpirun of Open MPI,
    MPICH and Intel MPI. Of several, one inside the other, the innermost counts, which is torchrun.

    Raises:
      ConfigError: the options or the variables are not complete, are no numbers, or contradict one another.
    """
    found = _torchrun(environ) or _slurm(environ) or _open_mpi(environ) or _hydra(environ)
    if (coordinator, num_processes, process_id) == (None, None, None):
        if found is None:
            _check_world_size(environ)
        if found is None or found.num_processes == 1:
            return None
    num_processes = found.num_processes if num_processes is None and found else num_processes
    process_id = found.process_id if process_id is None and found else process_id
    coordinator = coordinator or (found.coordinator if found else None)
    _check(coordinator, num_processes, process_id)
    told_by = found.told_by if found else "--num-processes and --process-id"
    return Launch(num_processes, process_id, coordinator, found.gpu if found else None, told_by)


# --- launchers -------------------------------------------------------------------------------


def _torchrun(environ: Mapping[str, str]) -> _Found | None:
    """PyTorch's launcher, and what sets its variables in its place."""
    if "WORLD_SIZE" not in environ or "RANK" not in environ:
        return None
    is_it = "TORCHELASTIC_RUN_ID" in environ
    num_processes, process_id = _place(environ, "WORLD_SIZE", "RANK", "torchrun")
    if num_processes == 1 and not is_it:
        return None  # says nothing that another launcher might not know better
    coordinator = None
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        port = _number(environ, "MASTER_PORT", "torchrun", least=1, most=LAST_PORT)
        if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # its own server is at that port
            port += 1 if port < LAST_PORT else -1
        coordinator = _joined_address(environ["MASTER_ADDR"], port)
    gpu = _gpu_of(environ, "LOCAL_WORLD_SIZE", "LOCAL_RANK", "torchrun")
    return _Found(num_processes, process_id, coordinator, gpu, "torchrun's RANK and WORLD_SIZE")


def _slurm(environ: Mapping[str, str]) -> _Found | None:
    """A step that `srun` started with more than one task."""
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    num_processes, process_id = _place(environ, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun")
    if num_processes == 1:
        return None
    coordinator = None
    if "SLURM_STEP_NODELIST" in environ and "SLURM_JOB_ID" in environ:
        number = _number(environ, "SLURM_JOB_ID", "srun")
        if "SLURM_STEP_ID" in environ:  # steps of a job may run side by side
            number += _number(environ, "SLURM_STEP_ID", "srun")
        # Such as gpu[01-04,07],login: the first of the numbers in brackets, then the first name.
        first_host = re.sub(r"\[([^],-]*)[^]]*]", r"\1", environ["SLURM_STEP_NODELIST"]).partition(",")[0]
        coordinator = _joined_address(first_host, _own_port(number))
    num_hosts = _number(environ, "SLURM_STEP_NUM_NODES", "srun", least=1) if "SLURM_STEP_NUM_NODES" in environ else 1
    gpu = _own_gpu(environ, "SLURM_LOCALID", "srun") if num_processes > num_hosts else None
    return _Found(num_processes, process_id, coordinator, gpu, "srun's SLURM_PROCID and SLURM_STEP_NUM_TASKS")


def _open_mpi(environ: Mapping[str, str]) -> _Found | None:
    """A program that Open MPI's `mpirun` started more than once."""
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    num_processes, process_id = _place(environ, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun")
    if num_processes == 1:
        return None
    coordinator = None
    # Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911, or tcp6://[…]; version 5 says no such thing any more.
    said = re.match(r"(\d{1,18})\..*?;tcp6?://\[?([^],]+)", environ.get("OMPI_MCA_orte_hnp_uri", ""), re.ASCII)
    if said is not None:
        host = said[2] if "tcp6://" in said[0] else said[2].partition(":")[0]
        coordinator = _joined_address(host, _own_port(int(said[1]) // 4096))  # of which the jobs' numbers are multiples
    gpu = _gpu_of(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "mpirun")
    told_by = "mpirun's OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE"
    return _Found(num_processes, process_id, coordinator, gpu, told_by)


def _hydra(environ: Mapping[str, str]) -> _Found | None:
    """A program that the `mpirun` of MPICH or Intel MPI started more than once; it does not say where."""
    if "PMI_SIZE" not in environ or "PMI_RANK" not in environ:
        return None
    num_processes, process_id = _place(environ, "PMI_SIZE", "PMI_RANK", "mpirun")
    if num_processes == 1:
        return None
    gpu = _gpu_of(environ, "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "mpirun")
    return _Found(num_processes, process_id, None, gpu, "mpirun's PMI_RANK and PMI_SIZE")


def _own_port(number: int) -> int:
    """A port that all processes of a job can work out, and that other jobs' processes most likely do not."""
    return _FIRST_OWN_PORT + number % _OWN_PORTS


def _joined_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _gpu_of(environ: Mapping[str, str], local_size: str, local_rank: str, launcher: str) -> int | None:
    """This process's GPU where its host has more than one process."""
    if local_rank not in environ or (local_size in environ and _number(environ, local_size, launcher, least=1) == 1):
        return None
    return _own_gpu(environ, local_rank, launcher)


def _own_gpu(environ: Mapping[str, str], local_rank: str, launcher: str) -> int | None:
    """The GPU of the process `local_rank` of this host, unless the launcher shows it that one alone."""
    index = _number(environ, local_rank, launcher) if local_rank in environ else 0
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is not None and "," not in visible else index


# --- checks ----------------------------------------------------------------------------------


def _place(environ: Mapping[str, str], size: str, rank: str, launcher: str) -> tuple[int, int]:
    """How many processes there are, and which this is."""
    num_processes = _number(environ, size, launcher, least=1)
    if num_processes == 1:
        return 1, 0
    return num_processes, _number(environ, rank, launcher, most=num_processes - 1)


def _number(environ: Mapping[str, str], name: str, launcher: str, least: int = 0, most: int = 10**12) -> int:
    """The variable's value.

    Raises:
      ConfigError: it is missing, no whole number, or out of range.
    """
    text = environ.get(name)
    if text is not None and re.fullmatch(r"\d{1,15}", text.strip(), re.ASCII) and least <= int(text) <= most:
        return int(text)
    found = "missing" if text is None else repr(text[:40])
    expected = f"a whole number from {least}" + (f" to {most:,}" if most < 10**12 else "")
    raise ConfigError(
        f"the environment variable {name} is {found}: expected {expected}, as {launcher} sets it; put it right, or "
        "unset the launcher's variables and give --coordinator, --num-processes and --process-id, or none for a run of "
        "one process"
    )


def _check_world_size(environ: Mapping[str, str]) -> None:
    """Raises ConfigError where this may be one of many that would each take itself for the only one."""
    if environ.get("WORLD_SIZE", "1").strip() != "1":
        _number(environ, "WORLD_SIZE", "torchrun", least=1)
        _number(environ, "RANK", "torchrun")


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    options = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise ConfigError(
            f"several processes: {', '.join(missing)} missing, and no launcher that says it was found: expected "
            "--coordinator HOST:PORT (of process 0), --num-processes N and --process-id I (from 0) together, or a "
            "start by srun, mpirun or torchrun"
        )
    host, _, port = coordinator.rpartition(":")
    if not host.strip("[]") or not re.fullmatch(r"\d{1,9}", port, re.ASCII) or not 1 <= int(port) <= LAST_PORT:
        raise ConfigError(
            f"--coordinator is {coordinator!r}: expected HOST:PORT, such as 10.0.0.1:7733, the port from 1 to "
            f"{LAST_PORT}"
        )
    if num_processes < 1:
        raise ConfigError(f"--num-processes is {num_processes}: expected at least 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"--process-id is {process_id}: expected from 0 to {num_processes - 1}, one for each process")
