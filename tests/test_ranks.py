"""Which process of how many is this? What launchers say is taken, or refused with one sentence."""

import os

import pytest

from src.launch import ranks

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}
SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[1-2]",
}


def mpi(rank, local_rank, size=4, local_size=2):
    """What Open MPI sets."""
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        "MASTER_ADDR": "a",
    }


def exported(monkeypatch, environment):
    """The environment after export_ranks()."""
    monkeypatch.setattr(os, "environ", dict(environment))
    ranks.export_ranks()
    return os.environ


def without(environment, name):
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK is 'x', not a whole number"),
        (TORCHRUN | {"RANK": "²"}, "RANK is '²', not a whole number"),
        (TORCHRUN | {"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2', not a whole number"),
        (TORCHRUN | {"RANK": "4"}, "number 4 of 4"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "number 1 of 0"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "1 of 0 on its node"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "1 of 8 on its node"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "2 of 2 on its node"),
        (TORCHRUN | {"GROUP_RANK": "first"}, "GROUP_RANK is 'first'"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT is 70000, not a port"),
        (without(TORCHRUN, "LOCAL_RANK"), "RANK is set and LOCAL_RANK is not"),
        (without(TORCHRUN, "WORLD_SIZE"), "RANK is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set and RANK is not"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK is set and RANK is not"),
        (without(SRUN, "SLURM_NODEID"), "SLURM_PROCID is set and SLURM_NODEID is not"),
        (without(SRUN, "SLURM_LOCALID"), "SLURM_PROCID is set and SLURM_LOCALID is not"),
        (without(SRUN, "SLURM_STEP_TASKS_PER_NODE"), "SLURM_STEP_TASKS_PER_NODE is not"),
        (without(SRUN, "SLURM_STEP_NODELIST"), "'' is not a list of hosts"),
        (SRUN | {"SLURM_PROCID": "one"}, "SLURM_PROCID is 'one'"),
        (SRUN | {"SLURM_NODEID": "2"}, "does not fit"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE=two does not fit"),
        # mpirun --map-by node: processes 0 and 2 are on the first node, 1 and 3 on the second
        (mpi(1, 0), "process 1 of 4 is number 0 of 2 on its node"),
        (mpi(2, 1), "--map-by slot"),
        (mpi(0, 0, size=3), "equally many"),
    ],
)
def test_a_mistake_gets_one_sentence(monkeypatch, environment, says):
    with pytest.raises(SystemExit) as end:
        exported(monkeypatch, environment)
    assert says in end.value.code
    assert len(end.value.code.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, "1 4 1 2 0"),
        (TORCHRUN | {"MASTER_PORT": ""}, "1 4 1 2 0"),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), "1 4 1 4 0"),
        (TORCHRUN | {"RANK": "2", "GROUP_RANK": "0"}, "2 4 1 2 0"),  # torchrun knows
        (SRUN, "1 4 1 2 0"),
        (SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, "1 4 0 2 1"),  # --distribution=cyclic
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}, "1 4 0 1 1"),
        (without(SRUN, "SLURM_STEP_NODELIST") | {"MASTER_ADDR": "a"}, "1 4 1 2 0"),
        (mpi(3, 1), "3 4 1 2 1"),
        (mpi(1, 0, 2, 1), "1 2 0 1 1"),
        ({"RANK": "", "PMI_RANK": ""}, "0 1 0 1 0"),
    ],
)
def test_what_is_exported(monkeypatch, environment, expected):
    found = exported(monkeypatch, environment)
    assert " ".join(found[name] for name in ranks.OURS[:5]) == expected
    assert exported(monkeypatch, found) == found  # a second call changes nothing


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("a1,b[1-2]", "a1"),
        ("rack[0-1]n[03-04]", "rack0n03"),
        ("node[01-02]-ib", "node01-ib"),
        ("tux[1-2].uni.de", "tux1.uni.de"),
        ("r[1-2]-c[01,03]-n[1-4]-ib,other", "r1-c01-n1-ib"),
        ("nid[000012-000015]", "nid000012"),
    ],
)
def test_first_host_without_scontrol(monkeypatch, tmp_path, nodes, first):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ranks.first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "node[", "node[1-2", "[]", "node[a-b]", ","])
def test_no_list_of_hosts(monkeypatch, tmp_path, nodes):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="is not a list of hosts"):
        ranks.first_host(nodes)
