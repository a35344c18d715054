"""Who the processes of a run are, from options and from the environments that launchers make."""

from __future__ import annotations

import pytest

from jgolf.errors import ConfigError
from jgolf.train.launch import Launch, find_launch

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


# As `torchrun --nnodes=2 --nproc-per-node=8` sets them.
TORCHRUN = {
    "WORLD_SIZE": "16",
    "RANK": "11",
    "LOCAL_WORLD_SIZE": "8",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "host1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
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
    assert find_launch(None, None, None, SLURM_ONE_A_HOST) == Launch(2, 1, "gpu01:61517", gpu=None)


def test_slurm_with_a_process_a_gpu() -> None:
    environment = SLURM_ONE_A_HOST | {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_PROCID": "13",
        "SLURM_LOCALID": "5",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }
    assert find_launch(None, None, None, environment) == Launch(16, 13, "gpu01:61517", gpu=5)
    alone_visible = environment | {"CUDA_VISIBLE_DEVICES": "5"}  # --gpus-per-task=1
    assert find_launch(None, None, None, alone_visible) == Launch(16, 13, "gpu01:61517", gpu=None)


def test_open_mpi() -> None:
    assert find_launch(None, None, None, OPEN_MPI_ONE_A_GPU) == Launch(16, 11, "10.96.0.1:62624", gpu=3)


def test_open_mpi_5_needs_the_coordinator() -> None:
    environment = {name: value for name, value in OPEN_MPI_ONE_A_GPU.items() if "uri" not in name}
    with pytest.raises(ConfigError, match="--coordinator missing"):
        find_launch(None, None, None, environment)
    assert find_launch("host1:7733", None, None, environment) == Launch(16, 11, "host1:7733", gpu=3)


def test_steps_of_a_slurm_job_side_by_side() -> None:
    second = find_launch(None, None, None, SLURM_ONE_A_HOST | {"SLURM_STEP_ID": "1"})
    assert second.coordinator == "gpu01:61518"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[007,009-012],login", "gpu007"),
        ("rack[2-3]node[04-05]", "rack2node04"),
        ("a-b[1-2].cluster", "a-b1.cluster"),
    ],
)
def test_the_first_of_slurm_s_hosts(nodes: str, first: str) -> None:
    launch = find_launch(None, None, None, SLURM_ONE_A_HOST | {"SLURM_STEP_NODELIST": nodes})
    assert launch.address[0] == first


def test_open_mpi_over_ipv6() -> None:
    uri = "1314521088.0;tcp6://[fe80::b9b:ac5d:9cf0:b858,2620:10d:c083:150e::3000:2]:43370"
    launch = find_launch(None, None, None, OPEN_MPI_ONE_A_GPU | {"OMPI_MCA_orte_hnp_uri": uri})
    assert launch.address[0] == "fe80::b9b:ac5d:9cf0:b858"


def test_torchrun() -> None:
    assert find_launch(None, None, None, TORCHRUN) == Launch(16, 11, "host1:29501", gpu=3)
    its_port_is_free = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    assert find_launch(None, None, None, its_port_is_free) == Launch(16, 11, "host1:29500", gpu=3)
    assert find_launch("host1:7733", None, None, TORCHRUN).coordinator == "host1:7733"
    assert find_launch(None, None, None, TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}).gpu is None
    assert find_launch(None, None, None, TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}) is None


def test_what_is_said_of_it() -> None:
    assert str(find_launch(None, None, None, TORCHRUN)) == (
        "process 11 of 16, by torchrun's RANK and WORLD_SIZE: joins the others at host1:29501, with GPU 3 of this host"
    )
    assert str(find_launch("10.0.0.1:7733", 2, 1, {})) == (
        "process 1 of 2, by --num-processes and --process-id: joins the others at 10.0.0.1:7733, with all devices of "
        "this host"
    )
    for environment in (SLURM_ONE_A_HOST, OPEN_MPI_ONE_A_GPU):
        told = str(find_launch(None, None, None, environment)).partition(", by ")[2].partition(":")[0]
        assert sum(name in environment for name in told.replace("'s", "").split()) == 2


def test_torchrun_inside_slurm_is_what_counts() -> None:
    assert find_launch(None, None, None, SLURM_ONE_A_HOST | TORCHRUN).process_id == 11
    alone = TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}
    assert find_launch(None, None, None, SLURM_ONE_A_HOST | alone) is None
    exported_in_a_script = {"MASTER_ADDR": "gpu01", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
    assert find_launch(None, None, None, SLURM_ONE_A_HOST | exported_in_a_script).coordinator == "gpu01:61517"


def test_mpich_needs_the_coordinator() -> None:
    environment = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "2"}
    with pytest.raises(ConfigError, match="--coordinator missing"):
        find_launch(None, None, None, environment)
    assert find_launch("host1:7733", None, None, environment) == Launch(4, 2, "host1:7733", gpu=2)


@pytest.mark.parametrize("launcher", [SLURM_ONE_A_HOST, OPEN_MPI_ONE_A_GPU, TORCHRUN])
@pytest.mark.parametrize("value", ["", "two", "-1", "1.0", "²", "1e3", "9" * 5000])
def test_variables_that_are_no_numbers(launcher: dict[str, str], value: str) -> None:
    """Each is named, unless it is not needed, or no number by right."""
    texts = ("NODELIST", "uri", "ADDR", "RUN_ID", "STORE", "SLURM_NTASKS", "CUDA")
    for name in launcher:
        if any(text in name for text in texts) or (name == "SLURM_LOCALID" and launcher is SLURM_ONE_A_HOST):
            continue
        with pytest.raises(ConfigError, match=rf"variable {name} is '.*': expected a whole number") as raised:
            find_launch(None, None, None, launcher | {name: value})
        assert len(str(raised.value)) < 400


def test_variables_that_contradict_one_another() -> None:
    with pytest.raises(ConfigError, match="SLURM_PROCID is '2': expected a whole number from 0 to 1"):
        find_launch(None, None, None, SLURM_ONE_A_HOST | {"SLURM_PROCID": "2"})
    with pytest.raises(ConfigError, match="RANK is missing"):
        find_launch(None, None, None, {"WORLD_SIZE": "8"})
    with pytest.raises(ConfigError, match="MASTER_PORT is '99999'"):
        find_launch(None, None, None, TORCHRUN | {"MASTER_PORT": "99999"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, 2, 0), "--coordinator missing"),
        (("10.0.0.1:7733", None, None), "--num-processes, --process-id missing"),
        (("10.0.0.1", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:99999999", 2, 0), "10.0.0.1:99999999'.*the port from 1 to 65535"),
        (("10.0.0.1:0", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:²", 2, 0), "expected HOST:PORT"),
        ((":7733", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:7733", 2, 2), "--process-id is 2: expected from 0 to 1"),
        (("10.0.0.1:7733", 0, 0), "--num-processes is 0"),
    ],
)
def test_options_that_make_no_sense(options: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_launch(*options, {})
