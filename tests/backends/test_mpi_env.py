"""Which of the leader's variables a rank on another pod has."""

from __future__ import annotations

import pytest
from mpi_requests import refusal

from backends.mpi_env import handed, is_own, of_rank

OWN = [
    "POD_IP", "POD_NAME", "NODE_NAME", "HOST_IP", "HOSTNAME", "HOME", "LWS_WORKER_INDEX", "NVIDIA_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA", "UCX_NET_DEVICES",
    "KUBERNETES_SERVICE_HOST", "MY_SVC_SERVICE_HOST", "MY_SVC_SERVICE_PORT_HTTP", "MY_SVC_PORT_80_TCP_ADDR",
    "MY_SVC_PORT", "VLLM_HOST_IP", "LD_PRELOAD", "PCIDEVICE_INTEL_COM_SRIOV",
]  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_value_that_is_one_pods_own_stays_there(name: str) -> None:
    assert is_own(name)
    assert handed({name: "x"}, ()) == ({}, {})


@pytest.mark.parametrize("name", ["HF_TOKEN", "NCCL_DEBUG", "MODEL", "OMPI_MCA_coll_hcoll_enable", "TLLM_LOG_LEVEL"])
def test_what_a_worker_lacks_comes_from_the_leader_and_its_own_stays(name: str) -> None:
    lacking, always = handed({name: "leader"}, ())
    assert of_rank({}, lacking, always) == {name: "leader"}
    assert of_rank({name: "worker"}, lacking, always) == {name: "worker"}


def test_a_name_that_the_user_gives_is_the_leaders_everywhere() -> None:
    lacking, always = handed({"SEED": "1", "OTHER": "2"}, ("SEED", "ABSENT"))
    assert of_rank({"SEED": "0", "OTHER": "3"}, lacking, always) == {"SEED": "1", "OTHER": "3"}


@pytest.mark.parametrize("name", ["SLURM_PROCID", "WORLD_SIZE", "OMPI_MCA_plm_rsh_agent"])
def test_another_launchs_place_is_nobodys(name: str) -> None:
    assert handed({name: "1"}, ()) == ({}, {})


@pytest.mark.parametrize("name", ["POD_IP", "HOSTNAME", "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP"])
def test_a_name_of_which_every_pod_has_its_own_value_is_refused(name: str) -> None:
    text = refusal("x", backend="mpi", environment=(name,))
    assert text.startswith(f"--mpi-env {name}: every pod has a value of its own")


def test_a_value_is_no_name() -> None:
    assert refusal("x", backend="mpi", environment=("A=b",)).startswith("--mpi-env 'A=b'\n")
