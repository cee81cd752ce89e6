"""Which variables a rank on another pod has: its own pod's, and of the leader's those that nobody else can know.

mpirun hands none on by itself. All of the leader's, as `mpirun -x` of every name would give them, would make a worker
take the leader's address, devices and interfaces for its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backends.errors import ConfigError, Fault
from backends.plan_mpi import MpiOptions

# A value that is one pod's or one node's own, by the name's beginning, its end, or the whole of it.
OWN_PREFIXES = (
    "POD_", "NODE_", "HOST_", "LWS_", "LWSRUN_", "KUBERNETES_", "GROVE_", "RBG_", "GPU_DEVICE_", "PCIDEVICE_",
    "NSS_WRAPPER_",
)  # fmt: skip
OWN_SUFFIXES = ("_SOCKET_IFNAME", "_IFNAME", "_SERVICE_HOST", "_HOST_IP", "_POD_IP", "_NODE_IP", "_NODE_NAME")
OWN_NAMES = frozenset(
    {
        "HOSTNAME", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "TERM", "_", "TMPDIR",
        "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "NVIDIA_MIG_CONFIG_DEVICES", "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES", "HABANA_VISIBLE_DEVICES", "NCCL_IB_HCA", "NVSHMEM_HCA_LIST", "UCX_NET_DEVICES",
        "MASTER_ADDR", "RANK", "LOCAL_RANK", "LD_PRELOAD",
    }
)  # fmt: skip
# What tells a rank its place, or mpirun how to launch: where a pod has it, it is of another launch.
PLACE_PREFIXES = ("SLURM_", "PMI_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PRTE_JOB", "PMIX_NAMESPACE", "PMIX_RANK")
PLACE_NAMES = frozenset({"WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "PMIX_SERVER_URI", "TLLM_MPI_SIZE"})
LAUNCH_SETTINGS = tuple(
    f"{package}_MCA_{part}"
    for package in ("OMPI", "PRTE", "PMIX")
    for part in (
        "orte_", "prte_", "plm_", "ras_", "rmaps_", "ess_", "oob_", "odls_", "hwloc_base_binding", "btl_tcp_if_",
        "btl_tcp_port_",
    )
)  # fmt: skip
PLACE = "trtllm-llmapi-launch and MPI programs would take it for their own place in this launch"
SETTING = "it would change how mpirun launches; lwsrun gives mpirun its own, and yours by --mpi-arg"


def unset_because(name: str) -> str | None:
    """Why a variable of the pod must not reach mpirun and the ranks; None for one that may."""
    if name.startswith(LAUNCH_SETTINGS):
        return SETTING
    return PLACE if name in PLACE_NAMES or name.startswith(PLACE_PREFIXES) else None


def is_own(name: str) -> bool:
    """Whether a variable's value is one pod's or one node's own, by its name."""
    service = name.endswith(("_PORT", "_SERVICE_PORT")) or "_PORT_" in name or "_SERVICE_PORT_" in name
    return name in OWN_NAMES or name.startswith(OWN_PREFIXES) or name.endswith(OWN_SUFFIXES) or service


def check_named(options: MpiOptions) -> None:
    """Raise ConfigError for an --mpi-env that no rank may have from another pod, or that is no name."""
    for name in options.environment:
        if "=" in name or not name:
            raise ConfigError(
                Fault(f"--mpi-env {name!r}", "a NAME; its value is the leader's", "--env NAME=VALUE sets one")
            )
        if name in OWN_NAMES or name.startswith(OWN_PREFIXES) or name.endswith(OWN_SUFFIXES):
            raise ConfigError(
                Fault(
                    f"--mpi-env {name}: every pod has a value of its own",
                    "a name whose value is the same on all pods",
                    "leave it out: a rank has its own pod's value",
                )
            )


def handed(leader: Mapping[str, str], named: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Of the leader's variables: those that a rank has if its pod lacks them, and those that it has in any case."""
    always = {name: leader[name] for name in named if name in leader}
    lacking = {
        name: value
        for name, value in leader.items()
        if name not in always and not is_own(name) and unset_because(name) is None
    }
    return lacking, always


def of_rank(own: Mapping[str, str], lacking: Mapping[str, str], always: Mapping[str, str]) -> dict[str, str]:
    """What a rank on this pod starts from."""
    return {**lacking, **own, **always}
