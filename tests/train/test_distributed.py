"""Who the processes of a run are, from options and from the environments that launchers make."""

from __future__ import annotations

import pytest

from jgolf.errors import ConfigError
from jgolf.train.distributed import Launch, find_launch

# As `srun --nodes=2 --ntasks-per-node=1` and Open MPI 4's `mpirun -np 16 -npernode 8` set them.
SLURM_ONE_A_HOST = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "gpu[01-02]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI_ONE_A_GPU = {
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "11",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}


def test_alone() -> None:
    assert find_launch(None, None, None, {}) is None
    alone_in_slurm = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert find_launch(None, None, None, alone_in_slurm) is None
    in_a_batch_script = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}  # not started by srun
    assert find_launch(None, None, None, in_a_batch_script) is None


def test_options() -> None:
    assert find_launch("10.0.0.1:7733", 2, 1, {}) == Launch(2, 1, "10.0.0.1:7733")


def test_slurm_with_a_process_a_host_uses_all_gpus() -> None:
    assert find_launch(None, None, None, SLURM_ONE_A_HOST) == Launch(2, 1, None, "slurm", gpu=None)


def test_slurm_with_a_process_a_gpu() -> None:
    environment = SLURM_ONE_A_HOST | {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_PROCID": "13",
        "SLURM_LOCALID": "5",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }
    assert find_launch(None, None, None, environment) == Launch(16, 13, None, "slurm", gpu=5)
    alone_visible = environment | {"CUDA_VISIBLE_DEVICES": "5"}  # --gpus-per-task=1
    assert find_launch(None, None, None, alone_visible) == Launch(16, 13, None, "slurm", gpu=None)


def test_open_mpi() -> None:
    assert find_launch(None, None, None, OPEN_MPI_ONE_A_GPU) == Launch(16, 11, None, "ompi", gpu=3)


def test_open_mpi_5_needs_the_coordinator() -> None:
    environment = {name: value for name, value in OPEN_MPI_ONE_A_GPU.items() if "uri" not in name}
    with pytest.raises(ConfigError, match="--coordinator missing"):
        find_launch(None, None, None, environment)
    assert find_launch("host1:7733", None, None, environment) == Launch(16, 11, "host1:7733", None, gpu=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, 2, 0), "--coordinator missing"),
        (("10.0.0.1:7733", None, None), "--num-processes, --process-id missing"),
        (("10.0.0.1", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:7733", 2, 2), "--process-id is 2: expected from 0 to 1"),
        (("10.0.0.1:7733", 0, 0), "--num-processes is 0"),
    ],
)
def test_options_that_make_no_sense(options: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_launch(*options, {})
